"""Graphs of what MaxText's options describe.

The network is that of the family's config.json in MaxText's form: what MaxText keeps in
its weights is in ours, so that these stay bit for bit. See `maxfdl.tensors.maxtext`.
"""

import fiddle as fdl

from fdl_configs import data
from fdl_configs.families import family_of
from fdl_configs.maxtext_families import hugging_face
from fdl_configs.maxtext_forms import in_maxtext_form
from fdl_configs.maxtext_training import auxiliary, optimizer, updates
from fdl_configs.runs import pretrain
from maxfdl import graph
from maxfdl.experiment import Experiment
from maxfdl.tensors.hugging_face.config import normalised
from maxfdl.tensors.maxtext.folder import read_options
from maxfdl.tensors.maxtext.names import naming_of
from maxfdl.tensors.maxtext.options import Options, check_network
from maxfdl.tensors.maxtext.reading import Folder, folder_at

_RMS_EPSILON = 1e-6  # of the norms in Gemma's layers, whatever the options say


def fine_tuning(folder: str, options_file: str | None = None) -> fdl.Config[Experiment]:
    """Trains on from a checkpoint of MaxText, as MaxText would, on random tokens.

    The optimizer, its schedule and the loss are those of MaxText's options; give it
    data of your own. `init_from` begins with the weights; `resume_from` goes on with
    the optimizer's state and the step.

    Args:
      folder: The checkpoint, see `maxfdl.tensors.maxtext.folder`.
      options_file: MaxText's options in JSON or YAML, where there is no config.json
        beside the checkpoint.
    """
    given = None if options_file is None else read_options(options_file)
    found = folder_at(folder, given)
    run = experiment(found.options)
    run.init_from = str(found.path)
    run.model.param_dtype = found.stored_type
    return run


def experiment(options: Options) -> fdl.Config[Experiment]:
    """Trains what options describe, as they say."""
    run = pretrain(
        name=_name(options),
        model=network(options),
        data=data.synthetic(),
        optimizer=optimizer(options),
        steps=options["learning_rate_schedule_steps"],
        batch_size=options["global_batch_size_to_train_on"],
        sequence_length=options["max_target_length"],
    )
    run.model.dtype, run.model.param_dtype = options["dtype"], options["weight_dtype"]
    run.seed = options["init_weights_seed"]
    if options["z_loss_multiplier"]:
        run.loss.cross_entropy.z_loss = options["z_loss_multiplier"]
    if terms := auxiliary(options, run.model):
        run.loss.auxiliary = terms
    if changes := updates(options):
        run.trainer.updates = changes
    return run


def network(options: Options) -> fdl.Partial:
    """Returns the network that options describe, in MaxText's form.

    Raises:
      UserError: If there is no such network here.
    """
    model = in_maxtext_form(published_network(options), options)
    graph.validate(model)
    return model


def published_network(options: Options) -> fdl.Partial:
    """Returns the same network in the form of the family's published weights."""
    naming_of(options)  # says which decoders there are
    check_network(options)
    config = normalised(hugging_face(options), "MaxText's options")
    return family_of(config["model_type"]).from_hf(config)


def published(found: Folder) -> fdl.Partial:
    """Returns the network of a checkpoint in the form of published weights."""
    model = published_network(found.options)
    model.dtype, model.param_dtype = found.options["dtype"], found.stored_type
    return model


def _name(options: Options) -> str:
    known = options["model_name"] != "default"
    return options["model_name"] if known else options["decoder_block"]
