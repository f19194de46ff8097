"""Experiment: the root of the graph, which puts the parts together."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar

import jax

from maxfdl.batch import MODEL_INPUTS, check_fields
from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.checkpoint.emergency import Emergency
from maxfdl.data import Data
from maxfdl.layers.frozen import trained
from maxfdl.markers import Operational
from maxfdl.model import Model, Network
from maxfdl.optim.optimizer import Optimizer
from maxfdl.sharding.mesh import REPLICA, MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding
from maxfdl.sharding.shares import Shares
from maxfdl.train.loss import Loss
from maxfdl.train.metrics import MetricWriter
from maxfdl.train.ramp_up import BatchRampUp, RampedBatches
from maxfdl.train.trainer import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: what is trained, on what, how, and where it leaves its results.

    Args:
      name: Names the run directory, `runs/<name>`, unless `--run_dir` does.
      model: The network, of the family that `backend` speaks.
      backend: Makes pure functions of the network.
      data: Text or synthetic tokens.
      loss: What is minimised. It needs fields of a batch that the data must give.
      optimizer: How parameters follow gradients.
      mesh: Shape of the device mesh.
      sharding: Which mesh axes cut which dims.
      trainer: The step, and the rhythm of the loop.
      checkpoint: What is saved when; None saves nothing.
      emergency: What is saved in between on the disks of the machines, to be gone on
        from after a failure; None saves nothing.
      metrics: Where metrics go.
      init_from: Whose weights step 0 has: a model folder of Hugging Face, a checkpoint
        of MaxText or Paxml, or the directory of a run with this network. None draws
        them from `seed`.
      resume_from: A checkpoint of MaxText or Paxml whose weights, moments and step the
        run goes on with, instead of `init_from`. The data begins at its beginning.
      seed: Of weights, dropout and the order of documents.
      steps: Optimizer steps of the whole run. A run may go on with another number: as
        it is where the learning rate of the steps taken does not depend on it, else if
        `--extend` asks for that.
      batch_size: Sequences in the global batch of one step.
      ramp_up: Smaller batches to begin with; None has whole ones from the start.
      sequence_length: Tokens in a sequence.
      hang_seconds: How long a step may take before the stacks of all threads are
        printed; after twice that the process ends. None: as long as it likes.
    """

    holds_all: ClassVar[bool] = True
    """Parts may ask for something in other parts by `check_in(node, root)`."""

    name: Annotated[str, Operational]
    model: Callable[..., Network]
    backend: Callable[..., Model]
    data: Callable[..., Data]
    loss: Loss
    optimizer: Callable[..., Optimizer]
    mesh: Annotated[MeshShape, Operational]
    sharding: Annotated[AxisRules, Operational]
    trainer: Callable[..., Trainer]
    checkpoint: Callable[..., Checkpointer] | None
    emergency: Annotated[Emergency | None, Operational] = None
    metrics: Annotated[Callable[..., MetricWriter], Operational]
    init_from: str | None = None
    resume_from: str | None = None
    seed: int = 0
    steps: Annotated[int, Operational]
    batch_size: int
    ramp_up: BatchRampUp | None = None
    sequence_length: int
    hang_seconds: Annotated[float | None, Operational] = 1800.0

    @staticmethod
    def check_config(node):
        if not re.fullmatch(r"\w[\w.+-]*", node.name):
            yield (
                f"Experiment name ({node.name!r}) must be letters, digits and '_.+-',"
                " for it names the run directory."
            )
        for field in ("steps", "batch_size", "sequence_length"):
            value = getattr(node, field)
            if value < 1:
                yield f"Experiment {field} ({value}) must be positive."
            elif value >= 2**31:
                yield f"Experiment {field} ({value}) must be below 2**31."
        if node.hang_seconds is not None and not node.hang_seconds > 0:
            yield f"Experiment hang_seconds ({node.hang_seconds}) must be positive."
        if not -(2**63) <= node.seed < 2**63:
            yield f"Experiment seed ({node.seed}) must fit into 64 bits."
        table = getattr(node.model, "position_embedding", None)
        learned = getattr(table, "length", node.sequence_length)
        if node.sequence_length > learned:
            yield (
                f"Experiment sequence_length ({node.sequence_length}) must be at most"
                f" model.position_embedding.length ({learned}): there is no vector for"
                " a later position."
            )
        ahead = getattr(node.model, "later_tokens", 0)
        has_loss = getattr(node.loss, "later_tokens", None) is not None
        if bool(ahead) != has_loss:
            yield (
                f"Experiment model.later_tokens ({ahead}) and loss.later_tokens"
                f" ({'set' if has_loss else 'None'}) must come together:"
                " multi_token_prediction(depth=) sets or drops both."
            )
        if ahead >= node.sequence_length:
            yield (
                f"Experiment model.later_tokens ({ahead}) must be below"
                f" sequence_length ({node.sequence_length})."
            )

    def __post_init__(self):
        data, loss = self.data.func, type(self.loss)
        needed = {**MODEL_INPUTS, **self.loss.fields}
        check_fields(data.fields, needed, data.__name__, loss.__name__)

    def notes(self) -> Iterator[str]:
        """Yields sentences on what a user may not expect of this run."""
        yield from self.loss.notes(self.trainer.keywords["gradients"].steps)

    def make_sharding(self, devices: Sequence[jax.Device] | None = None) -> Sharding:
        """Returns the rules on the mesh over `devices` (default: all).

        Raises:
          UserError: If the devices do not fill the mesh, or the mesh does not cut the
            batch evenly.
        """
        sharding = Sharding(self.mesh.build(devices), self.sharding)
        self.check_rows(sharding)
        return sharding

    def check_rows(self, sharding: Sharding) -> None:
        """Raises a UserError unless the mesh cuts the smallest batch evenly."""
        rows, name = self.batch_size_at(1), "batch_size"
        if self.ramp_up is not None:
            name = "ramp_up.start"
        replicas = self.trainer.keywords.get("num_replicas", 1)
        if replicas > 1:
            rows, name = rows // replicas, f"{name} / num_replicas"
            sharding = dataclasses.replace(sharding, alone=(REPLICA,))
        parts = self.trainer.keywords["gradients"].steps
        if parts > 1:
            rows, name = rows // parts, f"{name} / gradients.steps"
        shape = rows, self.sequence_length
        for dims in (("batch", "sequence"), ("batch", "residual")):
            sharding.check(f"{name}, sequence_length", shape, dims)
        self.make_model().check_rows(rows, sharding)

    def batch_size_at(self, step: int) -> int:
        """Returns the sequences in the global batch of `step`, counted from 1."""
        if self.ramp_up is None:
            return self.batch_size
        return self.ramp_up.size(step, self.batch_size)

    def tokens_before(self, step: int) -> int:
        """Returns how many places for tokens all batches before `step` had."""
        whole, small = step - 1, 0
        if self.ramp_up is not None:
            small = min(whole, self.ramp_up.steps)
        early = sum(self.batch_size_at(i + 1) for i in range(small))
        return (early + (whole - small) * self.batch_size) * self.sequence_length

    def make_model(self, sharding: Sharding | None = None) -> Model:
        return self.backend(module=self.model, sharding=sharding)

    def make_trainer(self, sharding: Sharding) -> Trainer:
        model = self.make_model(sharding if sharding.mesh.size > 1 else None)
        parameters = trained(model.parameters())
        optimizer = self.optimizer(
            parameters=parameters, steps=self.steps, seed=self.seed
        )
        return self.trainer(
            model=model,
            loss=self.loss,
            optimizer=optimizer,
            sharding=sharding,
            seed=self.seed,
        )

    def make_batches(self, data: Data) -> Any:
        """Returns the batches of all steps, in the sizes that are due."""
        batches = data.train()
        if self.ramp_up is None:
            return batches
        return RampedBatches(
            batches, lambda step: self.batch_size // self.batch_size_at(step)
        )

    def make_data(self, model: Model) -> Data:
        """Returns the share of the data that this process feeds to its devices.

        Raises:
          UserError: If the model has no room for the tokenizer's ids, among others.
        """
        sharding = model.sharding
        shares = Shares((0,), 1) if sharding is None else sharding.shares_of_rows()
        return self.data(
            batch_size=self.batch_size,
            sequence_length=self.sequence_length,
            seed=self.seed,
            process_index=shares.here,
            process_count=shares.count,
            vocab_size=model.network.vocab_size,
        )
