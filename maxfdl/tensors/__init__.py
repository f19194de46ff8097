"""Checkpoints of other frameworks: files of tensors, name tables and layouts."""
