"""A pipeline whose activations take the memory of a few microbatches, however many.

The backward pass of `Stages` begins when all microbatches have passed: it keeps what
each unit was given, in the memory of all of them. Here nothing is kept but the rows
that enter the pipeline. The backward pass runs the forward pass again, and as soon as a
microbatch leaves the last stage, its backward pass begins: from then on each stage runs
one unit forward and one backward in each iteration (1F1B, Narayanan et al. 2019,
https://arxiv.org/abs/1806.03377; with repeats, interleaved as in Narayanan et al. 2021,
https://arxiv.org/abs/2104.04473).

Why the forward pass runs twice: the loss stands outside the pipeline, on all devices,
and gives the gradients of all microbatches at once, after the last has passed.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maxfdl.layers.schedule import Unit
from maxfdl.layers.stages import Arrays, Inputs, Stages, at


@dataclasses.dataclass(frozen=True)
class OneForwardOneBackward(Stages):
    """Stages whose backward pass runs forward and backward units in turns.

    With n units of a stage, it has `n + S - 1` iterations in which stages run forward,
    as many in which they run backward, and all of these but `R S - 1` are the same. A
    stage keeps what `2 R S - 1` units were given.

    Each unit runs once more when its backward pass is due, and `remat` says what that
    keeps of each of its layers.
    """

    @property
    def lag(self) -> int:
        """Iterations from the first forward to the first backward unit of all."""
        return self.schedule.repeats * self.schedule.stages - 1

    @property
    def depth(self) -> int:
        """Units whose inputs a stage keeps: those from its forward to its backward."""
        return 2 * self.lag + 1

    def _run(self, arrays: Arrays, waiting: Inputs) -> tuple[jax.Array, Any]:
        x, rows = waiting
        others = rows, arrays.state, arrays.key

        @jax.custom_vjp
        def run(params, values, x, others):
            rows, state, key = others
            return plain(Arrays(params, state, values, key), (x, rows))

        def forward(*given):
            return run(*given), given

        def backward(given, grads):
            params, values, x, (rows, state, key) = given
            arrays = Arrays(params, state, values, key)
            return *self._backward(arrays, (x, rows), *grads), None

        plain = super()._run
        run.defvjp(forward, backward)
        return run(arrays.params, arrays.values, x, others)

    def _backward(
        self, arrays: Arrays, waiting: Inputs, d_done: jax.Array, d_left: Any
    ) -> tuple[Any, Any, jax.Array]:
        """Returns the gradients of parameters, values, and what entered the pipeline.

        Args:
          arrays, waiting: As `_run` was given them.
          d_done, d_left: Gradients of what it gave.
        """
        inputs = self._nothing(waiting)
        kept = jax.tree.map(
            lambda a: jnp.zeros((self.depth, *a.shape), a.dtype), inputs
        )
        total = jax.tree.map(
            lambda p: jnp.zeros_like(p, jnp.promote_types(p.dtype, jnp.float32)),
            arrays.params,
        )
        forth = inputs, waiting, kept
        back = (
            jnp.zeros_like(inputs[0]),
            d_done,
            jnp.zeros_like(d_done),
            total,
            jax.tree.map(jnp.zeros_like, arrays.values),
        )
        forward = functools.partial(self._forward_iteration, arrays)
        backward = functools.partial(self._backward_iteration, arrays, d_left)
        end = self.schedule.iterations

        def both(carry, time):
            forth = forward(carry[0], time)
            return forth, backward(carry[1], forth[2], time)

        forth = _loop(forward, forth, 0, self.lag)
        forth, back = _loop(lambda c, t: both(c, t), (forth, back), self.lag, end)
        back = _loop(lambda c, t: backward(c, forth[2], t), back, end, end + self.lag)
        _, _, d_x, total, d_values = back
        cast = jax.tree.map(lambda g, p: g.astype(p.dtype), total, arrays.params)
        return cast, d_values, d_x

    def _forward_iteration(self, arrays: Arrays, carry: Any, time: jax.Array) -> Any:
        """Runs the stages, and keeps what they were given."""
        inputs, waiting, kept = carry
        waiting, inputs = self._taken(waiting, inputs, time)

        def keep(place: int, kept: jax.Array, given: jax.Array) -> jax.Array:
            slot = (time - self._stage(jnp.int32(place))) % self.depth
            return kept.at[slot, place].set(given[place])

        for place in range(self.count):
            kept = jax.tree.map(functools.partial(keep, place), kept, inputs)
        x, _ = self._units(arrays, inputs, time)
        return self._passed_on((x, inputs[1])), waiting, kept

    def _backward_iteration(
        self, arrays: Arrays, d_left: Any, carry: Any, kept: Inputs, time: jax.Array
    ) -> Any:
        """Runs the backward pass of one unit of each stage, and passes gradients on."""
        grads, d_done, d_x, total, d_values = carry
        first = time - self.lag
        unit, is_due = self.schedule.enters(first)
        d_done, grads = self.microbatches.taken_back(d_done, grads, unit, is_due)

        def one(sums: Any, each: Any) -> tuple[Any, jax.Array]:
            place, grad = each
            return self._backward_unit(arrays, d_left, kept, sums, grad, first, place)

        places = jnp.arange(self.count)
        (total, d_values), grads = lax.scan(
            one, (total, d_values), (places, grads), reverse=True
        )
        unit, is_due = self.schedule.leaves(first - (self.schedule.stages - 1))
        d_x = self.microbatches.given_back(d_x, grads[0], unit, is_due)
        grads = jnp.concatenate([grads[1:], self.line.from_after(grads[:1])])
        return grads, d_done, d_x, total, d_values

    def _backward_unit(
        self, arrays: Arrays, d_left: Any, kept: Inputs, sums: Any, grad, first, place
    ) -> tuple[Any, jax.Array]:
        """Runs the backward pass of the unit of a stage, if one is due.

        Args:
          d_left: [M, R, k, L, ...] gradients of what units left.
          kept: [depth, k, ...] what units were given.
          sums: Gradients of parameters and values so far.
          grad: That of what the unit gave.
          first: Number of the backward unit of the last stage.
          place: Of the stage on this device.

        Returns:
          New sums, and the gradient of what the unit was given.
        """
        number = first - (self.schedule.stages - 1 - self._stage(place))
        is_due, mirrored = self.schedule.is_due(number), self.schedule.unit(number)
        unit = Unit(self.schedule.repeats - 1 - mirrored.repeat, mirrored.microbatch)
        x, rows = at(kept, self.schedule.number(unit) % self.depth, place)

        def run(params, values, x):
            x, (state, sinks) = self._layers(
                params, values, (x, rows), arrays, unit, place, self.remat
            )
            return x, _with_gradients(sinks)

        _, pull = jax.vjp(run, *self._of_unit(arrays, unit, place), x)
        _, d_sinks = d_left
        d_sinks = at(_with_gradients(d_sinks), unit.microbatch, unit.repeat, place)
        grads = pull((grad, d_sinks))
        d_params, d_values, d_x = jax.tree.map(lambda g: jnp.where(is_due, g, 0), grads)
        where, of_values = (unit.repeat, place), sums[1]
        total = jax.tree.map(lambda t, g: t.at[where].add(g), sums[0], d_params)
        of_values = jax.tree.map(
            lambda t, g: t.at[unit.microbatch, *where].add(g), of_values, d_values
        )
        return (total, of_values), d_x


def _loop(iteration: Any, carry: Any, start: int, stop: int) -> Any:
    """Returns the carry after the iterations from `start` up to `stop`."""
    step = lambda carry, time: (iteration(carry, time), None)  # noqa: E731
    return lax.scan(step, carry, jnp.arange(start, stop))[0]


def _with_gradients(tree: Any) -> list[jax.Array]:
    """Returns the leaves that gradients flow through: numbers with a fraction."""
    leaves = jax.tree.leaves(tree)
    return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
