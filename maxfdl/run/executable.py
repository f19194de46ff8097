"""The compiled step in a file, so that a run need not compile it.

A file is one line of JSON, which says what the step was compiled for, and the
executable of JAX. To load one is to run its code: load your own files only.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.sharding import Mesh

from maxfdl.bucket import BucketPath
from maxfdl.errors import UserError
from maxfdl.paths import AnyPath, as_path
from maxfdl.run.processes.same_run import software
from maxfdl.train.program import CompiledStep, Program

_FORMAT = "compiled step of maxfdl, 1"


@dataclasses.dataclass(frozen=True)
class Executable:
    """A compiled step from a file.

    Args:
      path: Of the file.
      graph_json: The graph that it is of.
      made_for: Devices and software that it needs, by what a person calls them.
      content: The executable, serialised.
    """

    path: AnyPath
    graph_json: str
    made_for: dict[str, Any]
    content: bytes

    @staticmethod
    def read(path: str | os.PathLike[str]) -> "Executable":
        """Reads a file that `write` has written.

        Raises:
          UserError: If it cannot be read, is something else, or is damaged.
        """
        path = as_path(path)
        try:
            head, _, content = path.read_bytes().partition(b"\n")
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}); give the file that"
                " maxfdl.aot wrote with --executable."
            ) from None
        about: Any = None
        with contextlib.suppress(ValueError):
            about = json.loads(head)
        if not isinstance(about, dict) or about.get("format") != _FORMAT:
            raise UserError(
                f"{path} is no compiled step of this version of maxfdl; write one with"
                " python -m maxfdl.aot EXPRESSION --executable=FILE."
            )
        if about["sha256"] != hashlib.sha256(content).hexdigest():
            raise UserError(
                f"{path} is damaged: its content is not what was written; copy it"
                " again, or write it again with maxfdl.aot."
            )
        return Executable(path, about["graph"], about["made_for"], content)

    def check(self, mesh: Mesh) -> None:
        """Raises UserError unless devices and software are those it was made for."""
        here = _needs(mesh)
        lines = [
            f"  {name}: {self.made_for.get(name)} in the file, {here.get(name)} here"
            for name in dict.fromkeys([*self.made_for, *here])
            if self.made_for.get(name) != here.get(name)
        ]
        if lines:
            raise UserError(
                f"{self.path} was compiled for something else; compile again with"
                " maxfdl.aot, or leave --compiled out:\n" + "\n".join(lines)
            )
        if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
            # XLA:CPU does not store the order of collectives, see `runtime.start`.
            raise UserError(
                f"{self.path} is for {mesh.size} CPU devices, which would wait for each"
                " other for ever in a step from a file; leave --compiled out."
            )

    def load(self, program: Program) -> CompiledStep:
        """Returns the step, to run on the devices of a program.

        Raises:
          UserError: If the runtime refuses it.
        """
        devices = [*program.sharding.mesh.devices.flat]
        executable, in_tree, out_tree = pickle.loads(self.content)
        try:
            run = serialize_executable.deserialize_and_load(
                executable,
                in_tree,
                out_tree,
                backend=devices[0].client,
                execution_devices=devices,
            )
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(
                f"{self.path} cannot run here ({reason}); compile it again with the"
                " versions of jaxlib and libtpu of this machine, or leave --compiled"
                " out."
            ) from error
        return CompiledStep(run, trace_seconds=0.0, compile_seconds=0.0)


def check_place(path: str | os.PathLike[str]) -> None:
    """Raises UserError unless a file can be written there, before it is compiled."""
    where = as_path(path).absolute()
    if isinstance(where, BucketPath):
        return
    folder = where.parent
    if where.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(
            f"--executable={path} cannot be written; give a file in a directory that"
            " exists and that you may write to."
        )


def write(
    path: str | os.PathLike[str], step: CompiledStep, program: Program, graph_json: str
) -> None:
    """Writes a compiled step; one that is there is replaced.

    Raises:
      UserError: If it cannot be written.
    """
    content = pickle.dumps(serialize_executable.serialize(step.run))
    about = {
        "format": _FORMAT,
        "made_for": _needs(program.sharding.mesh),
        "graph": graph_json,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    try:
        as_path(path).write_bytes(json.dumps(about).encode() + b"\n" + content)
    except OSError as error:
        raise UserError(
            f"--executable={path} cannot be written ({error.strerror}); give a file in"
            " a directory that exists."
        ) from None


def _needs(mesh: Mesh) -> dict[str, Any]:
    """Returns what must be the same where a step is compiled and where it runs."""
    device = mesh.devices.flat[0]
    return {
        "device": device.device_kind,
        "mesh": dict(mesh.shape),
        **software(),
    }
