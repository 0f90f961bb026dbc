"""Placements out of files: our own form, and the forms of serving systems (``docs/placement-format.md``)."""
