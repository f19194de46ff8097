"""Published models by name."""

import fiddle as fdl
import pytest

from fdl_configs.models.catalogue import MODELS
from fdl_configs.recipes import recipe
from maxfdl import graph
from maxfdl.data import HuggingFaceTokenizer, TrainedBpe
from maxfdl.errors import UserError
from maxfdl.train.auxiliary import BatchBalance, SequenceBalance
from maxfdl.train.router import SelectionBias
from tests import golden


def line(name: str) -> str:
    found = recipe(name, 1024 if name.startswith("gpt2") else None)
    return (
        f"{name:<22} {found.steps:>8} steps of {found.batch_size:>5} x"
        f" {found.sequence_length:>4} tokens, peak {found.peak:.2g} after"
        f" {found.warmup_steps}"
    )


def test_the_recipes_are_the_golden_ones():
    golden.check("pretrain.recipes", "\n".join(map(line, MODELS)) + "\n")


@pytest.mark.parametrize("model", MODELS)
def test_every_model_of_the_catalogue_is_a_valid_run(model):
    cfg = graph.validate(graph.resolve(f"experiments.pretrain({model})"))
    assert cfg.name == model
    assert fdl.get_callable(cfg.model) is fdl.get_callable(MODELS[model].make())
    positions = getattr(cfg.model, "position_embedding", None)
    assert positions is None or cfg.sequence_length <= positions.length
    schedule = cfg.optimizer.schedule
    assert 0 < schedule.warmup_steps <= cfg.steps / 10


def test_the_numbers_of_llama_2_are_those_of_its_experiment():
    """Up to steps, which that rounds up."""
    ours = graph.resolve("experiments.pretrain(llama2_70b)")
    theirs = graph.resolve("experiments.llama2_nnx(70b)")
    for name in ("batch_size", "sequence_length", "optimizer"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.steps == pytest.approx(theirs.steps, rel=0.05)


def test_a_run_saves_and_loads():
    cfg = graph.resolve("experiments.pretrain(model=mixtral_8x7b)+to_linen")
    assert graph.load_json(graph.dump_json(cfg)) == cfg


@pytest.mark.parametrize(
    ("model", "terms", "updates"),
    [
        ("llama3_8b", set(), set()),
        ("mixtral_8x7b", {BatchBalance}, set()),
        ("glm4_5", {SequenceBalance}, {SelectionBias}),
        ("deepseek_v3_671b", {SequenceBalance}, {SelectionBias}),
    ],
)
def test_experts_are_kept_balanced(model, terms, updates):
    cfg = graph.resolve(f"experiments.pretrain({model})")
    assert {fdl.get_callable(term) for term in cfg.loss.auxiliary} == terms
    assert {fdl.get_callable(update) for update in cfg.trainer.updates} == updates


def test_text_keeps_the_tokenizer():
    text = "+text_files(notes/*.txt)"
    cfg = graph.resolve(f"experiments.pretrain(gpt3_52k){text}")
    assert graph.build(cfg.data.tokenizer) == TrainedBpe(vocab_size=1024)
    with_file = (
        f"experiments.pretrain(llama3_8b, tokenizer=models/x/tokenizer.json){text}"
    )
    tokenizer = graph.build(graph.resolve(with_file).data.tokenizer)
    assert tokenizer == HuggingFaceTokenizer(file="models/x/tokenizer.json")


def test_a_mistyped_model_is_one_sentence():
    with pytest.raises(UserError) as error:
        graph.resolve("experiments.pretrain(model=lama3_8b)")
    assert str(error.value).startswith(
        "experiments.pretrain has no model 'lama3_8b'. Did you mean 'llama3_8b' or"
    )
    assert str(error.value).endswith("maxfdl show --models lists them.")


def test_without_a_model_it_says_what_it_needs():
    with pytest.raises(UserError, match=r"experiments.pretrain needs model\."):
        graph.resolve("experiments.pretrain")
