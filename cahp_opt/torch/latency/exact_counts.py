"""Exact counts for a model: its weights, their bytes, and the bytes of its cache."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cahp_opt.arrays import Floats, Ints
from cahp_opt.costs.cost_table import CostTable
from cahp_opt.costs.provenance import Provenance
from cahp_opt.space import Unit
from cahp_opt.torch.blocks.blocks import Piece, PrunableBlock
from cahp_opt.torch.blocks.finder import Prunable, UnsupportedModelError, blocks_of
from cahp_opt.torch.blocks.fingerprint import structure
from cahp_opt.torch.latency.weightless import rehearse
from cahp_opt.torch.running.batches import Batch, inputs_of, prepare
from cahp_opt.torch.running.cache_tensors import bytes_of, cache_bytes
from cahp_opt.torch.running.undisturbed import evaluating
from cahp_opt.torch.running.undo import Journal
from cahp_opt.torch.slicing.shared_bias import untied
from cahp_opt.torch.slicing.slicing import thin_copy

Slot = tuple[nn.Module, str]
"""A parameter by the module that holds it and its name there: slicing replaces it there alone."""


def count_resources(
    model: nn.Module | Prunable, batch: Batch | None = None, *, unit: Unit | None = None
) -> dict[str, CostTable]:
    """Exact resource tables for every block and number of kept units, computed rather than
    measured.

    ``parameters`` counts the weights, and ``memory`` the bytes of parameters and buffers, each tensor once.
    ``kv_cache`` is the bytes of the key/value cache after a forward pass over ``batch``, for models
    that return one; feed-forward blocks have no part in it. No unit kept costs as much as one,
    because slicing keeps the storage of one; only of the cache, a block that is skipped (see
    :func:`~cahp_opt.torch.bypass_empty`) takes less than the table says.

    Every sliced model holds exactly what a table predicts, with one exception: stacks of T5 share
    a table of biases as long as nothing of the stack is cut, and afterwards every block has its own. It is
    always counted as the block's own, so the prediction for a whole stack is a little too large.

    Args:
        model: the model, which may be on the meta device, or its blocks; it is not changed.
        batch: keyword arguments for the model, as many examples and tokens as the cache is to hold; runs
            twice. None to leave the cache out.
        unit: as for :func:`~cahp_opt.torch.find_attention`.

    Returns:
        The tables by name.

    Raises:
        UnsupportedModelError: if the model's attention is not understood, or the units of a block differ
            in size.
        ValueError: for a batch that cannot be used, or a model on the meta device whose forward depends
            on values.
    """
    return count_held(blocks_of(model, unit), batch)


def count_held(prunable: Prunable, batch: Batch | None = None) -> dict[str, CostTable]:
    """:func:`count_resources` for blocks that were found already."""
    model, name = prunable.model, structure(prunable.model)
    tables = _weight_tables(prunable)
    if batch is not None:
        device = torch.device("cpu") if _is_bare(model) else None
        inputs = inputs_of(prepare(batch, model, "batch", device))
        cache = _cache_table(prunable, inputs)
        if cache is not None:
            tables["kv_cache"] = cache
    return {
        kind: replace(table, provenance=Provenance(model=name)) for kind, table in tables.items()
    }


def _weight_tables(prunable: Prunable) -> dict[str, CostTable]:
    model, space, journal = prunable.model, prunable.space.unordered(), Journal()
    costs = {"parameters": list[Floats](), "memory": list[Floats]()}
    try:  # counted after untying, which is then undone
        blocks = untied(prunable, np.zeros(space.n, dtype=np.bool_), journal)
        slots = [_slots(block) for block in blocks]
        inside = {slot for own in slots for slot in own}
        outside = {
            id(parameter): parameter
            for module in model.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if (module, name) not in inside
        }
        for block, own in zip(blocks, slots, strict=True):
            count, size = np.zeros(block.units + 1), np.zeros(block.units + 1)
            for (module, name), pieces in own.items():
                weight = module.get_parameter(name)
                left = _left(block, weight, pieces)
                count += left
                size += left * weight.element_size()
            costs["parameters"].append(count)
            costs["memory"].append(size)
    finally:
        journal.restore()
    others = list(outside.values())
    weights = sum(tensor.numel() for tensor in others)
    total = sum(bytes_of(tensor) for tensor in (*others, *model.buffers()))
    return {
        "parameters": CostTable(space, weights, tuple(costs["parameters"]), "weights"),
        "memory": CostTable(space, total, tuple(costs["memory"]), "bytes"),
    }


def _slots(block: PrunableBlock) -> dict[Slot, list[Piece]]:
    slots: dict[Slot, list[Piece]] = defaultdict(list)
    for piece in block.pieces:
        parent, _, name = piece.path.rpartition(".")
        slots[block.site.get_submodule(parent), name].append(piece)
    return slots


def _left(block: PrunableBlock, weight: Tensor, pieces: list[Piece]) -> Ints:
    """The entries of a parameter that are left at every count, ``[units + 1]``."""
    entries = np.full(block.units + 1, weight.numel())
    for piece in pieces:
        size = np.bincount(piece.unit_of[piece.unit_of >= 0], minlength=block.units)
        if np.any(size != size[0]):
            raise UnsupportedModelError(
                f"the units of {block.name} have {size.tolist()} entries of {piece.path}; units of "
                "different sizes cannot be counted, because a budget sees only the number kept."
            )
        gone = block.units - _stored(block.units)
        entries = entries // len(piece.unit_of) * (len(piece.unit_of) - gone * size[0])
    return entries


def _stored(units: int) -> Ints:
    """The number of units stored for every count of kept ones: at least one."""
    return np.maximum(np.arange(units + 1), 1)


def _cache_table(prunable: Prunable, inputs: Mapping[str, Any]) -> CostTable | None:
    """From two runs, of all units and of one per block; in between, the cache grows evenly."""
    space = prunable.space.unordered()
    with evaluating(prunable.model):
        most = _run(prunable, inputs)
        if most is None:
            return None
        first = np.zeros(space.n, dtype=np.bool_)
        first[[where.start for where in space.slices]] = True
        least = _run(prunable.at(thin_copy(prunable, first)), inputs)
    if least is None or least[1] != most[1]:
        raise UnsupportedModelError(
            "the cache has tensors that depend on the kept units and belong to no attention block; "
            "leave `batch` out to count the weights alone."
        )
    costs = [np.zeros(units + 1) for units in space.units.tolist()]
    of_attention = np.flatnonzero(space.of_attention).tolist()
    for index, low, high in zip(of_attention, least[0], most[0], strict=True):
        block = space.blocks[index]
        size, rest = divmod(high - low, max(block.units - 1, 1))
        if rest:
            raise UnsupportedModelError(
                f"the cache of {block.name} has {low} bytes for one unit and {high} for {block.units}: "
                "its units differ in size; leave `batch` out to count the weights alone."
            )
        costs[index] += low + (_stored(block.units) - 1) * size
    return CostTable(space, most[1], tuple(costs), "bytes")


def _run(prunable: Prunable, inputs: Mapping[str, Any]) -> tuple[list[int], int] | None:
    model, sites = prunable.model, [block.site for block in prunable.attention]
    if _is_bare(model):
        return rehearse(model, sites, inputs, cache_bytes)
    return cache_bytes(model, sites, inputs)


def _is_bare(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())
