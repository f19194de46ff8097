"""The training step: objective, gradients, update, and where the state lies."""
