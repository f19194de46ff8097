"""Functions that return graphs."""
