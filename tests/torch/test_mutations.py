"""Every planted bug is caught, in float32 and in bfloat16, and the model is as it was before."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
from planted_bugs import BUGS, alternating
from tiny_models import run
from torch import nn

from cahp_opt.files.records import RecordError
from cahp_opt.selection import Selection
from cahp_opt.torch.blocks.finder import Prunable, find_attention, find_prunable
from cahp_opt.torch.checkpoints import checkpoint
from cahp_opt.torch.checkpoints.checkpoint import from_pretrained, save_pretrained
from cahp_opt.torch.running.made_up_inputs import sample_inputs
from cahp_opt.torch.slicing.slicing import selection_of, slice_heads
from cahp_opt.torch.slicing.verification import SliceError
from cahp_opt.torch.tracing.ownership import contradictions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])


@dtypes
@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_caught_and_the_model_is_as_before(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = BUGS[name]
    model = bug.build().to(dtype)
    reference = copy.deepcopy(model)
    kept = alternating(bug.blocks(model).space, empty=bug.empty)
    with monkeypatch.context() as patch:
        bug.plant(patch)
        # In half precision differentiation is asked first.
        with pytest.raises(SliceError, match=f"{bug.sentence}|laid out in another way"):
            slice_heads(bug.blocks(model), kept, in_place=True)
    assert selection_of(model) is None
    before = reference.state_dict()
    assert all(torch.equal(value, before[k]) for k, value in model.state_dict().items())
    for mine, theirs in zip(model.modules(), reference.modules(), strict=True):
        assert public(mine) == public(theirs)
        assert len(mine._forward_pre_hooks) == len(theirs._forward_pre_hooks)
    batch: dict[str, Any] = sample_inputs(model) or {}
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
    with torch.no_grad():
        assert torch.equal(model(**batch)[0], reference(**batch)[0])
    slice_heads(bug.blocks(model), kept, in_place=True)


def public(module: nn.Module) -> dict[str, object]:
    """The plain attributes of a module: its counts and widths."""
    return {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str)}


@dtypes
@pytest.mark.parametrize("name", [name for name, bug in BUGS.items() if bug.traced])
def test_differentiation_gives_wrong_layouts_away_before_anything_is_cut(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = BUGS[name]
    model = bug.build().to(dtype)
    batch: dict[str, Any] = sample_inputs(getattr(model, "base_model", model)) or {}
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
    assert contradictions(model, bug.blocks(model), batch) == ()
    with monkeypatch.context() as patch:
        bug.plant(patch)
        sentences = contradictions(model, bug.blocks(model), batch)
    assert sentences
    assert all("by the table and to" in s and "by differentiation" in s for s in sentences)


@pytest.mark.parametrize("uneven", [True, False], ids=["other counts", "same counts"])
def test_blocks_matched_in_another_order_are_caught_on_reload(
    uneven: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.MPNET.build(bare=True)
    space = find_attention(model).space
    kept = tiny.uneven(space) if uneven else np.array([1, 1, 0, 0] * 2 + [0, 0, 1, 1], dtype=bool)
    small = slice_heads(model, Selection.from_kept(space, kept))
    save_pretrained(small, tmp_path / "small")
    expected = run(small, tiny.batch())
    torch.testing.assert_close(
        run(from_pretrained(tmp_path / "small"), tiny.batch()), expected, rtol=0, atol=0
    )

    def reversed_blocks(model: nn.Module, **options: Any) -> Prunable:
        found = find_prunable(model, **options)
        return replace(found, blocks=found.blocks[::-1])

    monkeypatch.setattr(checkpoint, "find_prunable", reversed_blocks)
    # With the same counts every shape fits, and only the numbers tell: heads get the biases of others.
    sentence = (
        "shapes are those of another selection" if uneven else "whose outputs, loaded again, differ"
    )
    with pytest.raises(RecordError, match=sentence):
        from_pretrained(tmp_path / "small")
