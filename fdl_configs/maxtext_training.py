"""How MaxText's options train: optimizer, schedule, and what keeps experts balanced."""

import re
from typing import Any

import fiddle as fdl

from fdl_configs import moe
from fdl_configs.hf_parts import layers_of
from maxfdl.errors import UserError
from maxfdl.optim.muon import CorrectedMuon
from maxfdl.optim.optimizer import Optimizer
from maxfdl.optim.schedules import (
    PeriodicCosine,
    StableDecayToLast,
    WarmupCosine,
    WarmupStableDecay,
)
from maxfdl.optim.transforms import Adam, AdamPax, ClipByGlobalNorm, Sgd, WeightDecay
from maxfdl.tensors.maxtext.names import OTHER_MATRICES, naming_of, rows_for
from maxfdl.tensors.maxtext.options import Options, check_training, only, version_of
from maxfdl.train.auxiliary import SequenceBalance
from maxfdl.train.router import SelectionBias


def optimizer(options: Options) -> fdl.Partial:
    """Returns MaxText's optimizer: clipping, rule, decay of all weights, schedule.

    Raises:
      UserError: If it is one that there is not here.
    """
    check_training(options)
    threshold = options["gradient_clipping_threshold"]
    clip = fdl.Config(ClipByGlobalNorm, max_norm=threshold) if threshold > 0 else None
    rule, decay = _rule(options), _decay(options)
    return fdl.Partial(
        Optimizer, clip=clip, rule=rule, weight_decay=decay, schedule=_schedule(options)
    )


def _rule(options: Options) -> fdl.Config:
    kind = options["opt_type"]
    adam = {
        "b1": options["adam_b1"],
        "b2": options["adam_b2"],
        "epsilon": options["adam_eps"],
    }
    match kind:
        case "adamw":
            return fdl.Config(Adam, **adam)
        case "adam_pax":
            return fdl.Config(AdamPax, **adam)
        case "sgd":
            return fdl.Config(Sgd)
        case "muon":
            _check_muon(options)
            rms = options["muon_consistent_rms"]
            rule = fdl.Config(
                CorrectedMuon,
                # Optax hands its own flag for Nesterov on to the Adam of the rest.
                rest=fdl.Config(Adam, **adam, nesterov=True),
                momentum=options["muon_beta"],
                scale="spectral" if rms is None else "rms",
            )
            if rms is not None:
                rule.rms = rms
            return rule
    raise UserError(
        f"MaxText's opt_type ({kind}) must be adamw, adam_pax, sgd or muon."
    )


def _check_muon(options: Options) -> None:
    block, fused = options["decoder_block"], options["fused_qkv"]
    if block in OTHER_MATRICES or fused:
        raise UserError(
            f"MaxText's opt_type (muon) must be another for decoder_block ({block})"
            f" with fused_qkv ({fused}): MaxText orthogonalises parts of its kernels"
            " there, and Muon here each kernel; to train on with another rule, change"
            " it in the file of MaxText's options."
        )


def _decay(options: Options) -> fdl.Config | None:
    if options["opt_type"] == "sgd":
        return None
    rate = options["adam_weight_decay"]
    decay = fdl.Config(WeightDecay, rate=rate, scale=1.0, bias=1.0)
    for role in _masked(options):
        setattr(decay, role, 0.0)
    if options["opt_type"] == "muon" and options["muon_weight_decay"] != rate:
        if not rate:
            raise UserError(
                "MaxText's muon_weight_decay"
                f" ({options['muon_weight_decay']}) must be 0 where adam_weight_decay"
                " is."
            )
        decay.matrix = options["muon_weight_decay"] / rate
    return decay


