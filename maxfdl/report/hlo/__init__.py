"""Reads the text of compiled programs (HLO): FLOPs, collectives and bytes moved."""

from maxfdl.report.hlo.crossing import crossing, factors, is_independent, results
from maxfdl.report.hlo.groups import Groups, axes_of, crosses
from maxfdl.report.hlo.program import Collective, Program, read

__all__ = [
    "Collective",
    "Groups",
    "Program",
    "axes_of",
    "crosses",
    "crossing",
    "factors",
    "is_independent",
    "read",
    "results",
]
