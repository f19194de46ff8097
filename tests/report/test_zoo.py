"""The table of published models."""

import pytest

from maxfdl.report import zoo
from maxfdl.report.zoo import LENGTH, Row


def test_a_row_says_what_a_model_takes():
    features, layers, vocab_size = 4096, 32, 32000
    row = zoo.row_of("llama2_7b")
    embedding, norms = vocab_size * features, (2 * layers + 1) * features
    products = row.parameters - embedding - norms
    # Scores and mixing are 2 D each for every token seen, which are half of all.
    attention = layers * 2 * LENGTH * features
    assert row.flops_per_token == pytest.approx(3 * (2 * products + attention))
    assert row.family == "llama"
    assert row.source == "meta-llama/Llama-2-7b-hf"
    assert row.parameters == row.published == 6_738_415_616
    assert row.bfloat16_bytes == 2 * 6_738_415_616


def test_a_tied_head_counts_its_products():
    row = zoo.row_of("gpt3_52k")
    length = 2048  # of its learned positions
    products = 1024 * 16 + 4 * 16 * 16 + 2 * 16 * 64
    attention = 2 * length * 16
    assert row.flops_per_token == pytest.approx(3 * (2 * products + attention))
    assert row.published == "52K"


def test_the_table_has_a_line_for_each_row():
    row = Row("llama2_7b", "llama", 12_345, "12K", "somebody", 6.5e10, 2048)
    head, line, foot = zoo.lines(iter([row]))
    assert head.split()[:2] == ["model", "family"]
    columns = ["llama2_7b", "llama", "12,345", "12K", "6.5e+10", "2.0", "KiB"]
    assert line.split() == columns
    assert f"{LENGTH:,} tokens" in foot
