"""Sources of text: sequences of documents that are read when they are asked for."""

from maxfdl.data.sources.files import Files
from maxfdl.data.sources.king_james import KingJames
from maxfdl.data.sources.source import Source
from maxfdl.data.sources.standard_library import StandardLibrary

__all__ = ["Files", "KingJames", "Source", "StandardLibrary"]
