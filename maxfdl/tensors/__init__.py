"""Weights of other frameworks: their tensors by name, and the place of each in ours."""
