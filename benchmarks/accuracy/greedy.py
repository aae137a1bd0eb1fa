"""Greedy removal by the true damage: no model of it, only many forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cahp_opt.arrays import Bools
from cahp_opt.torch import fidelity_of, find_attention
from cahp_opt.torch.recovery.layer_walk import first_input, layer_of, with_first_input
from cahp_opt.torch.running.batches import Batch, inputs_of
from cahp_opt.torch.running.gates import gated


def removal_path(model: nn.Module, batches: Sequence[Batch], least: int = 0) -> list[int]:
    """Units in the order in which they are removed, each time the one whose removal leaves the output
    closest to the dense model's; one nested path serves all budgets.

    A candidate changes nothing before its own layer, so its run starts there.

    Args:
        model: a classifier whose layers stand in one list, in evaluation mode.
        batches: what the output is compared on.
        least: units that are left at the end.
    """
    attention = find_attention(model)
    space, fidelity = attention.space, fidelity_of(model)
    layers = [layer_of(model, block) for block in attention]
    kept: Bools = np.ones(space.n, dtype=np.bool_)
    path = list[int]()
    with torch.inference_mode():
        dense = [fidelity.output(model(**inputs_of(batch)), batch) for batch in batches]
        while kept.sum() > least:
            with gated(attention, kept):
                states = [_states(model, layers, batch) for batch in batches]
            damage = np.full(space.n, np.inf)
            for unit in np.flatnonzero(kept):
                there, block = kept.copy(), int(space.block_of[unit])
                there[unit] = False
                with gated(attention, there):
                    damage[unit] = sum(
                        float(fidelity.distance(d, _resumed(model, layers, block, s, b), b).sum())
                        for d, s, b in zip(dense, states, batches, strict=True)
                    )
            path.append(int(damage.argmin()))
            kept[path[-1]] = False
    return path


def along(path: Sequence[int], n: int, removed: int) -> Bools:
    """What is kept after so many removals."""
    kept = np.ones(n, dtype=np.bool_)
    kept[list(path[:removed])] = False
    return kept


def _states(model: nn.Module, layers: Sequence[nn.Module], batch: Batch) -> list[Tensor]:
    """What enters every layer."""
    states = list[Tensor]()
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: states.append(first_input(module, args, kwargs)),
            with_kwargs=True,
        )
        for layer in layers
    ]
    try:
        model(**inputs_of(batch))
    finally:
        for hook in hooks:
            hook.remove()
    return states


def _resumed(
    model: Any, layers: Sequence[nn.Module], block: int, states: Sequence[Tensor], batch: Batch
) -> Tensor:
    """The output of a run whose first layer is that of ``block``."""
    stack = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and layers[0] in m)
    before = stack._modules
    hook = layers[block].register_forward_pre_hook(
        lambda module, args, kwargs: with_first_input(module, args, kwargs, states[block]),
        with_kwargs=True,
    )
    try:
        stack._modules = type(before)((str(i), m) for i, m in enumerate(layers[block:]))
        return fidelity_of(model).output(model(**inputs_of(batch)), batch)
    finally:
        stack._modules = before
        hook.remove()
