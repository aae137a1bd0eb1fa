"""Biases that blocks share: those with different heads get a table each."""

from __future__ import annotations

import copy

from torch import nn

from cahp_opt.arrays import Bools
from cahp_opt.torch.blocks.blocks import AttentionBlock, Prunable, PrunableBlock
from cahp_opt.torch.blocks.layouts import (
    SHARED_BIAS,
)
from cahp_opt.torch.blocks.site_reader import read_block
from cahp_opt.torch.running.undo import Journal
from cahp_opt.torch.slicing.argument_hooks import DropArgument, argument_position


def untied(prunable: Prunable, kept: Bools, journal: Journal) -> tuple[PrunableBlock, ...]:
    """Give every block its own table of biases if the first block's serves all (T5).

    Blocks that share one stay as they are if all of them keep all units, so that a stack alone and
    one in a larger model are cut alike.

    Args:
        prunable: the blocks.
        kept: the keep-set, bool ``[n]``.
        journal: records the changes, so that they can be undone.
    """
    shared = SHARED_BIAS
    tables = {b.name: b.module for b in prunable.attention if _has_table(b.module)}
    places = zip(prunable, prunable.space.slices, strict=True)
    losing = [block.name for block, where in places if not kept[where].all()]
    untied: list[PrunableBlock] = []
    for block in prunable:
        owner = block.module
        position = argument_position(owner, shared.argument)
        if (
            isinstance(block, AttentionBlock)
            and hasattr(owner, shared.flag)
            and position is not None
            and any(same_place(name, block.name) for name in losing)
        ):
            source = next((m for name, m in tables.items() if same_place(name, block.name)), None)
            if source is not None and not _has_table(owner):
                for table in _tables(source):
                    journal.put(owner, table, copy.deepcopy(getattr(source, table)))
                journal.put(owner, shared.flag, True)
                block = read_block(block.place, block.site, block.layout, block.unit)
            if not _drops(owner):
                hook = DropArgument(shared.argument, position)
                journal.call_later(owner.register_forward_pre_hook(hook, with_kwargs=True).remove)
        untied.append(block)
    return tuple(untied)


def _drops(owner: nn.Module) -> bool:
    hooks: dict[int, object] = vars(owner)["_forward_pre_hooks"]
    return any(isinstance(hook, DropArgument) for hook in hooks.values())


def _tables(owner: nn.Module) -> list[str]:
    return [name for name in SHARED_BIAS.tables if hasattr(owner, name)]


def _has_table(owner: nn.Module) -> bool:
    return bool(getattr(owner, SHARED_BIAS.flag, False)) and bool(_tables(owner))


def same_place(one: str, other: str) -> bool:
    """Whether two paths name the same module of two layers: they differ in one number at most."""
    a, b = one.split("."), other.split(".")
    differing = [(x, y) for x, y in zip(a, b, strict=False) if x != y]
    return (
        len(a) == len(b)
        and len(differing) <= 1
        and all(x.isdecimal() and y.isdecimal() for x, y in differing)
    )
