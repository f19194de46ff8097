"""What `--fdl_help` shows."""

from maxfdl.graph.listing import listing
from tests import golden
from tests.graph.toys import PACKAGE


def test_experiments_and_mutations_are_the_golden_ones():
    golden.check("fdl_help.listing", listing() + "\n")


def test_every_line_fits_a_terminal():
    assert max(map(len, listing().splitlines())) <= 88


def test_packages_of_the_user_are_listed_without_importing_them():
    text = listing(trust=(PACKAGE,))
    assert f"  {PACKAGE}.experiments.faulty\n      A module with a real bug" in text
