"""Folders of images or recordings: one folder per class, whose name is the label."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cahp_opt.files.records import PathLike
from cahp_opt.runs.media import Medium
from cahp_opt.runs.texts import Example, TextError


class MediaFolder:
    """The images or the recordings below a folder, as examples whose text is the path of the file.

    The label of a file is the name of the folder that it lies in, or that this lies in, directly below
    ``folder``. Files directly in ``folder`` have no label. Hidden files, and those with other endings
    (:attr:`Medium.endings`), are left out.

    Args:
        folder: the folder.
        medium: what the files are; no texts.

    Raises:
        TextError: if there is no such folder, it holds no such file, or only some of them lie in folders.
        OSError: if it cannot be read.
    """

    def __init__(self, folder: PathLike, medium: Medium) -> None:
        self._folder, self.medium = Path(folder), medium
        if not self._folder.is_dir():
            what = "is a file" if self._folder.exists() else "is not there"
            raise TextError(
                f"{folder} {what}, and {medium.option} takes a folder; give one with a folder of files for "
                "every class."
            )
        found = list(_files(self._folder))
        self._files = [path for path in found if path.suffix.lower() in medium.endings]
        left_out = len(found) - len(self._files)
        told = ", ".join(ending[1:] for ending in medium.endings)
        if not self._files:
            raise TextError(
                f"{folder} holds no {medium.value} among its {len(found)} files; files that end in {told} are "
                "read."
            )
        loose = sum(self._label(path) is None for path in self._files)
        if 0 < loose < len(self._files):
            raise TextError(
                f"of the {len(self._files)} files of {folder}, {loose} lie in no folder of a class; put every "
                "file into one, or none."
            )
        self.notes: tuple[str, ...] = ()
        """A sentence on the files that were left out."""
        if left_out:
            self.notes = (
                f"files of {folder} that are no {medium.value} by their endings ({told}), left out: "
                f"{left_out}.",
            )

    def __iter__(self) -> Iterator[Example]:
        """The examples, in the order of their paths."""
        for path in self._files:
            yield Example(str(path), label=self._label(path))

    def _label(self, path: Path) -> str | None:
        inside = path.relative_to(self._folder).parts
        return inside[0] if len(inside) > 1 else None


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder that are not hidden, in a fixed order; links to folders are followed."""
    for place, folders, names in os.walk(folder, onerror=_raised, followlinks=True):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not _leads_back(place, name)
        )
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(place, name)


def _raised(error: OSError) -> None:
    raise error


def _leads_back(place: str, name: str) -> bool:
    """Whether a folder is a link to one that it lies in."""
    target = os.path.realpath(os.path.join(place, name))
    return Path(os.path.realpath(place)).is_relative_to(target)
