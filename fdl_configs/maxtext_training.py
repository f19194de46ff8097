"""How MaxText's options train: optimizer, schedule, and what keeps experts balanced."""

from typing import Any

import fiddle as fdl

from fdl_configs import moe
from fdl_configs.hf_parts import layers_of
from maxfdl.errors import UserError
from maxfdl.optim.muon import CorrectedMuon
from maxfdl.optim.optimizer import Optimizer
from maxfdl.optim.schedules import PeriodicCosine, WarmupStableDecay
from maxfdl.optim.transforms import Adam, AdamPax, ClipByGlobalNorm, Sgd, WeightDecay
from maxfdl.tensors.maxtext.options import Options, only
from maxfdl.train.auxiliary import SequenceBalance
from maxfdl.train.router import SelectionBias


def optimizer(options: Options) -> fdl.Partial:
    """Returns MaxText's optimizer: clipping, rule, decay of all weights, schedule.

    Raises:
      UserError: If it is one that there is not here.
    """
    only(options, "adam_eps_root", 0.0)
    only(options, "adamw_mask", [])
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


def _decay(options: Options) -> fdl.Config | None:
    if options["opt_type"] == "sgd":
        return None
    rate = options["adam_weight_decay"]
    decay = fdl.Config(WeightDecay, rate=rate, scale=1.0, bias=1.0)
    if options["opt_type"] == "muon" and options["muon_weight_decay"] != rate:
        if not rate:
            raise UserError(
                "MaxText's muon_weight_decay"
                f" ({options['muon_weight_decay']}) must be 0 where adam_weight_decay"
                " is."
            )
        decay.matrix = options["muon_weight_decay"] / rate
    return decay


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
        WarmupStableDecay,
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
    old = _version(options["maxtext"]) < (0, 2, 5)
    return float(options["num_experts_per_tok"]) if old else 1.0


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


def updates(options: Options) -> list[fdl.Config]:
    """Returns what changes the router's biases after each step."""
    rate = options["routed_bias_update_rate"]
    if not (options["routed_bias"] and rate):
        return []
    return [fdl.Config(SelectionBias, rate=rate)]
