"""The flag `--json=FILE`, which `show` and `bench` share."""

import json
from collections.abc import Mapping
from typing import Any

from absl import flags

from maxfdl.errors import UserError
from maxfdl.paths import as_path

FLAGS = flags.FLAGS

if "json" not in FLAGS:
    flags.DEFINE_string("json", None, "Where to write the same figures, for tools.")


def write_if_asked(figures: Mapping[str, Any]) -> None:
    """Writes the figures if `--json` names a file.

    Raises:
      UserError: If it cannot be written.
    """
    if FLAGS.json is None:
        return
    try:
        text = json.dumps(figures, indent=2) + "\n"
        as_path(FLAGS.json).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--json={FLAGS.json} cannot be written ({error.strerror}); give a file in"
            " a directory that exists."
        ) from None
