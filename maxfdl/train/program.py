"""The compiled functions of a run, made before its loop starts."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maxfdl.ops.cost import count_flops, count_written
from maxfdl.ops.target import tracing_for
from maxfdl.sharding.room import check_room
from maxfdl.sharding.sharding import Sharding
from maxfdl.train.compiler_options import compiler_options
from maxfdl.train.trainer import Shapes, State, Trainer


@dataclasses.dataclass(frozen=True)
class Program:
    """A trainer on a mesh, for batches of one shape.

    The step is compiled ahead, takes plain dicts of arrays and donates the state, so
    that calling it costs the host some tens of microseconds.
    """

    trainer: Trainer
    batch_size: int
    sequence_length: int

    @property
    def sharding(self) -> Sharding:
        return self.trainer.sharding

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes, types and places of what model and loss read of a batch."""
        return {
            name: jax.ShapeDtypeStruct(
                field.shape(self.batch_size, self.sequence_length),
                jnp.dtype(field.dtype),
                sharding=self.sharding.named(field.axes),
            )
            for name, field in self.trainer.batch_fields.items()
        }

    def abstract_state(self) -> State:
        """Returns shapes, types and places of the state, without allocating it."""
        return self._abstract_state

    @functools.cached_property
    def _abstract_state(self) -> State:
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=place
            ),
            jax.eval_shape(self.trainer.init),
            self._state_shardings,
        )

    @functools.cached_property
    def _state_shardings(self) -> State:
        return self.trainer.state_shardings()

    def as_saved(self, saved: Shapes) -> State:
        """Returns the abstract state as a checkpoint of this run holds it."""
        return self.trainer.as_saved(self.abstract_state(), saved)

    def resumed(self, state: State) -> State:
        """Returns the state to go on with, from one that looks like `as_saved`."""
        shapes = [jax.tree.map(jnp.shape, x) for x in (state, self.abstract_state())]
        if shapes[0] == shapes[1]:
            return state
        places = self._state_shardings
        return jax.jit(self.trainer.resumed, out_shardings=places)(state)

    def check_memory(self) -> None:
        """Refuses a run whose state and batch cannot be in memory.

        Raises:
          UserError: Saying what is needed at least, and what there is.
        """
        check_room((self.abstract_state(), self.abstract_batch()), "a run needs")

    def init(self) -> State:
        """Returns the initial state; each shard is drawn on its own device."""
        init = jax.jit(
            self.trainer.init,
            out_shardings=self._state_shardings,
            compiler_options=self._quick_to_compile(),
        )
        return init()

    def start_from(self, variables: Mapping[str, Any]) -> State:
        """Returns the initial state with these variables, whose buffers it donates."""
        start = jax.jit(
            self.trainer.start_from,
            out_shardings=self._state_shardings,
            donate_argnums=0,
        )
        places = {name: self._state_shardings[name] for name in variables}
        return start(jax.device_put(dict(variables), places))

    def _quick_to_compile(self) -> dict[str, int]:
        """Returns options for programs that run once.

        On a CPU, the bits of random numbers take seconds to compile.

        The bits are the same; compiling takes a third (BUILD_NOTES.md, 2026-11-22).
        """
        on_cpu = self.sharding.mesh.devices.flat[0].platform == "cpu"
        return {"xla_backend_optimization_level": 1} if on_cpu else {}

    def compile_step(self) -> "CompiledStep":
        return self.compile_in_place(self.trainer.step)

    def compile_in_place(self, step: Callable) -> "CompiledStep":
        """Compiles a function like the trainer's step, which overwrites the state."""
        shardings = (self._state_shardings, None)
        step = jax.jit(step, donate_argnums=0, out_shardings=shardings)
        started = time.perf_counter()
        with tracing_for(self.sharding.mesh.devices.flat[0].platform):
            lowered = step.lower(self.abstract_state(), self.abstract_batch())
        traced = time.perf_counter()
        options = compiler_options(self.sharding.mesh)
        compiled = lowered.compile(compiler_options=options)
        return CompiledStep(compiled, traced - started, time.perf_counter() - traced)

    def compile_evaluation(self) -> Callable:
        evaluate = jax.jit(
            self.trainer.evaluate,
            out_shardings=self.sharding.named(()),  # for every process to read
            compiler_options=self._quick_to_compile(),
        )
        state = self.abstract_state()
        variables = {name: state[name] for name in ("params", "state")}
        return evaluate.lower(variables, self.abstract_batch()).compile()

    def evaluated(self, state: State) -> State:
        """Returns the variables to evaluate, sample and export, sharded as the
        evaluation needs them. They may be arrays of `state` itself."""
        parts = {name: state[name] for name in self.trainer.evaluated_from}
        return parts if parts.keys() == {"params", "state"} else self._evaluated(parts)

    @functools.cached_property
    def _evaluated(self) -> Callable[[State], State]:
        places = {name: self._state_shardings[name] for name in ("params", "state")}
        return jax.jit(self.trainer.evaluated, out_shardings=places)

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts this process's rows of the fields that the step reads onto the mesh."""
        wanted = self.abstract_batch()
        rows = {name: batch[name] for name in wanted}
        places = {name: each.sharding for name, each in wanted.items()}
        if jax.process_count() == 1:
            return jax.device_put(rows, places)
        shares = self.sharding.shares_of_rows()

        def part(name: str, index: Any) -> np.ndarray:
            rows_here = shares.local(index[0], self.batch_size)
            return rows[name][(rows_here, *index[1:])]

        return {
            name: jax.make_array_from_callback(
                each.shape, each.sharding, functools.partial(part, name)
            )
            for name, each in wanted.items()
        }

    def model_flops(self) -> int:
        """Returns the FLOPs of one step: three times those of the forward pass.

        Neither recomputation nor bubbles of a pipeline are counted, so that FLOPs over
        time are model FLOP/s. Frozen parameters count as if they were trained.
        """
        variables = self.abstract_state()
        return 3 * count_flops(self.trainer.evaluate, variables, self.abstract_batch())

    def written_flops(self) -> int:
        """Returns the FLOPs of all products that one step is written with.

        Recomputation counts. What XLA computes beyond it, it has added.
        """
        with tracing_for(self.sharding.mesh.devices.flat[0].platform):
            return count_written(
                self.trainer.step, self.abstract_state(), self.abstract_batch()
            )


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """The executable of one step, with what it took to make it."""

    run: Any  # jax.stages.Compiled: (state, batch) -> (state, metrics)
    trace_seconds: float
    compile_seconds: float

    def peak_bytes(self) -> int:
        """Returns the memory of the step on each device, as the compiler planned it."""
        memory = self.run.memory_analysis()
        return (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
