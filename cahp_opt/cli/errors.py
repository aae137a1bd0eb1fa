"""Errors as one sentence for people; what is left is a bug and keeps its traceback."""

from __future__ import annotations

import errno
import os
import re
import traceback
from pathlib import Path

_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers report the disk's errors
_ADVICE = {
    errno.ENOSPC: "; free some space, or name another place",
    errno.EDQUOT: "; free some space, or name another place",
    errno.EACCES: "; name a place that you may use",
    errno.EROFS: "; name a place that you may use",
    errno.ENOENT: "; check the name",
}
_PACKAGES = ("torch", "transformers", "tokenizers", "huggingface_hub")


def explain(error: Exception) -> str | None:
    """The sentence for an error that the user can do something about; None for a bug."""
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] in _PACKAGES:
        return (
            f"this command needs the package {error.name!r}, which is not installed; "
            "install it with `pip install 'cahp-opt[torch]'`."
        )
    if type(error).__module__.split(".")[0] == "cahp_opt":
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return _disk(error.errno, error.filename)
    rust = _RUST.search(str(error))
    if rust:
        return _disk(int(rust[1]), None)
    if isinstance(error, (ValueError, OSError)) and _raised_here(error):
        return str(error)
    return None


def _disk(number: int, path: object) -> str:
    what = os.strerror(number).lower()
    named = f"{os.fsdecode(path)}: " if isinstance(path, (str, bytes)) else ""
    return f"{named}{what}{_ADVICE.get(number, '')}."


def _raised_here(error: Exception) -> bool:
    """Whether a ``raise`` of this library made the error, rather than a slip somewhere below it."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = str(Path(__file__).resolve().parents[1])
    folders = (inside, os.path.realpath(os.path.join(inside, "solvers")))
    last = frames[-1] if frames else None
    return (
        last is not None
        and os.path.realpath(last.filename).startswith(tuple(f + os.sep for f in folders))
        and (last.line or "").startswith("raise ")
    )
