"""How long work reports where it stands; the library never prints."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, the steps done, and the steps in all (0 where that is unknown)."""


def silent(stage: str, done: int, total: int) -> None:
    """The default: report nothing."""
