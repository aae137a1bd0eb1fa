"""What sentence-transformers needs beside a saved model: its list of modules, and what belongs to them.

Nothing of it depends on which units a model keeps, so it is copied as it is from where the model was
loaded: the pooling, the normalisation, dense layers with their weights, the prompts, and how the
transformer reads texts. ``SentenceTransformer(folder, trust_remote_code=True)`` then embeds with the
sliced model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from cahp_opt.torch.evaluation.files_beside import (
    MODULES_FILE,
    READING_FILES,
    SETTINGS_FILE,
    FilesBeside,
    Module,
    OutOfReach,
)

_MAY_BE_EMPTY = ("Dropout", "Normalize")  # without a configuration they have their defaults
_BY_STOCK_CLASS = (
    "blenderbot",
    "blenderbot-small",
    "longt5",
    "m2m_100",
    "marian",
    "mt5",
    "pegasus",
    "pegasus_x",
    "prophetnet",
    "switch_transformers",
    "t5",
    "t5gemma",
    "t5gemma2",
    "umt5",
)
"""Types of models that sentence-transformers opens by their stock encoder, and not by ``AutoModel``."""


@dataclass(frozen=True)
class SentenceFiles:
    """The files of sentence-transformers that go where a model is saved.

    Args:
        files: where each can be read, by its path in the new folder; none if the model has none.
        modules: the list of modules, as text.
        note: a sentence on why they stay behind, or do not suffice; empty if they do.
    """

    files: Mapping[str, Path] = field(default_factory=lambda: dict[str, Path]())
    modules: str = ""
    note: str = ""

    @staticmethod
    def of(model: nn.Module) -> SentenceFiles:
        """Those of the folder or the repository that a model was loaded from."""
        beside = FilesBeside.of(model)
        if beside is None:
            return SentenceFiles()
        kind: object = getattr(getattr(model, "config", None), "model_type", None)
        try:
            found = _collected(beside)
            return replace(found, note=_by_hand(kind)) if found.modules else found
        except OutOfReach:
            if getattr(model, "base_model", None) is not model:  # with a head there rarely are any
                return SentenceFiles()
            why = "the repository cannot be reached"
        except (ValueError, LookupError, TypeError) as error:
            why = f"its {MODULES_FILE} cannot be understood ({error!r})"
        return _left(beside, why)

    def write(self, folder: Path) -> None:
        """Copy them into a folder."""
        if not self.modules:
            return
        for name, source in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
        (folder / MODULES_FILE).write_text(self.modules, encoding="utf-8")


def _collected(beside: FilesBeside) -> SentenceFiles:
    told: Any = beside.read(MODULES_FILE)
    modules = beside.modules()
    if not modules:
        return SentenceFiles()
    why = _problem(modules)
    if why:
        return _left(beside, why)
    first, *others = modules
    files = dict[str, Path]()
    for name in READING_FILES:
        path = beside.path(f"{first.path}/{name}" if first.path else name)
        if path is not None:
            files[name] = path
            break
    settings = beside.path(SETTINGS_FILE)
    if settings is not None:
        files[SETTINGS_FILE] = settings
    for module in others:
        own = beside.within(module.path) if module.path else {}
        if not own and module.kind not in _MAY_BE_EMPTY:
            return _left(
                beside, f"the files of its module {module.path or module.kind} are missing"
            )
        files |= own
    told[0]["path"] = ""  # beside the weights, wherever it was
    return SentenceFiles(files, json.dumps(told, indent=2) + "\n")


def _problem(modules: list[Module]) -> str:
    """Why a list of modules cannot go along; empty if it can."""
    foreign = next((module for module in modules if module.is_foreign), None)
    if foreign is not None:
        return f"its module {foreign.type} has code of its own, which is not copied"
    if not modules[0].is_transformer:
        return (
            f"its first module is a {modules[0].kind}, and not a Transformer that could be pruned"
        )
    out = next((module for module in modules if module.leads_out), None)
    return "" if out is None else f"the path {out.path} of a module leads out of the folder"


def _by_hand(kind: object) -> str:
    """A sentence on a type of model that has to be put in by hand; empty for others."""
    if kind not in _BY_STOCK_CLASS:
        return ""
    return (
        f"sentence-transformers opens a {kind} by its stock class, which does not know what was removed; open "
        "the unpruned one, and set `[0].model` of it to `cahp_opt.torch.from_pretrained(folder)`."
    )


def _left(beside: FilesBeside, why: str) -> SentenceFiles:
    return SentenceFiles(
        note=f"the files of sentence-transformers beside {beside.name} stay behind: {why}; copy them yourself, "
        "or sentence-transformers pools what is saved by the mean."
    )
