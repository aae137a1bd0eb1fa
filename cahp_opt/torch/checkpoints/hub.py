"""Sliced models of the hub as folders of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from cahp_opt.files.records import PathLike
from cahp_opt.torch.checkpoints.load_errors import ModelError, explained
from cahp_opt.torch.evaluation.files_beside import FilesBeside
from cahp_opt.torch.slicing.travelling import sent_along

_RECORDS = ("*.json", "*.py")
_INSIDE = ("*/*.safetensors", "*/*.bin")  # weights of something else
PLACES = ("cache_dir", "force_download", "local_files_only")
"""Options of a download, as the stock ``from_pretrained`` takes them."""


def is_hub_id(name: PathLike) -> bool:
    """Whether a name is of the form ``owner/name``, and no file or folder is called so."""
    if str(name).count("/") != 1 or Path(name).exists():
        return False
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return False
    return True


def sliced_folder(
    name: PathLike,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    weights: str = "*.safetensors",
    places: Mapping[str, object] | None = None,
) -> Path:
    """The folder of a sliced model: a local one, or else what the hub has under this name, downloaded.

    The records come first, so that nothing large is downloaded of a model that was not sliced.

    Args:
        name: a folder, or an id such as ``owner/name``.
        revision: a branch, tag or commit on the hub; None for its default.
        token: of an account on the hub; None for the one that is logged in, if any.
        weights: which files hold the weights.
        places: options of the download, by name, see :data:`PLACES`.

    Raises:
        ModelError: if the hub does not give it, or it was not sliced.
    """
    if not is_hub_id(name):
        return Path(name)
    hub: Any = huggingface_hub  # the options go through as they are
    options = {**(places or {}), "token": token}
    with explained(str(name), "the sliced model"):
        folder = Path(
            hub.snapshot_download(
                str(name), revision=revision, allow_patterns=[*_RECORDS], **options
            )
        )
        if sent_along(folder) is None:
            raise ModelError(
                f"{name} on the hub is no sliced model; load it with the stock `from_pretrained`."
            )
        hub.snapshot_download(
            str(name),
            revision=folder.name,  # the commit, in case that there is a newer one by now
            allow_patterns=[*_RECORDS, weights],
            ignore_patterns=[*_INSIDE],
            **options,
        )
        inner = [f"{each}/*" for each in FilesBeside(str(folder)).folders() if each]
        if inner:  # what sentence-transformers puts behind the model, dense layers say
            hub.snapshot_download(str(name), revision=folder.name, allow_patterns=inner, **options)
    return folder
