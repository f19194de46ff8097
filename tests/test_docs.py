"""What docs/ names exists."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
PATH = re.compile(r"`((?:maxfdl|fdl_configs|tests|experiments)/[\w/.]*)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_path_that_a_page_names_exists(page):
    named = PATH.findall(page.read_text())
    assert named and not [path for path in named if not (ROOT / path).exists()]


def test_every_part_of_the_library_is_drawn():
    page = (ROOT / "docs/architecture.md").read_text()
    packages = {path.parent.name for path in (ROOT / "maxfdl").glob("*/__init__.py")}
    assert not [name for name in packages - SMALL if name not in page]


SMALL = {"gguf", "report"}
