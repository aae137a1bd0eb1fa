"""What can be pruned of a model is found at the public door, and nowhere behind it."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tiny
from tiny_models import FAMILIES, Family
from torch import nn

import cahp_opt.torch
from cahp_opt.space import Block, HeadSpace, Unit
from cahp_opt.torch import (
    calibrate,
    count_resources,
    find_attention,
    measure_latency,
    slice_heads,
    verify_slice,
)
from cahp_opt.torch.blocks import finder
from cahp_opt.torch.blocks.finder import UnsupportedModelError, reread
from cahp_opt.torch.running.undo import Journal
from cahp_opt.torch.slicing.slicing import thin_copy
from cahp_opt.torch.slicing.surgery import cut

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the models in which attention was found, in order."""
    found: list[str] = []
    check = finder._check_uncompiled

    def counted(model: nn.Module) -> None:
        found.append(type(model).__name__)
        check(model)

    monkeypatch.setattr(finder, "_check_uncompiled", counted)
    return found


def test_public_functions_find_once(finds: list[str]) -> None:
    model, batch = tiny.BERT.build(), tiny.batch()
    space = find_attention(model).space
    finds.clear()
    measure_latency(model, batch, repeats=1)
    assert len(finds) == 1
    count_resources(model, batch)
    assert len(finds) == 2
    calibrate(model, [batch])
    assert len(finds) == 3
    small = slice_heads(model, tiny.uneven(space), batch=batch)
    assert len(finds) == 4
    verify_slice(model, small, tiny.uneven(space), batch)
    assert len(finds) == 6  # each of two models


@families
def test_blocks_are_the_same_in_a_copy_and_in_what_is_left(family: Family) -> None:
    model = family.build()
    prunable = find_attention(model)
    copied = prunable.at(copy.deepcopy(model))
    again = find_attention(copied.model)
    assert copied.space == again.space and copied.skipped == again.skipped
    for mine, theirs in zip(copied, again, strict=True):
        assert (mine.site, mine.module, mine.out) == (theirs.site, theirs.module, theirs.out)
    cut(copied, tiny.uneven(prunable.space, empty=0), Journal())
    left, again = reread(copied), find_attention(copied.model)
    assert left.space == again.space != prunable.space
    for mine, theirs in zip(left.attention, again.attention, strict=True):
        assert mine.site is theirs.site and mine.layout == theirs.layout and mine.cut == theirs.cut
        assert [(p.path, p.axis, p.unit_of.tolist()) for p in mine.pieces] == [
            (p.path, p.axis, p.unit_of.tolist()) for p in theirs.pieces
        ]


def test_a_model_that_is_one_site_has_its_block_in_a_copy() -> None:
    site = tiny.BERT.build(bare=True).encoder.layer[0].attention
    prunable = find_attention(site)
    small = thin_copy(prunable, np.arange(prunable.space.n) > 0)
    assert prunable.at(small).blocks[0].site is small is not site


def test_blocks_that_contradict_themselves_are_refused_when_read_again() -> None:
    model = tiny.BERT.build(bare=True)
    prunable = find_attention(model)
    prunable.blocks[0].module.num_attention_heads = 3  # type: ignore[assignment]
    with pytest.raises(
        UnsupportedModelError, match=r"encoder\.layer\.0\.attention .*not understood"
    ):
        reread(prunable)


@families
@pytest.mark.parametrize("unit", [None, Unit.KV_GROUP, Unit.QUERY_SLOT])
def test_a_space_tells_by_which_unit_it_is_found(family: Family, unit: Unit | None) -> None:
    model = family.build()
    space = find_attention(model, unit=unit).space
    assert find_attention(model, unit=space.unit).space == space


def test_a_single_group_is_told_from_heads_with_shared_keys() -> None:
    mixed = HeadSpace((Block("a", 4), Block("b", 2, Unit.KV_GROUP)))
    assert mixed.unit is None
    assert HeadSpace((Block("a", 1, Unit.KV_GROUP), *mixed.blocks[1:])).unit is Unit.KV_GROUP
    assert HeadSpace((Block("a", 4, Unit.QUERY_SLOT), *mixed.blocks[1:])).unit is Unit.QUERY_SLOT


def _taking_both(source: str) -> Iterator[str]:
    """The functions that take a model and the unit to find its blocks by."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            told = {arg.arg: ast.unparse(arg.annotation) for arg in every if arg.annotation}
            if told.keys() & {"model", "dense"} and told.get("unit") == "Unit | None":
                yield node.name


def test_only_public_doors_take_a_model_and_a_unit() -> None:
    folder = Path(cahp_opt.torch.__file__).parent
    taking = {name for path in folder.rglob("*.py") for name in _taking_both(path.read_text())}
    first_steps = {"find_for", "blocks_of", "_attention"}  # of the doors
    assert "find_attention" in taking and taking <= {*cahp_opt.torch.__all__, *first_steps}
