"""Toy experiments."""
