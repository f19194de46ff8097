"""A small world of layers, experiments and mutations, to test the graph tools on."""

PACKAGE = "tests.graph.toys"
TRUST = (PACKAGE,)
