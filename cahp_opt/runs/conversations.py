"""Conversations of a table: lists of messages, in the two forms that data sets have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

_SHARED = {"human": "user", "gpt": "assistant"}
"""Roles of the older form, whose messages have ``from`` and ``value``."""


def conversation(cell: object) -> str:
    """A conversation as JSON: a list of messages, each with a ``role`` and whatever else it has.

    Args:
        cell: the list, or its JSON.

    Raises:
        ValueError: with the reason, if it is no list of messages.
    """
    found: Any = cell
    if isinstance(cell, str):
        try:
            found = json.loads(cell)
        except (ValueError, RecursionError):
            raise ValueError("is text and not a list of messages") from None
    if not isinstance(found, list) or not found:
        raise ValueError("is not a list of messages")
    messages = [_message(each) for each in cast("list[object]", found)]
    return json.dumps(messages, ensure_ascii=False, default=str)  # some hold a time of writing


def _message(each: object) -> Mapping[str, object]:
    if not isinstance(each, Mapping):
        raise ValueError("holds a message without a role")
    fields = {
        str(name): value
        for name, value in cast("Mapping[object, object]", each).items()
        if value is not None  # Parquet gives every message the keys of all others
    }
    if "role" not in fields and "from" in fields and "value" in fields:
        told = str(fields.pop("from"))
        fields = {"role": _SHARED.get(told, told), "content": fields.pop("value"), **fields}
    if not isinstance(fields.get("role"), str):
        raise ValueError("holds a message without a role")
    if isinstance(fields.setdefault("content", ""), (str, list)):
        return fields
    raise ValueError("holds a message whose content is no text")
