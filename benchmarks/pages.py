"""Pages and pictures in `docs` that are written from results, or checked against them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def records(results: Path) -> dict[str, dict[str, Any]]:
    """What was recorded in a folder, by the name of its file."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(results.glob("*.json"))
    }


def stale(wanted: Mapping[str, str], docs: Path, pictures: str) -> list[str]:
    """The files in ``docs`` that are not as they should be, or should not be there.

    Args:
        wanted: their contents, by their names.
        docs: the folder.
        pictures: pattern of the names that must be wanted if they are there.
    """
    there = {path.name for path in docs.glob(pictures)}
    return sorted(there - wanted.keys()) + [
        name
        for name, content in wanted.items()
        if not (docs / name).is_file() or (docs / name).read_text(encoding="utf-8") != content
    ]


def write_or_check(
    wanted: Mapping[str, str], docs: Path, pictures: str, page: str, arguments: Sequence[str]
) -> int:
    """Write the files that are stale, or, with ``--check`` among the arguments, tell which are.

    Returns:
        The exit status: 1 if something was found stale by the check.
    """
    old = stale(wanted, docs, pictures)
    if "--check" in arguments:
        print(f"stale in docs: {', '.join(old)}" if old else f"docs/{page} is up to date")
        return int(bool(old))
    for name in old:
        if name in wanted:
            (docs / name).write_text(wanted[name], encoding="utf-8")
        else:
            (docs / name).unlink()
    return 0
