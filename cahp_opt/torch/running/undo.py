"""Changes of a model that can be taken back."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

_ABSENT = object()


class Journal:
    """A record of everything that surgery replaced, for undoing it."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def put(self, module: nn.Module, name: str, value: object) -> None:
        """Set an attribute or parameter of ``module`` and remember what was there."""
        old: object = getattr(module, name, _ABSENT)
        if old is _ABSENT:
            self._undo.append(lambda: delattr(module, name))
        else:
            self._undo.append(lambda: setattr(module, name, old))
        setattr(module, name, value)

    def call_later(self, undo: Callable[[], None]) -> None:
        """Remember another step to take on the way back."""
        self._undo.append(undo)

    def restore(self) -> None:
        """Put everything back, latest first."""
        while self._undo:
            self._undo.pop()()
