"""Markers that constructors put on their annotations for the graph to read."""


class FromParent:
    """Says that the parent supplies this argument when it calls the factory.

    Written `features: Annotated[int, FromParent]`. A graph that sets such a field is
    refused: Fiddle would accept the value and the parent would override it.
    """


class Operational:
    """Says that a run may go on with another value of this field.

    Written `skip_bad: Annotated[int, Operational] = 0`. Such a field changes nothing
    that the run has learnt so far, so a graph that differs in it is the same run.
    """
