"""A Hugging Face model folder, trained further: `experiments.fine_tune(hf=FOLDER)`."""

import fiddle as fdl

from fdl_configs.hugging_face import fine_tuning
from maxfdl.experiment import Experiment


def experiment(hf: str) -> fdl.Config[Experiment]:
    """Trains the weights in the folder `hf`, on Python's own sources to begin with.

    Types, tokenizer and sequence length (up to 1024) are those of the folder. Takes
    1000 steps of 8 sequences at a peak of 2e-5, a tenth of what such models are
    pre-trained with.
    """
    return fine_tuning(hf)
