"""Predicates by which mutations select nodes, of either family."""

import fiddle as fdl

from maxfdl.experiment import Experiment
from maxfdl.graph.select import makes
from maxfdl.layers import linen, nnx
from maxfdl.ops.cross_entropy import CrossEntropy
from maxfdl.optim.optimizer import Optimizer
from maxfdl.train.loss import NextTokenLoss
from maxfdl.train.trainer import Trainer


def is_transformer(node: fdl.Buildable) -> bool:
    return makes(node, nnx.Transformer, linen.Transformer)


def is_of_nnx(node: fdl.Buildable) -> bool:
    return makes(node, nnx.Transformer)


def is_stack(node: fdl.Buildable) -> bool:
    return makes(node, nnx.Stack, linen.Stack)


def is_experiment(node: fdl.Buildable) -> bool:
    return makes(node, Experiment)


def is_attention(node: fdl.Buildable) -> bool:
    kinds = (family.Attention for family in (nnx, linen))
    latent = (family.LatentAttention for family in (nnx, linen))
    return makes(node, *kinds, *latent)


def is_linear(node: fdl.Buildable) -> bool:
    return makes(node, nnx.Linear, linen.Linear)


def is_trainer(node: fdl.Buildable) -> bool:
    return makes(node, Trainer)


def is_optimizer(node: fdl.Buildable) -> bool:
    return makes(node, Optimizer)


def is_loss(node: fdl.Buildable) -> bool:
    return makes(node, NextTokenLoss)


def is_cross_entropy(node: fdl.Buildable) -> bool:
    return makes(node, CrossEntropy)
