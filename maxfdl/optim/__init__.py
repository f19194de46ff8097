"""Optimizers made of Optax transforms, and learning rate schedules."""