def _masked(options: Options) -> list[str]:
    """Returns the roles of parameters that MaxText's `adamw_mask` excludes from decay.

    Raises:
      UserError: If it excludes some parameters of a role and not others.
    """
    patterns = options["adamw_mask"]
    by_role: dict[str, set[bool]] = {}
    for row in rows_for(naming_of(options), options) if patterns else ():
        ours = row.ours if isinstance(row.ours, str) else row.ours[0]
        role = _ROLES.get(ours.rpartition("/")[2])
        has = not row.state and (options["attention_sink"] or "sinks" not in ours)
        if role is not None and has:
            found = any(re.search(each, f"params/{row.theirs}") for each in patterns)
            by_role.setdefault(role, set()).add(found)
    if any(len(found) > 1 for found in by_role.values()):
        raise UserError(
            f"MaxText's adamw_mask ({patterns}) must exclude all norms, all biases or"
            " all embeddings from decay: there are no shares of single parameters here."
        )
    return [role for role, found in by_role.items() if True in found]


_ROLES = {
    "kernel": "kernel",
    "table": "embedding",
    "scale": "scale",
    "bias": "bias",
    "scores": "bias",
}


def _schedule(options: Options) -> fdl.Config:
    steps = options["learning_rate_schedule_steps"]
    warmup = int(steps * options["warmup_steps_fraction"])
    shared = {
        "peak": options["learning_rate"],
        "warmup_steps": warmup,
        "final_fraction": options["learning_rate_final_fraction"],
    }
    if options["lr_schedule_type"] == "cosine":
        # MaxText reaches the end at its last step, not after it.
        fall = max(steps - warmup - 1, 1)
        return fdl.Config(PeriodicCosine, decay_steps=fall, **shared)
    only(options, "lr_schedule_type", "wsd")
    return fdl.Config(
        StableDecayToLast,
        decay_steps=max(int(steps * options["wsd_decay_steps_fraction"]), 1),
        shape=options["wsd_decay_style"],
        **shared,
    )


def auxiliary(options: Options, model: Any) -> list[fdl.Config]:
    """Returns the terms of the loss that balance experts."""
    weight = options["load_balance_loss_weight"]
    sparse = [layer for layer in layers_of(model) if moe.is_moe(layer)]
    if not weight or not sparse:
        return []
    # MaxText takes the mean over layers where we sum, and before 0.2.5 it did not
    # divide the counts by the number of experts that a token is sent to.
    coefficient = weight / len(sparse) * balance_factor(options)
    return [fdl.Config(SequenceBalance, coefficient=coefficient)]


def balance_factor(options: Options) -> float:
    """Returns how many times larger MaxText's load-balance loss is than ours."""
    old = version_of(options) < (0, 2, 5)
    return float(options["num_experts_per_tok"]) if old else 1.0


def updates(options: Options) -> list[fdl.Config]:
    """Returns what changes the router's biases after each step."""
    rate, decay = options["routed_bias_update_rate"], _decay_of_biases(options)
    if not options["routed_bias"] or not (rate or decay):
        return []
    update = fdl.Config(SelectionBias, rate=rate)
    if decay:
        update.decay = decay
    return [update]


def _decay_of_biases(options: Options) -> float:
    """Returns the decay of the biases by which DeepSeek's experts are chosen.

    To the Linen of MaxText before 0.2.5 they are parameters, and decay as such.
    """
    is_parameter = version_of(options) < (0, 2, 5) and not options["pure_nnx"]
    if options["decoder_block"] != "deepseek" or not is_parameter:
        return 0.0
    decay = _decay(options)
    masked = decay is None or "bias" in _masked(options)
    return 0.0 if masked else options["adam_weight_decay"]


def training_options(run: Any, maxtext: str) -> dict[str, Any]:
    """Returns the options of MaxText that train as an experiment does.

    Args:
      run: The graph of the experiment.
      maxtext: Version of the MaxText that is to go on.

    Raises:
      UserError: If MaxText has no such optimizer, schedule or loss.
    """
    written = {
        "maxtext": maxtext,
        "max_target_length": run.sequence_length,
        "global_batch_size_to_train_on": run.batch_size,
        "init_weights_seed": run.seed,
        **_optimizer_options(run.optimizer),
        **_schedule_options(run.optimizer.schedule, run.steps),
    }
    for change in run.trainer.__arguments__.get("updates", ()):
        if fdl.get_callable(change) is not SelectionBias:
            raise _nothing_like(fdl.get_callable(change).__name__)
        written["routed_bias_update_rate"] = change.rate
    written["z_loss_multiplier"] = run.loss.cross_entropy.z_loss
    sparse = [layer for layer in layers_of(run.model) if moe.is_moe(layer)]
    for term in run.loss.__arguments__.get("auxiliary", ()):
        if fdl.get_callable(term) is not SequenceBalance:
            raise _nothing_like(fdl.get_callable(term).__name__)
        k = sparse[0].mlp.router.routing.k
        known = {"maxtext": maxtext, "num_experts_per_tok": k}
        weight = term.coefficient * len(sparse) / balance_factor(known)
        written["load_balance_loss_weight"] = weight
    return written


