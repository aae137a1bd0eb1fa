"""Writing a folder whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from cahp_opt.records import PathLike


@contextmanager
def whole_folder(path: PathLike, *, overwrite: bool = False) -> Generator[Path]:
    """A temporary folder beside ``path`` that becomes ``path`` only if the body ends well.

    Args:
        path: the folder to write.
        overwrite: whether a folder with content may be replaced; the old one is there until the new
            one is complete.

    Raises:
        FileExistsError: before the body, if ``path`` is a file, or a folder with content and
            ``overwrite`` is false.
    """
    # Links are followed, so that a link to a folder stays one and the rename stays on its disk.
    target = Path(path).resolve()
    _check_free(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield temporary
        _check_free(target, overwrite)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes private folders; this is an ordinary one
        _replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_free(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise FileExistsError(
            f"{target} is a file, and a folder is to be written; name another one."
        )
    if target.is_dir() and not overwrite and any(target.iterdir()):
        raise FileExistsError(
            f"{target} is not empty; name another folder, or pass `overwrite=True` to replace it."
        )


def _replace(temporary: Path, target: Path) -> None:
    """Rename ``temporary`` to ``target``; a folder cannot be renamed over one with content."""
    if not target.exists():
        temporary.rename(target)
        return
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
    old = aside / target.name
    try:
        target.rename(old)
        temporary.rename(target)
    finally:  # after Ctrl-C between the two as well
        if not target.exists():
            old.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
