"""The law of options: a value that cannot change, and says what it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

from cahp_opt.testing.broken_law import BrokenLaw, require


def check_options(value: object) -> None:
    """A solver or a method is a frozen dataclass of options, with a docstring.

    Raises:
        BrokenLaw: saying what is not so.
    """
    name = type(value).__name__
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise BrokenLaw(f"`{name}` must be a dataclass of its options.")
    copy = dataclasses.replace(value)
    require(
        isinstance(value, Hashable) and value == copy and hash(value) == hash(copy),
        f"`{name}` must be a frozen dataclass, equal to another with the same options.",
    )
    texts = [f.name for f in dataclasses.fields(value) if f.type in ("str", str)]
    require(not texts, f"the options {texts} of `{name}` are strings; use an Enum.")
    written = type(value).__doc__ or f"{name}("
    require(
        not written.startswith(f"{name}("), f"`{name}` must have a docstring."
    )  # dataclass's own
