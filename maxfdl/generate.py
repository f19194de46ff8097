"""Writes text: `python -m maxfdl.generate --hf=FOLDER --prompt="..."`.

Weights and tokenizer come from a model folder of Hugging Face (`--hf`), from a file of
llama.cpp (`--gguf`) or from a run (`--run_dir`, its newest checkpoint). The text comes
as it is made. A model that brings a chat template gets the prompt as a question,
unless `--nochat`. Flags that change a graph change the model before its weights are
read: `--fiddler=quantize_weights --fiddler=quantize_cache` stores both in int8.
"""

import sys
import time
from typing import Any

from absl import flags

from maxfdl import commandline
from maxfdl.errors import UserError
from maxfdl.paths import AnyPath, as_path, lexists

FLAGS = flags.FLAGS

if "run_dir" not in FLAGS:
    flags.DEFINE_string("run_dir", None, "Directory of a run.")
if "prompt" not in FLAGS:
    flags.DEFINE_string("hf", None, "Model folder of Hugging Face.")
    flags.DEFINE_string("gguf", None, "Llama in a file of llama.cpp.")
    flags.DEFINE_string("prompt", None, "Text to go on with, or a question.")
    flags.DEFINE_integer("max_new_tokens", 256, "Most to write.", lower_bound=1)
    flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest token each time.")
    flags.DEFINE_integer("top_k", None, "Draw from this many of the likeliest.")
    flags.DEFINE_float("top_p", None, "Draw from the likeliest of this sum.")
    flags.DEFINE_float("min_p", None, "Draw what is this likely beside the likeliest.")
    flags.DEFINE_integer("seed", 0, "Of what is drawn.")
    flags.DEFINE_bool("chat", None, "Whether to use the model's chat template.")
    flags.DEFINE_string("system", None, "What a chat is told before the question.")
if "allow_non_finite" not in FLAGS:
    flags.DEFINE_bool(
        "allow_non_finite", False, "Let weights pass that are NaN or infinite."
    )


def main(argv: list[str]) -> None:
    from maxfdl.run.runtime import start

    read = {"hf": _from_hugging_face, "gguf": _from_gguf, "run_dir": _from_run}
    paths = {name: str(FLAGS[name].value) for name in read if FLAGS[name].value}
    if len(paths) != 1 or FLAGS.prompt is None or FLAGS.fdl_config is not None:
        raise UserError(
            "give --prompt=TEXT and one of --hf=FOLDER, --gguf=FILE and --run_dir=DIR,"
            " and no other config."
        )
    start(compilation_cache=True)
    sampler = _sampler()
    ((source, path),) = paths.items()
    writer = read[source](as_path(path))
    _write(writer, sampler, _prompt(writer))


def _sampler() -> Any:
    from maxfdl.ops.sampling import Sampler

    sampler = Sampler(FLAGS.temperature, FLAGS.top_k, FLAGS.top_p, FLAGS.min_p)
    for problem in sampler.check_config(sampler):
        raise UserError(problem)
    return sampler


def _prompt(writer: Any) -> list[int]:
    """Returns the ids of the prompt, as a question if the model takes questions."""
    from maxfdl.data.tokenizers import check_ids

    use_template = FLAGS.chat
    if use_template is None:
        use_template = writer.template is not None
    tokens = _chat(writer) if use_template else _text(writer)
    check_ids(tokens, writer.tokenizer, writer.model.network.vocab_size)
    return tokens


def _text(writer: Any) -> list[int]:
    if FLAGS.system is not None:
        raise UserError("--system is for a chat; put it into --prompt instead.")
    tokens = writer.tokenizer.encode_text(FLAGS.prompt)
    if not tokens:
        raise UserError("--prompt is empty, and no token begins a text here.")
    return tokens


def _chat(writer: Any) -> list[int]:
    if writer.template is None:
        raise UserError("--chat needs a chat template, and this model brings none.")
    messages = [{"role": "user", "content": FLAGS.prompt}]
    if FLAGS.system is not None:
        messages.insert(0, {"role": "system", "content": FLAGS.system})
    tokens = writer.tokenizer.encode(writer.template.render(messages))
    if not tokens:
        raise UserError("the chat template makes an empty text; give --nochat.")
    return tokens


