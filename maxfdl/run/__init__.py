"""The host side of a run: its loop, directory, logs, signals and evaluation."""
