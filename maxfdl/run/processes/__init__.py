"""Several processes that train together: who they are, and how they end together.

`place` tells which of the processes this one is. `hub` is a small server in process 0
where all of them meet; `peers` is the connection of one process to it. Through it they
compare what they are about to run, agree on the step to stop after, and tell each other
when one of them ends. None of this needs JAX, so it works before JAX is imported.
"""
