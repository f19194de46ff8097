"""The memory that a step will need on each device, estimated without compiling it.

The step is traced, as for a compiler, and read as a program of one device
(`program.py`): what loops, calls and `shard_map`s hold, cut as the mesh cuts it
(`layouts.py`). From that follows when each array is in memory (`liveness.py`), and so
the moment that needs the most (`estimate.py`).

What XLA does is followed where it decides: elementwise operations are fused, what a
loop carries is updated in place, weights are cast before the loop that reads them, and
the new state is written over the old one. What it does besides is not known. It runs
instructions in another order, keeps some arrays in the small fast memory of a TPU, pads
some, and leaves gaps between arrays. Against the peak that XLA reports for TPUs, the
estimate is within 10 % from about a GiB on; of steps that need a few hundred MiB, a
TPU keeps a large part in its fast memory, and the estimate is too high by that.
"""
