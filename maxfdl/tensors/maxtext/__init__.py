"""Checkpoints of MaxText: names, layouts and files. Nothing here knows graphs."""
