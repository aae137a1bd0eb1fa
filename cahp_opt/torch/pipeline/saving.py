"""Writing the sliced model, and checking that it loads as the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cahp_opt.files.belongings import LIST_FILE
from cahp_opt.progress import Stages
from cahp_opt.reports.page import REPORT_PAGE
from cahp_opt.reports.pruning_page import pruning_page
from cahp_opt.runs.report import REPORT_FILE, Report
from cahp_opt.torch.checkpoints.checkpoint import from_pretrained
from cahp_opt.torch.checkpoints.foreign_classes import is_foreign
from cahp_opt.torch.running.batches import device_of, inputs_of, prepare
from cahp_opt.torch.running.undisturbed import evaluating


class ReloadError(RuntimeError):
    """The saved model, loaded again, is not the model that was saved."""


def check_reload(model: nn.Module, folder: Path, batches: Sequence[Mapping[str, Any]]) -> None:
    """Load a saved model again and compare its outputs with those of ``model``, bit by bit.

    Raises:
        ReloadError: if anything differs.
    """
    device = device_of(model)
    # Weights that lie in memory as the file has them may be summed in another order: a copy is aligned.
    cls = type(model) if is_foreign(type(model)) else None
    again = cast("nn.Module", from_pretrained(folder, model_class=cls))
    loaded = copy.deepcopy(again).to(device)
    with torch.no_grad(), evaluating(model, loaded):
        for batch in batches:
            inputs = inputs_of(prepare(batch, model, "batches", device))
            mine, theirs = _tensors(model(**inputs)), _tensors(loaded(**inputs))
            for name, value in mine.items():
                if name not in theirs or not torch.equal(value, theirs[name]):
                    raise ReloadError(
                        f"the saved model, loaded again, gives another {name!r} than the sliced model "
                        "in memory; nothing was kept."
                    )


def _tensors(output: Any) -> dict[str, Tensor]:
    items = cast("Mapping[str, object]", output).items()
    return {name: value for name, value in items if isinstance(value, Tensor)}


def finish(report: Report, folder: Path, display: Stages) -> Report:
    """Add times and files to the report, and write it, as a record and as a page."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LIST_FILE)
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
    report = replace(report, seconds=dict(display.seconds), files=files)
    report.save(folder / REPORT_FILE)
    pruning_page(report).save(folder / REPORT_PAGE)
    sizes = {name: (folder / name).stat().st_size for name in (REPORT_FILE, REPORT_PAGE)}
    return replace(report, files={**files, **sizes})
