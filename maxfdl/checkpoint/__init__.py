"""Saving a run so that it can be continued to the last bit."""
