"""Large values that were made last, as many as little memory holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """Remembers the values that were made last.

    Args:
        most: bytes that all of them may take; a single value may take more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[int, tuple[int, Value]] = {}  # by key: the bytes and the value

    def get(self, key: int, size: int, make: Callable[[int], Value]) -> Value:
        """The value of a key, made where it is not remembered.

        Args:
            key: such as the number of a block.
            size: bytes that the value takes; the oldest values go before it is made.
            make: makes the value of a key.
        """
        known = self._held.get(key)
        if known is not None:
            return known[1]
        left = dict(self._held)
        while left and size + sum(taken for taken, _ in left.values()) > self._most:
            del left[next(iter(left))]
        self._held = left
        value = make(key)
        self._held = {**left, key: (size, value)}
        return value
