"""Lets toy graphs be named as users name theirs: by a package on the path."""

import pathlib
import sys

ROOT = str(pathlib.Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
