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
        plain = super()._run

        def joined(numbers, values, x, others):
            arrays, rows = others
            params = _with_numbers(arrays.params, numbers)
            return arrays._replace(params=params, values=values), (x, rows)

        @jax.custom_vjp
        def run(*given):
            return plain(*joined(*given))

        def forward(*given):
            return run(*given), given

        def backward(given, grads):
            return *self._backward(*joined(*given), *grads), None

        run.defvjp(forward, backward)
        return run(_numbers(arrays.params), arrays.values, x, (arrays, rows))

    def _backward(
        self, arrays: Arrays, waiting: Inputs, d_done: jax.Array, d_left: Any
    ) -> tuple[list[jax.Array], Any, jax.Array]:
        """Returns the gradients of parameters, values, and what entered the pipeline.

        Parameters that are integers, parts of packed kernels, have none.

        Args:
          arrays, waiting: As `_run` was given them.
          d_done, d_left: Gradients of what it gave.
        """
        inputs = self._nothing(waiting)
        kept = jax.tree.map(
            lambda a: jnp.zeros((self.depth, *a.shape), a.dtype), inputs
        )
        numbers = _numbers(arrays.params)
        total = [
            jnp.zeros_like(p, jnp.promote_types(p.dtype, jnp.float32)) for p in numbers
        ]
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
        pairs = zip(total, numbers, strict=True)
        return [g.astype(p.dtype) for g, p in pairs], d_values, d_x

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

        params, values = self._of_unit(arrays, unit, place)

        def run(numbers, values, x):
            x, (_, sinks) = self._layers(
                _with_numbers(params, numbers),
                values,
                (x, rows),
                arrays,
                unit,
                place,
                self.remat,
            )
            return x, _numbers(sinks)

        _, pull = jax.vjp(run, _numbers(params), values, x)
        _, d_sinks = d_left
        d_sinks = at(_numbers(d_sinks), unit.microbatch, unit.repeat, place)
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


def _numbers(tree: Any) -> list[jax.Array]:
    """Returns the leaves that gradients flow through, which are no integers."""
    leaves = jax.tree.leaves(tree)
    return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]


def _with_numbers(tree: Any, numbers: list[jax.Array]) -> Any:
    """Returns the tree with other leaves in place of those that `_numbers` gives."""
    leaves, form = jax.tree.flatten(tree)
    new = iter(numbers)
    are_numbers = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]
    return form.unflatten(
        [
            next(new) if is_number else x
            for x, is_number in zip(leaves, are_numbers, strict=True)
        ]
    )
