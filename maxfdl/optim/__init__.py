"""Optimizers over Optax, their schedules, and what they need to know of parameters."""
