"""What failed in a study: a sentence for people, and the traceback in a file."""

from __future__ import annotations

import traceback

from cahp_opt.files.records import whole_file
from cahp_opt.files.store import Store, digest


def reason_of(store: Store, what: str, error: Exception) -> str:
    """The reason as one sentence; the traceback goes to a file of the folder.

    Args:
        store: the folder.
        what: failed.
        error: why.
    """
    path = store.folder / "failures" / f"{digest(what)}.txt"
    with whole_file(path) as to:
        to.write_text(f"{what}\n{''.join(traceback.format_exception(error))}", encoding="utf-8")
    told = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, ValueError):
        told = f"{type(error).__name__}: {told}"
    return told if told.endswith(".") else f"{told}."
