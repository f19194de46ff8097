"""Markers that constructors put on their annotations for the graph to read."""


class FromParent:
    """Says that the parent supplies this argument when it calls the factory.

    Written `features: Annotated[int, FromParent]`. A graph that sets such a field is
    refused: Fiddle would accept the value and the parent would override it.
    """
