"""Layers in two families, `nnx` and `linen`, and what both stand on."""
