"""The identity of a model as records hold it: its class, the shapes of its weights, and the weights.

It is a text of up to three parts, such as ``BertModel/0f1e2d3c4b5a6978/`` and 32 more digits. A latency
profile goes by the first two: times are those of the shapes. Statistics and selections go by all three.
Records of the first releases hold 16 digits about the output projections alone, or nothing.
"""

from __future__ import annotations

_PARTS = ("classes", "shapes of the weights", "weights")


def structure_of(identity: str) -> str:
    """The class and the shapes alone; empty if a record does not state them."""
    return "/".join(identity.split("/")[:2]) if "/" in identity else ""


def covers_outputs_alone(identity: str) -> bool:
    """Whether it is of the first releases and covers the output projections alone."""
    return bool(identity) and "/" not in identity


def difference(one: str, other: str) -> str | None:
    """How two models differ, in words; None if in nothing that both records state."""
    if not one or not other or one == other:
        return None
    if covers_outputs_alone(one) or covers_outputs_alone(other):
        old = "written by an earlier release, which names models in another way"
        both = covers_outputs_alone(one) and covers_outputs_alone(other)
        return f"weights differ: {one} against {other}" if both else f"one of them was {old}"
    for part, mine, theirs in zip(_PARTS, one.split("/"), other.split("/"), strict=False):
        if mine != theirs:
            return f"{part} differ: {mine} against {theirs}"
    return None


def coverage_note(what: str, identity: str) -> str | None:
    """A sentence on what an earlier release's record leaves unchecked; None for other records.

    Args:
        what: the record, such as "the selection".
        identity: the identity in it.
    """
    if not covers_outputs_alone(identity):
        return None
    return (
        f"{what} was written by an earlier release and names the output projections of its model alone, so "
        "whether all other weights are the same was not checked; calibrate again to be sure."
    )
