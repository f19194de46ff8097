"""Markers that constructors put on their annotations for the graph to read."""


class FromParent:
    """Says that the parent supplies this argument when it calls the factory.

    Written `features: Annotated[int, FromParent]`. A graph that sets such a field is
    refused: Fiddle would accept the value and the parent would override it.
    """


class Operational:
    """Says that a run may go on with another value of this field.

    Written `skip_bad: Annotated[int, Operational] = 0`. Such a field changes nothing
    that the run learns from the same batches, except for the order of sums, or it is
    meant to change within a run, as the number of replicas is. So a graph that differs
    in it is the same run. A class that computes what another one does, in
    another way, says the same by a class attribute `equivalent_to`.

    Args:
      where_all: Name of a class attribute. If a node of the graph has it, and it is
        false, the field does change what is learnt.
    """

    def __init__(self, where_all: str = ""):
        self.where_all = where_all
