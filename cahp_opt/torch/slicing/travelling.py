"""The selection in a sliced model's configuration, so that it travels wherever the configuration goes.

The stock ``save_pretrained`` and the checkpoints of ``transformers.Trainer`` write the configuration, and
know nothing of slicing: with the selection in it, such a folder can be loaded. Which neurons form a group
stays out: those are thousands of numbers per block, and loading needs the kept groups alone, because what
is left of a block lies group by group. A part that lost none stands as in the original, and is read in
groups as it stands.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PretrainedConfig

from cahp_opt.files.records import reading
from cahp_opt.selection import Selection
from cahp_opt.torch.blocks.explicit import ExplicitAttention
from cahp_opt.torch.blocks.layouts import Layout
from cahp_opt.torch.tracing.learning import layouts_from_json, layouts_to_json, learnt_layouts

ENTRY = "cahp_selection"
"""Name of the entry in the configuration."""

EXPLICIT = "explicit_attention"
"""Key of the selection's provenance if nn.MultiheadAttention must be made explicit first."""


@dataclass(frozen=True)
class Blueprint:
    """How a newly built model becomes the sliced one.

    Args:
        selection: the units that it keeps; its provenance states whether attention is made explicit
            first.
        layouts: those learnt for its attention.
        source: the place of this record, for messages.
    """

    selection: Selection
    layouts: tuple[Layout, ...]
    source: str


def blueprint_of(model: nn.Module, selection: Selection) -> Blueprint:
    """The blueprint by which ``model``, sliced to ``selection``, can be built again."""
    if any(isinstance(module, ExplicitAttention) for module in model.modules()):
        known = {**selection.provenance, EXPLICIT: "yes"}
        selection = dataclasses.replace(selection, provenance=known)
    return Blueprint(selection, learnt_layouts(model), "the selection of `model`")


def send_along(model: nn.Module, selection: Selection) -> None:
    """Write the selection of ``model`` to its configuration, if it has one."""
    config: object = getattr(model, "config", None)
    if isinstance(config, PretrainedConfig):
        brief = dataclasses.replace(selection, space=selection.space.unordered())
        blueprint = blueprint_of(model, brief)
        entry = {
            "selection": blueprint.selection.to_json(),
            "layouts": layouts_to_json(blueprint.layouts),
        }
        setattr(config, ENTRY, entry)


def sent_along(folder: Path) -> Blueprint | None:
    """The blueprint in a folder's configuration; None if there is none.

    Raises:
        RecordError: if there is one that cannot be used.
    """
    entry = _config(folder).get(ENTRY)
    if entry is None:
        return None
    path = folder / "config.json"
    with reading(path):
        selection = Selection.from_json(entry["selection"])
        return Blueprint(selection, layouts_from_json(entry["layouts"]), f"`{ENTRY}` in {path}")


def has_sliced_part(folder: Path) -> bool:
    """Whether a folder's configuration describes a model of which only a part was sliced."""
    parts = _config(folder).values()
    return any(isinstance(part, dict) and ENTRY in part for part in parts)


def _config(folder: Path) -> dict[str, Any]:
    try:
        found: object = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
