"""Toy layers in NNX."""
