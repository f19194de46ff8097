"""Weights in few bits, as files hold them: codes and scales, in NumPy on the host."""
