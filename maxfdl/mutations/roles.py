"""Predicates by which mutations select nodes, of either family."""

import fiddle as fdl

from maxfdl.experiment import Experiment
from maxfdl.layers import linen, nnx
from maxfdl.ops.cross_entropy import CrossEntropy
from maxfdl.optim.optimizer import Optimizer
from maxfdl.train.loss import NextTokenLoss
from maxfdl.train.trainer import Trainer


def is_transformer(node: fdl.Buildable) -> bool:
    return _is_one_of(node, nnx.Transformer, linen.Transformer)


def is_of_nnx(node: fdl.Buildable) -> bool:
    return _is_one_of(node, nnx.Transformer)


def is_stack(node: fdl.Buildable) -> bool:
    return _is_one_of(node, nnx.Stack, linen.Stack)


def is_experiment(node: fdl.Buildable) -> bool:
    return _is_one_of(node, Experiment)


def is_attention(node: fdl.Buildable) -> bool:
    kinds = (family.Attention for family in (nnx, linen))
    latent = (family.LatentAttention for family in (nnx, linen))
    return _is_one_of(node, *kinds, *latent)


def is_linear(node: fdl.Buildable) -> bool:
    return _is_one_of(node, nnx.Linear, linen.Linear)


def is_trainer(node: fdl.Buildable) -> bool:
    return _is_one_of(node, Trainer)


def is_optimizer(node: fdl.Buildable) -> bool:
    return _is_one_of(node, Optimizer)


def is_loss(node: fdl.Buildable) -> bool:
    return _is_one_of(node, NextTokenLoss)


def is_cross_entropy(node: fdl.Buildable) -> bool:
    return _is_one_of(node, CrossEntropy)


def _is_one_of(node: fdl.Buildable, *classes: type) -> bool:
    made = fdl.get_callable(node)
    return isinstance(made, type) and issubclass(made, classes)
