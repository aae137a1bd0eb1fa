"""Reading and writing the saved records: whole or not at all, and checked at the door."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

PathLike = str | os.PathLike[str]


_NUMBERS = re.compile(r"\[\n\s*([^]\[{}\"]*?)\n\s*\]")
"""A list of numbers alone, one a line. A line never ends inside of a text."""


class RecordError(ValueError):
    """A saved record cannot be used: unreadable, of another kind, or of another schema version."""


@contextmanager
def whole_file(path: PathLike) -> Generator[Path]:
    """A temporary path beside ``path`` that becomes ``path`` only if the body ends well."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; a record is an ordinary one
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: PathLike, kind: str, version: int, body: Mapping[str, Any]) -> None:
    """Write ``body`` as a record of this kind and schema version; lists of numbers take one line each."""
    text = json.dumps({"kind": kind, "version": version, **body}, indent=1, allow_nan=False)
    text = _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
    with whole_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: PathLike, kind: str, version: int) -> dict[str, Any]:
    """Read a record.

    Raises:
        RecordError: if it is not JSON, of another kind, or of another schema version.
        OSError: if the file cannot be read.
    """
    data = _parsed(path)
    if not isinstance(data, dict):
        raise RecordError(f"{path} is JSON but not a record of the kind {kind!r}.")
    record = cast("dict[str, Any]", data)
    check_header(path, record.get("kind"), record.get("version"), kind, version)
    return record


def kind_of(path: PathLike) -> object:
    """The kind of a record; None if it states none.

    Raises:
        RecordError: if it is not JSON.
        OSError: if the file cannot be read.
    """
    data = _parsed(path)
    return cast("dict[str, Any]", data).get("kind") if isinstance(data, dict) else None


def is_record(path: PathLike, *kinds: str) -> bool:
    """Whether a file is a record of one of these kinds, as JSON or safetensors.

    Raises:
        OSError: if it cannot be read.
    """
    with Path(path).open("rb") as file:
        start = file.read(8)
        size = int.from_bytes(start, "little")
        try:
            if start[:1] != b"{" and size < 2**27:
                header = json.loads(file.read(size))
                return header.get("__metadata__", {}).get("kind") in kinds
            return kind_of(path) in kinds
        except (ValueError, AttributeError, RecursionError):
            return False


def _parsed(path: PathLike) -> object:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, NaN, or nested too deeply
        raise RecordError(
            f"{path} is not a readable JSON record ({error}); write it again."
        ) from None


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


def check_header(
    path: PathLike, found_kind: object, found_version: object, kind: str, version: int
) -> None:
    """Refuse a record of another kind or schema version."""
    if found_kind != kind:
        raise RecordError(f"{path} holds {found_kind!r}, and {kind!r} was expected.")
    if found_version != version:
        raise RecordError(
            f"{path} has schema version {found_version!r}, and this release reads version {version}; "
            "write it again with this release."
        )


@contextmanager
def reading(path: PathLike) -> Generator[None]:
    """Turn a missing or ill-typed field met while rebuilding a record into one sentence."""
    try:
        yield
    except RecordError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise RecordError(f"{path} cannot be used: {what}") from None
