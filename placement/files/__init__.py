"""Placements in files: our own form, and the forms of serving systems, read and written."""
