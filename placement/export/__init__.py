"""Placements as the files of serving systems. ``docs/exports.md`` says for each what it can hold."""
