"""What one device does of a pipeline.

Letters: S stages, k of them on this device, R repeats, M microbatches, L layers that a
stage runs at a time.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.dtypes import float0

from maxfdl.layers.context import Context, Outbox, Rows
from maxfdl.layers.execution import Layers, Remat, Scan, rematerialised
from maxfdl.layers.microbatches import Microbatches
from maxfdl.layers.schedule import Schedule, Unit
from maxfdl.layers.sinks import merged
from maxfdl.ops.state import StateDeclaration, States
from maxfdl.sharding.line import Line

Inputs = tuple[jax.Array, Rows]
"""What a stage runs on: activations, and what belongs to their rows."""


class Arrays(NamedTuple):
    """What all units of a device read.

    Args:
      params: [R, k, L, ...] of the layers.
      state: [R, k, L, ...] leaves of their state before the call.
      values: [M, R, k, L, ...] leaves of which the backward pass leaves the next ones.
      key: That of the context.
    """

    params: Any
    state: list[jax.Array]
    values: Sequence[jax.Array]
    key: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Stages:
    """Runs the stages of this device on all microbatches, iteration by iteration.

    Args:
      schedule: Of the pipeline.
      layers: How they run, and what they declare; the arrays are those of the call.
      remat: What the backward pass keeps of a unit.
      context: That of the stack, on this device.
      line: The devices.
    """

    schedule: Schedule
    layers: Layers
    remat: Remat
    context: Context
    line: Line

    @property
    def count(self) -> int:
        """k"""
        return self.schedule.stages // self.line.size

    @property
    def states(self) -> States:
        return States([*self.layers.states])

    @property
    def microbatches(self) -> Microbatches:
        return Microbatches(self.schedule, self.line, self.context.sharding)

    def __call__(
        self, params: Any, state: Any, x: jax.Array, rows: Rows, key: jax.Array | None
    ) -> tuple[jax.Array, Any, Any]:
        """Returns the output, the new state and the sinks.

        Args:
          params, state: Arrays of this device's share of the layers.
          x, rows: Its share of the rows.
          key: That of the context.
        """
        leaves, form = jax.tree.flatten(state)
        params, before = self._by_stage((params, leaves))
        values: Any = [
            _for_each_microbatch(declared, self.schedule.microbatches, value)
            for declared, value in zip(
                self.states.backward, self.states.of_backward(before), strict=True
            )
        ]
        waiting = jax.tree.map(self.microbatches.cut, (x, rows))
        arrays = Arrays(params, before, values, key)
        done, (after, sinks) = self._run(arrays, waiting)
        after = self._by_layer(self.states.merged(before, after))
        sinks = self._by_layer(merged(sinks))
        return self.microbatches.joined(done), form.unflatten(after), sinks

    def _run(self, arrays: Arrays, waiting: Inputs) -> tuple[jax.Array, Any]:
        """Returns slots of results, and [M, R, k, L, ...] what units left besides."""

        def iteration(carry: Any, time: jax.Array) -> tuple[Any, Any]:
            inputs, waiting, done = carry
            waiting, inputs = self._taken(waiting, inputs, time)
            x, left = self._units(arrays, inputs, time)
            number = time - (self.schedule.stages - 1)
            done = self.microbatches.given(done, x[-1], *self.schedule.leaves(number))
            return (self._passed_on((x, inputs[1])), waiting, done), left

        carry = self._nothing(waiting), waiting, jnp.zeros_like(waiting[0])
        times = jnp.arange(self.schedule.iterations)
        (_, _, done), left = lax.scan(iteration, carry, times)
        return done, jax.tree.map(self._by_unit, left)

    def _nothing(self, waiting: Inputs) -> Inputs:
        """Returns [k, ...] what stages run before microbatches reach them."""
        return jax.tree.map(
            lambda a: jnp.zeros((self.count, *a.shape[1:]), a.dtype), waiting
        )

    def _taken(self, waiting: Inputs, inputs: Inputs, time: jax.Array):
        """Returns what waits and what stages run, once an iteration has begun."""
        return self.microbatches.taken(waiting, inputs, *self.schedule.enters(time))

    def _units(
        self, arrays: Arrays, inputs: Inputs, time: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Runs the units of one iteration, [k, ...]."""
        unit = rematerialised(self._unit, self.remat, prevent_cse=False)

        def one(_: None, each: Any) -> tuple[None, Any]:
            place, inputs = each
            return None, unit(arrays, inputs, time, place)

        return lax.scan(one, None, (jnp.arange(self.count), inputs))[1]

    def _unit(
        self, arrays: Arrays, inputs: Inputs, time: jax.Array, place: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Runs the unit of a stage of this device, the one at `place` of k.

        No gradient passes through one that is not due: in a bubble, what is computed
        may be NaN.

        Returns:
          Activations, and [L, ...] the layers' new state and sinks.
        """
        number = time - self._stage(place)
        unit, is_due = self.schedule.unit(number), self.schedule.is_due(number)
        params, values = self._of_unit(arrays, unit, place)
        x, rows = inputs
        x, params, values = _gradient_if(is_due, (x, params, values))
        return self._layers(params, values, (x, rows), arrays, unit, place, "none")

    def _stage(self, place: jax.Array) -> jax.Array:
        """Returns the number of a stage by its place on this device."""
        return self.line.index * self.count + place

    def _of_unit(self, arrays: Arrays, unit: Unit, place: jax.Array) -> tuple[Any, Any]:
        """Returns the parameters and the values of the layers of a unit."""
        params = at(arrays.params, unit.repeat, place)
        return params, at(arrays.values, unit.microbatch, unit.repeat, place)

    def _layers(self, params, values, inputs, arrays, unit, place, remat):
        """Runs the layers of a unit; returns activations, and new state and sinks."""
        state = at(arrays.state, unit.repeat, place)
        state = self.states.with_backward(state, values)
        form = jax.tree.structure(self.layers.state)
        layers = dataclasses.replace(
            self.layers, params=params, state=form.unflatten(state)
        )
        turn = unit.repeat * self.schedule.stages + self._stage(place)
        first = self.layers.first + turn * layers.repeats
        layers = dataclasses.replace(layers, first=first)
        x, rows = inputs
        context = dataclasses.replace(
            self.context, rows=rows, key=arrays.key, outbox=Outbox()
        )
        x, results = Scan().run(layers, x, context, remat)
        return x, (jax.tree.leaves(results.state), results.sinks)

    def _passed_on(self, results: Inputs) -> Inputs:
        """Returns what the stages of this device run next, but for new microbatches."""
        before = self.line.from_before(jax.tree.map(lambda a: a[-1:], results))
        return jax.tree.map(
            lambda first, a: jnp.concatenate([first, a[:-1]]), before, results
        )

    def _by_stage(self, tree: Any) -> Any:
        """Returns arrays that count layers as [R, k, L, ...]."""
        repeats = self.schedule.repeats
        tree = jax.tree.map(
            lambda a: a.reshape(repeats, self.count, -1, *a.shape[1:]), tree
        )
        return self.line.dealt(tree, repeats)

    def _by_layer(self, tree: Any) -> Any:
        """Undoes `_by_stage`."""
        tree = self.line.collected(tree, self.schedule.repeats)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[3:]), tree)

    def _by_unit(self, left: jax.Array) -> jax.Array:
        """Returns as [M, R, k, ...] what was left in all iterations, [..., k, ...]."""
        first = self.line.index * self.count
        of_stages = [
            self.schedule.by_unit(left[:, i], first + i) for i in range(self.count)
        ]
        return jnp.stack(of_stages, axis=2)


def at(tree: Any, *places: jax.Array) -> Any:
    """Returns `a[places]` of each array."""

    def cut(a: jax.Array) -> jax.Array:
        for place in places:
            a = lax.dynamic_index_in_dim(a, place, keepdims=False)
        return a

    return jax.tree.map(cut, tree)


@jax.custom_vjp
def _gradient_if(condition: jax.Array, tree: Any) -> Any:
    """Returns `tree`, whose gradient is 0 unless the condition holds, even if NaN."""
    return tree


def _gradient_if_backward(condition: jax.Array, grads: Any) -> tuple[None, Any]:
    def keep(grad: Any) -> Any:  # that of an integer has no numbers
        return grad if grad.dtype == float0 else jnp.where(condition, grad, 0)

    return None, jax.tree.map(keep, grads)


_gradient_if.defvjp(lambda condition, tree: (tree, condition), _gradient_if_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _for_each_microbatch(
    declared: StateDeclaration, count: int, value: jax.Array
) -> jax.Array:
    """Returns a copy of a state for each microbatch, [M, ...].

    The backward pass leaves one of its own for each of them, which become one by the
    rule that is declared.
    """
    return jnp.broadcast_to(value, (count, *value.shape))


def _forward(declared, count, value):
    return _for_each_microbatch(declared, count, value), value


def _backward(declared, count, value, left):
    return (declared.merged(value, left),)


_for_each_microbatch.defvjp(_forward, _backward)
