"""Putting a sliced model onto the hub."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import huggingface_hub
from torch import nn

from cahp_opt.files.belongings import CARD_FILE, LIST_FILE, names_in
from cahp_opt.torch.checkpoints.card import give_way
from cahp_opt.torch.checkpoints.checkpoint import Saveable, save_pretrained
from cahp_opt.torch.checkpoints.load_errors import ModelError, why_not_pushed
from cahp_opt.torch.checkpoints.weight_files import STEM

_STALE = re.compile(r"cahp_layouts\.json|modules\.json|(config_)?sentence_[\w-]+\.json|\d+_\w+/.*")
"""What an earlier model brought that would be read as a part of one without it; a tokenizer stays."""

_OTHERS = re.compile(r"(model|pytorch_model)[\w.-]*\.(safetensors|bin)")


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    tokenizer: Saveable | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload a pruned model",
    max_shard_size: int | str | None = None,
) -> str:
    """Save a sliced model to a repository of the hub, which is made if it is not there.

    It is written as by :func:`~cahp_opt.torch.save_pretrained`. A pruned model that is there already is
    replaced; a model card that somebody wrote or edited stays, and the new one is ``cahp_card.md``.

    Args:
        model: a model from :func:`~cahp_opt.torch.slice_heads` or :func:`~cahp_opt.torch.from_pretrained`.
        repo_id: such as ``owner/name``.
        tokenizer: saved beside it, if given.
        private: whether a new repository is private; None for the default of its owner.
        revision: the branch; None for the default one.
        token: of an account that may write there; None for the one that is logged in.
        commit_message: of the commit.
        max_shard_size: as for :func:`~cahp_opt.torch.save_pretrained`.

    Returns:
        The address of the commit.

    Raises:
        ModelError: if the hub does not take it, or the repository holds weights that are not of a pruned model.
        ValueError: if the model cannot be saved.
    """
    api: Any = huggingface_hub.HfApi(token=token)
    with TemporaryDirectory() as place:
        folder = Path(place) / "model"
        save_pretrained(model, folder, tokenizer=tokenizer, max_shard_size=max_shard_size)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            there = api.list_repo_files(repo_id, revision=revision)
            _refuse_others(repo_id, there)
            if CARD_FILE in there:
                kept = api.hf_hub_download(repo_id, CARD_FILE, revision=revision, local_dir=place)
                give_way(folder, Path(kept))
            earlier = [f"{STEM}*"]  # shards
            if LIST_FILE in there:
                listed = api.hf_hub_download(repo_id, LIST_FILE, revision=revision, local_dir=place)
                earlier += filter(_STALE.fullmatch, names_in(Path(listed)))
            done: Any = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                delete_patterns=earlier,
            )
        except ModelError:
            raise
        except Exception as error:  # the hub, the network and the disk have errors of many classes
            raise ModelError(f"{repo_id} cannot be pushed: {why_not_pushed(error)}.") from error
    return str(done.commit_url)


def _refuse_others(repo_id: str, files: list[str]) -> None:
    others = [name for name in files if _OTHERS.fullmatch(name)]
    if others:
        raise ModelError(
            f"{repo_id} on the hub holds the weights of another model ({others[0]}), beside which no others can "
            "lie; name another repository."
        )
