"""The error that tells of a broken law, and how it comes to name where."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


class BrokenLaw(AssertionError):
    """A solver or an objective breaks a law; the sentences say which, where, and what came."""


def require(holds: object, sentence: str) -> None:
    """Raise :class:`BrokenLaw` with the sentence unless the law holds."""
    if not holds:
        raise BrokenLaw(sentence)


@contextmanager
def found_on(place: str) -> Generator[None]:
    """Add to a broken law where it was found."""
    try:
        yield
    except BrokenLaw as broken:
        raise BrokenLaw(f"{broken} Found on {place}.") from broken.__cause__
