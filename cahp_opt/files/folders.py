"""Writing a folder whole or not at all, and never over what somebody else put there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from cahp_opt.files.belongings import Belongings, some, write_list
from cahp_opt.files.records import PathLike


@contextmanager
def whole_folder(path: PathLike, *, overwrite: bool = False) -> Generator[Path]:
    """A temporary folder beside ``path`` that becomes ``path`` only if the body ends well.

    A list of the files written lies in it (:data:`~cahp_opt.files.belongings.LIST_FILE`); only
    these may be replaced later. Anything else in the folder stays; where a new file has its name,
    it gets the ending ``.kept``.

    Args:
        path: the folder to write.
        overwrite: whether a model that this library wrote there may be replaced; the old one is there
            until the new one is complete.

    Raises:
        FileExistsError: before the body, if ``path`` is a file, or a folder with content and
            ``overwrite`` is false, or one that may not be replaced.
    """
    # Links are followed, so that a link to a folder stays one and the rename stays on its disk.
    target = Path(path).resolve()
    check_free(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield temporary
        there = check_free(target, overwrite=overwrite)
        write_list(temporary)
        if there.foreign:
            _merge(temporary, target, there)
            return
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes private folders; this is an ordinary one
        _replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(target: Path, *, overwrite: bool) -> Belongings:
    """The content of a folder that is to be written.

    Args:
        target: the folder.
        overwrite: whether a model that this library wrote there may be replaced.

    Raises:
        FileExistsError: if it may not be written.
    """
    if target.exists() and not target.is_dir():
        raise FileExistsError(
            f"{target} is a file, and a folder is to be written; name another one."
        )
    there = Belongings.of(target)
    if not (there.ours or there.foreign):
        return there
    if not overwrite:
        raise FileExistsError(
            f"{target} is not empty; name another folder, or pass `overwrite=True` to replace a model that "
            "was written there."
        )
    if not there.recognised:
        raise FileExistsError(
            f"{target} holds {some(there.foreign)}, and no model that this library wrote, so nothing in "
            "it is replaced; name another folder."
        )
    if there.foreign_weights:
        raise FileExistsError(
            f"{target} holds weights that this library did not write, {some(there.foreign_weights)}, and "
            "would be unusable with others beside them; move them away, or name another folder."
        )
    return there


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


def _merge(temporary: Path, target: Path, there: Belongings) -> None:
    """Put what is in ``temporary`` in the place of our files; the others are not touched."""
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
    moves: list[tuple[Path, Path]] = []

    def move(old: Path, new: Path) -> None:
        new.parent.mkdir(parents=True, exist_ok=True)
        moves.append((old, new))
        old.rename(new)

    done = False
    try:
        for name in there.ours:
            move(target / name, aside / name)
        for path in sorted(p for p in temporary.rglob("*") if not p.is_dir()):
            place = target / path.relative_to(temporary)
            if place.exists() or place.is_symlink():
                move(place, _spare(place))
            move(path, place)
        done = True
    finally:
        if not done:  # after Ctrl-C as well: everything back to where it was
            for old, new in reversed(moves):
                if new.exists() or new.is_symlink():
                    new.rename(old)
        shutil.rmtree(aside, ignore_errors=True)


def _spare(path: Path) -> Path:
    """A free name beside a file that somebody else wrote or changed."""
    names = (path.with_name(f"{path.name}.kept{number or ''}") for number in range(1000))
    return next(name for name in names if not (name.exists() or name.is_symlink()))
