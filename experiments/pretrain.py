"""A published model from random weights, by name: `maxfdl show --models` lists them."""

import fiddle as fdl

from fdl_configs import data, optimizers, runs
from fdl_configs.models.catalogue import MODELS
from fdl_configs.recipes import recipe
from maxfdl import graph
from maxfdl.data import HuggingFaceTokenizer, TrainedBpe
from maxfdl.errors import UserError, did_you_mean
from maxfdl.experiment import Experiment
from maxfdl.layers import nnx
from maxfdl.mutations import compute_dtype, remat, router_losses, selection_bias

_BPE_SIZE = 32_768  # a second of training per megabyte of sample, when a run begins


def experiment(model: str, tokenizer: str | None = None) -> fdl.Config[Experiment]:
    """Trains in bfloat16, on Python's own sources until a mutation names other text.

    Steps, batch, sequence length and learning rate are those of `fdl_configs.recipes`;
    the rule is AdamW with a cosine schedule that ends at a tenth of the peak. The
    backward pass computes activations again (`remat`), and experts are kept balanced.

    Args:
      model: Name in the catalogue.
      tokenizer: Path of a tokenizer.json; None trains a byte-pair encoding on the text.
    """
    if model not in MODELS:
        raise UserError(
            f"experiments.pretrain has no model {model!r}."
            f"{did_you_mean(model, MODELS)} maxfdl show --models lists them."
        )
    network = MODELS[model].make()
    positions = getattr(network, "position_embedding", None)
    found = recipe(model, positions.length if positions else None)
    text = data.python_source()
    text.tokenizer = _tokenizer(tokenizer, network.vocab_size)
    config = runs.pretrain(
        name=model,
        model=network,
        data=text,
        optimizer=optimizers.adamw(
            peak=found.peak, warmup_steps=min(found.warmup_steps, found.steps // 10)
        ),
        steps=found.steps,
        batch_size=found.batch_size,
        sequence_length=found.sequence_length,
    )
    config = remat(compute_dtype(config, dtype="bfloat16"), policy="full")
    return _with_even_experts(config)


def _with_even_experts(config: fdl.Config[Experiment]) -> fdl.Config[Experiment]:
    """Returns the run with what keeps experts balanced, if the model has any."""
    nodes = [node for _, node in graph.iterate(config.model)]
    routers = [node for node in nodes if fdl.get_callable(node) is nnx.Router]
    if not routers:
        return config
    if any(router.use_selection_bias for router in routers):
        # DeepSeek-AI 2024, https://arxiv.org/abs/2412.19437, section 4.2.
        config = router_losses(config, sequence_balance=1e-4)
        return selection_bias(config, rate=1e-3)
    # Fedus et al. 2021, https://arxiv.org/abs/2101.03961, section 2.2.
    return router_losses(config, batch_balance=1e-2)


def _tokenizer(file: str | None, vocab_size: int) -> fdl.Config:
    if file is not None:
        return fdl.Config(HuggingFaceTokenizer, file=file)
    return fdl.Config(TrainedBpe, vocab_size=min(vocab_size, _BPE_SIZE))
