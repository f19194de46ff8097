"""Faults injected on purpose: `python -m tests.faults --kills=200`.

`storm` kills runs while they start, train and save; they must go on as if nothing had
happened. `damage` damages every file of a checkpoint in turn; no damage may restore
other values.
"""
