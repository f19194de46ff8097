"""The parts of a run that most experiments share."""

import fiddle as fdl

from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.experiment import Experiment
from maxfdl.graph.tags import ComputeDType, ParamDType
from maxfdl.model import NnxModel
from maxfdl.ops.cross_entropy import CrossEntropy
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.train.gradients import WholeBatch
from maxfdl.train.guard import SkipNonFinite
from maxfdl.train.loss import NextTokenLoss
from maxfdl.train.metrics import MetricWriter
from maxfdl.train.placement import Placement
from maxfdl.train.trainer import Trainer


def pretrain(
    *,
    name: str,
    model: fdl.Partial,
    data: fdl.Partial,
    optimizer: fdl.Partial,
    steps: int,
    batch_size: int,
    sequence_length: int,
) -> fdl.Config[Experiment]:
    """Next-token pre-training on all devices, checkpointed."""
    config = fdl.Config(
        Experiment,
        name=name,
        model=model,
        backend=fdl.Partial(NnxModel),
        data=data,
        loss=fdl.Config(NextTokenLoss, cross_entropy=fdl.Config(CrossEntropy)),
        optimizer=optimizer,
        mesh=fdl.Config(MeshShape, data=1, fsdp=-1, tensor=1),
        sharding=fdl.Config(AxisRules),
        trainer=fdl.Partial(
            Trainer,
            gradients=fdl.Config(WholeBatch),
            guard=fdl.Config(SkipNonFinite),
            placement=fdl.Config(Placement),
        ),
        checkpoint=fdl.Partial(Checkpointer),
        metrics=fdl.Partial(MetricWriter),
        seed=0,
        steps=steps,
        batch_size=batch_size,
        sequence_length=sequence_length,
    )
    fdl.add_tag(config.model, "dtype", ComputeDType)
    fdl.add_tag(config.model, "param_dtype", ParamDType)
    return config
