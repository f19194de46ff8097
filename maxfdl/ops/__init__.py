"""Pure functions of arrays, and frozen dataclasses of them that sit in layer fields."""
