"""Sentences for people that are not errors."""

from __future__ import annotations

import sys
from collections.abc import Iterable


def note(sentences: Iterable[str]) -> None:
    """Tell these on stderr."""
    for sentence in sentences:
        print(f"note: {sentence}", file=sys.stderr)
