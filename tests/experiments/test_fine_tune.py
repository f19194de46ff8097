"""The run that trains a folder of Hugging Face on."""

import shutil

import pytest

from maxfdl import graph, hf
from maxfdl.errors import UserError
from tests import goldens


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "tekken.json"])
def test_a_tokenizer_in_another_format_is_refused_and_no_bytes_are_read(tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(goldens.FOLDER / "llama3", folder)
    (folder / name).write_bytes(b"\0")
    config = graph.resolve(f'experiments.fine_tune(hf="{folder}")')
    experiment = graph.build(config)
    with pytest.raises(UserError) as error:
        experiment.make_data(experiment.make_model()).train()
    assert str(error.value) == (
        f"HuggingFaceTokenizer.file [{folder}/tokenizer.json] must be the path of a"
        f" tokenizer.json, but there is no such file. Beside it lies {name}, which is"
        " not read here: transformers makes a tokenizer.json of it,"
        f" AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')."
    )
    assert hf.load(folder).model.network.vocab_size  # the weights alone are of use