def _write(writer: Any, sampler: Any, tokens: list[int]) -> None:
    """Prints the continuation as it comes, and then how fast it came."""
    from maxfdl.inference import Generator
    from maxfdl.inference.text import TextStream

    generator = Generator(writer.model, sampler, writer.stop_tokens)
    text = TextStream(writer.tokenizer.decode)
    began, times = time.perf_counter(), []
    try:
        for (token,) in generator.stream(
            writer.variables,
            [tokens],
            max_new_tokens=FLAGS.max_new_tokens,
            seed=FLAGS.seed,
        ):
            times.append(time.perf_counter())
            if token not in writer.stop_tokens:
                print(text.push(int(token)), end="", flush=True)
    finally:
        print(text.rest(), flush=True)
        if times:
            print(
                f"prompt of {len(tokens)} tokens, first token after"
                f" {times[0] - began:.2f} s, then"
                f" {_rate(times, generator.run_length):.1f} tokens/s;"
                f" {_sizes(writer.variables, generator.cache_bytes)}",
                file=sys.stderr,
            )


def _sizes(variables: Any, cache_bytes: int) -> str:
    """Returns what weights and caches take, as they are stored."""
    import jax

    from maxfdl.sharding.room import size_text

    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    return f"weights {size_text(weights)}, caches {size_text(cache_bytes)}"


def _rate(times: list[float], run_length: int) -> float:
    """Returns tokens per second, without the first run where there are others.

    Decoding is compiled during that one.
    """
    first = run_length if len(times) > 2 * run_length else 0
    seconds = times[-1] - times[first]
    return (len(times) - 1 - first) / seconds if seconds else float("nan")


def _from_hugging_face(folder: AnyPath) -> Any:
    import jax

    from maxfdl import hf

    rows = hf.Folder(folder).config["vocab_size"]
    tokenizer = _tokenizer(folder, rows, missing="fetch it from the hub")
    # A CPU widens 16 bits in every product, which takes longer than reading 32.
    dtype = "float32" if jax.default_backend() == "cpu" else None
    allowed = FLAGS.allow_non_finite
    loaded = hf.load(
        folder,
        dtype=dtype,
        param_dtype=dtype,
        allow_non_finite=allowed,
        changed=commandline.changed_by_flags,
    )
    return _writer(loaded.model, loaded.variables, tokenizer)


def _from_gguf(file: AnyPath) -> Any:
    from maxfdl import gguf

    return _from_hugging_face(gguf.unpack(file))


def _from_run(folder: AnyPath) -> Any:
    from maxfdl.run.directory import TOKENIZER
    from maxfdl.saved_run import read_run

    run = read_run(folder, FLAGS.trust, FLAGS.allow_non_finite, one_by_one=True)
    run = run.changed(commandline.changed_by_flags)
    model = run.experiment.make_model()
    tokenizer = _tokenizer(
        folder / TOKENIZER,
        model.network.vocab_size,
        missing="a run on text writes it when it starts",
    )
    return _writer(model, run.variables, tokenizer)


def _tokenizer(folder: AnyPath, rows: int, missing: str) -> Any:
    """Returns the tokenizer of a folder, for a model with so many rows.

    Raises:
      UserError: If there is none, or it has ids that the model has no row for.
    """
    from maxfdl.data.tokenizers import HuggingFaceTokenizer

    file = folder / "tokenizer.json"
    if not lexists(file):
        raise UserError(f"{folder} holds no tokenizer.json; {missing}.")
    tokenizer = HuggingFaceTokenizer(str(file))
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"{file} has {tokenizer.vocab_size} ids, up to"
            f" {tokenizer.token(tokenizer.vocab_size - 1)!r}, but the model knows"
            f" {rows} only (vocab_size); use the tokenizer that belongs to the model."
        )
    return tokenizer


def _writer(model: Any, variables: Any, tokenizer: Any) -> Any:
    from maxfdl.inference.chat import ChatTemplate
    from maxfdl.inference.text import Writer

    rows = model.network.vocab_size
    return Writer(
        model=model,
        variables=variables,
        tokenizer=tokenizer,
        # A file may name ids that the model has no row for; they never come.
        stop_tokens=tuple(i for i in tokenizer.files.stop_tokens if i < rows),
        template=ChatTemplate.of_files(tokenizer.files),
    )


if __name__ == "__main__":
    commandline.run(main)
