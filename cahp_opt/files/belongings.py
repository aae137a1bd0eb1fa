"""Which files of a folder this library wrote: only these are ever replaced."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cahp_opt.files.records import RecordError, read_json, write_json

LIST_FILE = "cahp_files.json"
"""The list of what was written to a folder, in the folder."""

CARD_FILE = "README.md"
"""The model card. It may be a person's own, so that its last line decides rather than the list."""

CARD_SEAL = "<!-- cahp-opt card "
"""How the last line of a card begins; what the rest of it hashes to follows."""

_KIND, _VERSION = "cahp-files", 1
_REPORT_KIND = "cahp-report"
_SELECTION_FILE = "cahp_selection.json"
_HASHED = 2**20  # bytes; larger files are known by their size
_WEIGHTS = re.compile(
    r"(model|pytorch_model|cahp_weights)[\w.-]*\.(safetensors|bin|index(\.cahp)?\.json)"
)
_EARLIER = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|cahp_(check|layouts|selection)\.json|cahp_card\.md|(cahp_weights[\w.-]*|model\.cahp[\w.-]*)\.safetensors"
    r"|cahp_weights\.safetensors\.index\.json|model\.safetensors\.index\.cahp\.json"
    r"|vocab\.txt|merges\.txt|chat_template\.jinja"
)
"""The files of folders that were written before there was a list."""


@dataclass(frozen=True)
class Belongings:
    """The content of a folder, as paths in it with slashes; folders without a file of ours end in
    one.

    Args:
        ours: files that this library wrote and nobody changed, and its list of them.
        foreign: everything else.
        recognised: whether a model of this library was written to the folder.
    """

    ours: tuple[str, ...]
    foreign: tuple[str, ...]
    recognised: bool

    @staticmethod
    def of(folder: Path) -> Belongings:
        """The content of a folder; nothing if it does not exist."""
        if not folder.is_dir():
            return Belongings((), (), False)
        listed = _listed(folder)
        known = listed if listed is not None else _earlier(folder)
        ours, foreign = list[str](), list[str]()
        for name, mine in _sorted(folder, folder, known):
            (ours if mine else foreign).append(name)
        return Belongings(tuple(ours), tuple(foreign), recognised=bool(known))

    @property
    def foreign_weights(self) -> tuple[str, ...]:
        """Weights of somebody else, beside which no others can lie."""
        return tuple(name for name in self.foreign if _WEIGHTS.fullmatch(name))


def some(names: Sequence[str], most: int = 9) -> str:
    """The first of many names, and how many there are beside them, for a sentence."""
    beyond = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + beyond


def write_list(folder: Path) -> None:
    """Write the list of all that is in a folder now."""
    files = {
        path.relative_to(folder).as_posix(): _mark(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LIST_FILE
    }
    write_json(folder / LIST_FILE, _KIND, _VERSION, {"files": files})


def names_in(file: Path) -> tuple[str, ...]:
    """What a list names; nothing if it is damaged."""
    return tuple(_listed(file.parent) or ())


def card_digest(body: str) -> str:
    """The hash in a card's last line, of the lines before."""
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def is_own_card(path: Path) -> bool:
    """Whether a file is a card of this library that nobody changed."""
    text = path.read_text(encoding="utf-8", errors="replace")
    body, seal, rest = text.rpartition("\n" + CARD_SEAL)
    return bool(seal) and rest == f"{card_digest(body)} -->\n"


def _sorted(
    top: Path, folder: Path, known: Mapping[str, str | int | None]
) -> Iterator[tuple[str, bool]]:
    """Every entry with whether it is ours; a folder with nothing of ours in it is one entry."""
    for path in sorted(folder.iterdir()):
        name = path.relative_to(top).as_posix()
        if path.is_dir() and not path.is_symlink():
            if any(other.startswith(f"{name}/") for other in known):
                yield from _sorted(top, path, known)
            else:
                yield f"{name}/", False
        elif name == CARD_FILE:
            yield name, is_own_card(path)
        elif name == LIST_FILE:
            yield name, True
        else:
            yield name, name in known and _is_marked(path, known[name])


def _listed(folder: Path) -> dict[str, str | int | None] | None:
    try:
        files = read_json(folder / LIST_FILE, _KIND, _VERSION)["files"]
        return {str(name): cast("str | int", mark) for name, mark in files.items()}
    except (OSError, RecordError, KeyError, AttributeError):
        return None


def _earlier(folder: Path) -> dict[str, str | int | None]:
    """Our files in a folder without a list: by its report or, without one, by the usual names."""
    weights = [*folder.glob("cahp_weights*"), *folder.glob("model.cahp*")]
    if not (weights and (folder / _SELECTION_FILE).is_file()):
        return {}
    report = folder / "report.json"
    try:
        written = read_json(report, _REPORT_KIND, 1)["files"]
        known: dict[str, str | int | None] = {
            str(name): int(size) for name, size in written.items()
        }
        return {**known, report.name: None}
    except (OSError, RecordError, KeyError, AttributeError, TypeError, ValueError):
        names = (path.name for path in folder.iterdir() if path.is_file())
        return {name: None for name in names if _EARLIER.fullmatch(name)}


def _mark(path: Path) -> str | int:
    """A mark that distinguishes a file from others of the same name."""
    size = path.stat().st_size
    return size if size > _HASHED else hashlib.sha256(path.read_bytes()).hexdigest()


def _is_marked(path: Path, mark: str | int | None) -> bool:
    if mark is None:
        return True
    return (path.stat().st_size if isinstance(mark, int) else _mark(path)) == mark
