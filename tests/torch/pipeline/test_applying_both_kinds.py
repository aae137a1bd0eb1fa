"""A selection of heads and neurons, applied to the model that it was made for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
from command_line import make_tokenizer

from cahp_opt.runs.plan import Applying, OutputOptions, RecoveryOptions
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import Selection
from cahp_opt.torch import find_prunable, save_pretrained, slice_heads
from cahp_opt.torch.blocks.fingerprint import fingerprint
from cahp_opt.torch.pipeline.applying import apply_selection
from cahp_opt.torch.pipeline.run import Named

pytestmark = pytest.mark.usefixtures("threads")


def applying() -> Applying:
    """Nothing but the slice, timed once."""
    plain = Applying(RecoveryOptions(Recovery.NONE))
    return replace(
        plain, workloads=tuple(replace(w, batch_size=1, repeats=1) for w in plain.workloads)
    )


def test_the_record_of_a_folder_makes_the_same_bytes_of_the_original(tmp_path: Path) -> None:
    """Which neurons go is told by their order; a model of other weights is refused."""
    model: Any = tiny.BERT.build()
    prunable = tiny.in_random_groups(find_prunable(model))
    kept = tiny.uneven(prunable.space, empty=1)
    chosen = replace(
        Selection.from_kept(prunable.space, kept), provenance={"model": fingerprint(model)}
    )
    save_pretrained(slice_heads(prunable, chosen), tmp_path / "first")
    record = Selection.load(tmp_path / "first" / "cahp_selection.json")
    named = Named("tiny", model, make_tokenizer())
    out = OutputOptions(tmp_path / "again")
    report = apply_selection(named, record, None, applying(), out)
    assert report.selection.space == prunable.space
    folders = (tmp_path / "first", tmp_path / "again")
    first, again = ((folder / "cahp_weights.safetensors").read_bytes() for folder in folders)
    assert first == again
    told = Selection.load(tmp_path / "again" / "cahp_selection.json")
    assert told.space == record.space and told.heads() == record.heads()

    unstated = replace(record, space=record.space.unordered())
    with pytest.raises(ValueError, match="does not say which neurons .* take the record that was"):
        apply_selection(named, unstated, None, applying(), OutputOptions(tmp_path / "x"))
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.bias[3] += 1
    with pytest.raises(ValueError, match=r"for another model \(weights differ"):
        apply_selection(named, record, None, applying(), OutputOptions(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
