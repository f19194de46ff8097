"""Whole runs: each module has `experiment(...)`, which returns the graph of one."""
