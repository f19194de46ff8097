"""What a run trains on, from the command line."""

import fiddle as fdl
import pytest

from maxfdl import graph
from maxfdl.data import FirstFit, KingJames, StandardLibrary, TrainedBpe
from maxfdl.errors import ConfigError, MutationError
from maxfdl.mutations import king_james, python_source, synthetic, text_files
from tests import tiny

LLAMA = "experiments.llama2_nnx"


@pytest.mark.parametrize(
    ("call", "files", "field"),
    [
        ('text_files(files="notes/*.txt")', ("notes/*.txt",), "text"),
        ("text_files(notes/*.txt)", ("notes/*.txt",), "text"),
        ("text_files(files=~/notes/**/*.txt)", ("~/notes/**/*.txt",), "text"),
        ('text_files(["a.txt","b.jsonl"])', ("a.txt", "b.jsonl"), "text"),
        ("text_files(files=('a.txt', 'b.txt'))", ("a.txt", "b.txt"), "text"),
        ("text_files(x.jsonl, field=body)", ("x.jsonl",), "body"),
        ("text_files(x.jsonl, body)", ("x.jsonl",), "body"),
    ],
)
def test_files_read_naturally_on_a_command_line(call, files, field):
    source = graph.build(graph.resolve(f"{LLAMA}+{call}").data.source)
    assert (source.files, source.field) == (files, field)


def test_a_text_run_keeps_its_tokenizer_its_packing_and_all_else():
    cfg = graph.resolve(LLAMA)
    cfg.data.tokenizer = fdl.Config(TrainedBpe, vocab_size=300)
    cfg.data.packing = fdl.Config(FirstFit)
    cfg.data.eval_fraction = 0.5
    out = text_files(cfg, files="a.txt")
    assert {line.split()[1] for line in graph.diff(cfg, out)} == {
        "maxfdl.data.sources.standard_library.StandardLibrary",
        "data.source.files",
    }


@pytest.mark.parametrize("name", [LLAMA, "experiments.maxtext_shape"])
def test_files_of_a_run_without_any_are_answered_with_the_mutation(name):
    with pytest.raises(ConfigError, match=r"The mutation text_files\(files=...\) sets"):
        graph.resolve(name, ["data.source.files=notes/*.txt"])


def test_one_file_where_a_list_is_wanted_is_told_so():
    with pytest.raises(ConfigError, match=r"Write \['b.txt'\] for a list of one"):
        graph.resolve(f"{LLAMA}+text_files(a.txt)", ["data.source.files=b.txt"])


def test_each_takes_the_place_of_the_others():
    cfg = graph.resolve(LLAMA)
    kinds = {king_james: KingJames, python_source: StandardLibrary}
    for mutation, source in kinds.items():
        for before in (cfg, synthetic(cfg), text_files(cfg, files="a.txt")):
            assert fdl.get_callable(mutation(before).data.source) is source
    assert python_source(king_james(cfg)) == cfg
    assert synthetic(text_files(tiny.experiment(), files="a.txt")) == tiny.experiment()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"files": ()}, r"files \(\(\)\) must name a file, such as"),
        ({"files": ""}, "must name a file"),
        ({"files": ("a.txt", "")}, "must name a file"),
        (
            {"files": "a.txt", "field": "b.TXT"},
            r"field \('b.TXT'\) is a file, .* as a list: text_files\(\['a.txt', 'b.TXT",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises(MutationError, match=message):
        text_files(tiny.experiment(), **arguments)