def _optimizer_options(node: Any) -> dict[str, Any]:
    clip, decay = node.clip, node.weight_decay
    written: dict[str, Any] = {
        "gradient_clipping_threshold": clip.max_norm if clip else 0.0
    }
    rule = adam = node.rule
    kind: Any = fdl.get_callable(rule)
    if kind in (Adam, AdamPax):
        if getattr(rule, "nesterov", False):
            raise _nothing_like("Adam with nesterov")
        written["opt_type"] = "adamw" if kind is Adam else "adam_pax"
    elif kind is Sgd:
        return written | {"opt_type": "sgd"}
    elif kind is CorrectedMuon:
        adam = rule.rest
        written |= {
            "opt_type": "muon",
            "muon_beta": rule.momentum,
            "muon_consistent_rms": rule.rms if rule.scale == "rms" else None,
        }
    else:
        raise _nothing_like(kind.__name__)
    rate = decay.rate if decay else 0.0
    written |= {
        "adam_b1": adam.b1,
        "adam_b2": adam.b2,
        "adam_eps": adam.epsilon,
        "adam_weight_decay": rate,
        "adamw_mask": _mask(decay) if decay else [],
    }
    if kind is CorrectedMuon:
        share = decay.matrix if decay and decay.matrix is not None else 1.0
        written["muon_weight_decay"] = rate * share
    return written


_MASKS = {"scale": "scale$", "bias": "(bias|sinks)$", "embedding": "embedding$"}
"""Patterns of MaxText's paths of the parameters of a role."""


def _mask(decay: Any) -> list[str]:
    """Returns the patterns of parameters that do not decay."""
    shares = {role: getattr(decay, role) for role in (*_MASKS, "kernel")}
    if shares.pop("kernel") != 1.0 or not set(shares.values()) <= {0.0, 1.0}:
        raise _nothing_like(f"WeightDecay with shares {shares}")
    return [_MASKS[role] for role, share in shares.items() if not share]


def _schedule_options(schedule: Any, steps: int) -> dict[str, Any]:
    kind: Any = fdl.get_callable(schedule)
    warmup = schedule.warmup_steps
    if issubclass(kind, WarmupCosine):
        # Ours ends after the last step of the decay, MaxText's at its own last.
        total = warmup + (schedule.decay_steps or max(steps - warmup, 1)) + 1
        shape = {"lr_schedule_type": "cosine"}
    elif issubclass(kind, WarmupStableDecay) and schedule.shape != "one_minus_sqrt":
        later = 0 if kind is StableDecayToLast else 1
        total, decay = steps + later, schedule.decay_steps + later
        shape = {
            "lr_schedule_type": "wsd",
            "wsd_decay_style": schedule.shape,
            "wsd_decay_steps_fraction": _fraction(decay, total),
        }
    else:
        raise _nothing_like(kind.__name__)
    return {
        **shape,
        "learning_rate": schedule.peak,
        "learning_rate_final_fraction": schedule.final_fraction,
        "warmup_steps_fraction": _fraction(warmup, total),
        "learning_rate_schedule_steps": total,
        "steps": total,
    }


def _fraction(steps: int, total: int) -> float:
    """Returns the share of `total` that MaxText rounds down to `steps`."""
    return (steps + 0.5) / total if steps else 0.0


def _nothing_like(what: str) -> UserError:
    return UserError(
        f"MaxText has nothing like {what} of this experiment; save the parameters"
        " alone, without state."
    )
