"""Metadata of a record's field, so that it can be an option of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

_KEY = "option"


@dataclass(frozen=True)
class Option:
    """How a field is offered on the command line.

    Args:
        flag: such as ``--epochs``; a name in capitals stands for an argument without a flag.
        help: one or two sentences for people.
        min: the smallest value; None for any.
        metavar: what stands for the value in the help; None for the name of its type.
    """

    flag: str
    help: str
    min: float | None = None
    metavar: str | None = None


def option(
    flag: str, *, help: str, min: float | None = None, metavar: str | None = None
) -> Mapping[str, Option]:
    """The metadata of a field that is an option; arguments as for :class:`Option`."""
    return {_KEY: Option(flag, help, min, metavar)}


def option_of(metadata: Mapping[Any, Any]) -> Option | None:
    """The option in a field's metadata; None without one."""
    told = metadata.get(_KEY)
    return told if isinstance(told, Option) else None


def same(kind: type[Any], name: str) -> Any:
    """A field like that of another record: the same default, help and range."""
    found = next(f for f in fields(kind) if f.name == name)
    return field(default=found.default, metadata=found.metadata)
