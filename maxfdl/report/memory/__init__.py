"""The memory that a step will need on each device, estimated without compiling it.

The step is traced, as for a compiler, and read as a program of one device
(`program.py`): what loops, calls and `shard_map`s hold, cut as the mesh cuts it
(`layouts.py`). From that follows when each array is in memory (`liveness.py`), and so
the moment that needs the most (`estimate.py`).

What XLA does is followed where it decides: elementwise operations are fused, what a
loop carries is updated in place, weights are cast before the loop that reads them, and
the new state is written over the old one. What else it does is not known:

- It runs instructions in another order. It puts off gradients of weights, or gathers
  early, to compute while it sends. In layers with many products that do not depend on
  each other (latent attention with experts), it then holds more than is estimated.
- It runs a loop of one trip without a loop, and shares what the forward pass computes
  with what remat computes again: that is held in between. In a small model with latent
  attention, experts and one dense layer, a seventh to a fifth of the whole step was
  measured to be missing. Half of it was this.
- It keeps what fits in the fast memory of a TPU, some hundred MiB. Steps that need a
  few hundred MiB are estimated too high by a part of that.
- It leaves gaps between arrays, up to a tenth of what it holds. XLA's own peak, which
  `maxfdl.aot` reports, does not count them either.

Against that peak, other steps of a GiB and more are within 10 %.
"""
