"""Everything that knows Fiddle: select, change, check, name, show and save graphs.

Importing this package publishes the constructors of NNX classes to Fiddle, so import
it before making a graph of them.
"""

from maxfdl.graph.build import build
from maxfdl.graph.config_dict import to_config_dict
from maxfdl.graph.diff import as_fiddle_diff, diff
from maxfdl.graph.mutate import copy, swap, without_operational
from maxfdl.graph.override_file import overrides_from_file
from maxfdl.graph.overrides import set_tag, set_value, settable_paths
from maxfdl.graph.render import as_text
from maxfdl.graph.resolve import resolve
from maxfdl.graph.select import iterate, nodes_of
from maxfdl.graph.serialise import dump_json, load_json
from maxfdl.graph.summary import summary
from maxfdl.graph.tags import ComputeDType, ParamDType
from maxfdl.graph.validate import validate

__all__ = [
    "ComputeDType",
    "ParamDType",
    "as_fiddle_diff",
    "as_text",
    "build",
    "copy",
    "diff",
    "dump_json",
    "iterate",
    "load_json",
    "nodes_of",
    "overrides_from_file",
    "resolve",
    "set_tag",
    "set_value",
    "settable_paths",
    "summary",
    "swap",
    "to_config_dict",
    "validate",
    "without_operational",
]
