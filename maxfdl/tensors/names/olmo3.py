"""Tensor names of OLMo 3: those of OLMo 2."""

from maxfdl.tensors.names.olmo2 import ROWS
from maxfdl.tensors.table import NameTable

TABLE = NameTable(model_types=("olmo3",), rows=ROWS)
