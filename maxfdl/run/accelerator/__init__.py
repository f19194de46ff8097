"""Checks and measurements on one accelerator: `python -m maxfdl.bench --accelerator`.

`plan` lists the checks, `suite` runs them within a time budget, each guarded, and
`report` says what they found. A check is a function of a `Bench` in one of `attention`,
`losses`, `offload`, `speed` and `probes`.
"""
