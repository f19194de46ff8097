"""Leaves a mark when it is imported."""

import os

os.environ["MAXFDL_TOY_SIDE_EFFECT"] = "1"


class Innocent:
    pass
