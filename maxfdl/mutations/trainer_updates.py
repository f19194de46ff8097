"""How mutations set the updates of a trainer, and QK-clip in particular."""

import fiddle as fdl

from maxfdl.errors import MutationError
from maxfdl.graph import nodes_of
from maxfdl.graph.select import iterate
from maxfdl.layers.watch import WatchScores
from maxfdl.mutations.fields import put
from maxfdl.mutations.roles import is_attention, is_trainer
from maxfdl.mutations.scope import network_in
from maxfdl.train.qk_clip import QkClip
from maxfdl.train.updates import Update


def put_update(
    trainer: fdl.Buildable, kind: type[Update], node: fdl.Config | None
) -> None:
    """Sets the update of this kind, in place; None takes it out.

    They are listed by rank, then by name, so that mutations that set them commute.
    """
    others = [each for each in trainer.updates if _kind(each) is not kind]
    nodes = others + ([] if node is None else [node])
    nodes.sort(key=lambda each: (_kind(each).rank, _kind(each).name))
    put(trainer, "updates", nodes or None)


def _kind(node: fdl.Buildable) -> type[Update]:
    kind = fdl.get_callable(node)
    assert isinstance(kind, type) and issubclass(kind, Update)
    return kind


def put_qk_clip(cfg: fdl.Buildable, threshold: float) -> None:
    """Makes attention leave its scores and the trainer clip by them, in place.

    Raises:
      MutationError: If there is no trainer or no attention, or if norms of queries and
        keys would undo what the clip does to weights.
    """
    for node in nodes_of(network_in(cfg), is_attention):
        if getattr(node, "query_norm", None) or getattr(node, "key_norm", None):
            raise MutationError(
                "Attention has query_norm or key_norm, which undo what QK-clip does to"
                " weights and bound the scores by themselves; use use_muon."
            )
        node.watch = fdl.Config(WatchScores)
    for trainer in nodes_of(cfg, is_trainer):
        put_update(trainer, QkClip, fdl.Config(QkClip, threshold=threshold))


def take_out_qk_clip(cfg: fdl.Buildable) -> None:
    """Undoes `put_qk_clip`, in place; changes nothing where there is none."""
    for _, node in iterate(network_in(cfg)):
        if is_attention(node):
            put(node, "watch", None)
    for _, node in iterate(cfg):
        if is_trainer(node):
            put_update(node, QkClip, None)
