"""Mask tuning: every unit that is left gets a factor, by least squares (Kwon et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cahp_opt.arrays import Floats, Ints
from cahp_opt.progress import Progress, silent
from cahp_opt.runs.recovery import Weighting
from cahp_opt.torch.blocks.blocks import FeedForwardBlock, out_weight
from cahp_opt.torch.blocks.finder import Prunable, PrunableBlock
from cahp_opt.torch.blocks.linear_layers import column_tensors
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.recovery.feed_forward import is_used_once
from cahp_opt.torch.recovery.kept_streams import STREAM_BYTES
from cahp_opt.torch.recovery.layer_walk import Place, check_runs_once
from cahp_opt.torch.recovery.matching import both_found, check_match
from cahp_opt.torch.recovery.path import check_walkable, places_of
from cahp_opt.torch.recovery.side_by_side import Gap, SideBySide
from cahp_opt.torch.recovery.token_weights import TokenWeights
from cahp_opt.torch.running.batches import Batch, length
from cahp_opt.torch.running.centring import double_home
from cahp_opt.torch.running.preparing import prepared
from cahp_opt.torch.running.repeatable_batches import Repeated
from cahp_opt.torch.running.undisturbed import evaluating

DAMP = 1.0
"""The damping of the publication."""
LARGEST = 10.0
"""The largest absolute mask that tuning may give; the publication's."""


def tune_masks(
    model: nn.Module | Prunable,
    dense: nn.Module | Prunable,
    batches: Iterable[Batch],
    *,
    damp: float = DAMP,
    fidelity: Fidelity | None = None,
    memory: int = STREAM_BYTES,
    progress: Progress = silent,
) -> tuple[Floats, ...]:
    """Tune the masks of a sliced ``model`` and multiply them into its weights, in place.

    Block by block every unit ``i`` that is left gets a factor ``1 + r_i``, with::

        min over r: sum_t |m_t - sum_i r_i a_it|^2 + damp^2 |r|^2

    ``a_it`` is what unit ``i`` writes to the residual stream at token ``t`` in the sliced model, and ``m_t`` is what
    is missing there: the stream behind the block in ``dense`` less that in ``model``, whose earlier blocks are tuned.
    Units are single neurons, however they were grouped for slicing, and units of attention. In the last layer the
    tokens are those alone that the output depends on: of a classifier by its first token, that one.
    No labels, no gradient steps, and no new weights: the factors go into the columns of the output layer.

    It is section 4.3 of Kwon et al. 2022 (arXiv 2204.09656), where LSMR iterates towards the minimum that is solved
    for here. As there, tuning ends where a factor is above :data:`LARGEST`: that block and those behind it keep 1.
    The authors' code tunes to a model that is pruned half way, leaves the first attention alone, and takes all tokens
    in the attention of the last layer.

    A :func:`~cahp_opt.torch.refit` solves for whole columns instead, and repairs more, but fits few texts closely.

    Args:
        model: the sliced model, or its blocks. Only its output layers change; its mode stays.
        dense: the model that it was sliced from, or its blocks, of the same kinds.
        batches: as for :func:`~cahp_opt.torch.refit`; iterated once per block.
        damp: of the least squares, as above.
        fidelity: takes the output, for the tokens that it depends on; None for the one that fits the model's head,
            and all tokens where none does.
        memory: bytes of residual streams to remember, as for :func:`~cahp_opt.torch.refit`.
        progress: called once per block and batch.

    Returns:
        The masks ``1 + r`` of every block, ``[neurons]`` or ``[units]`` that are left. They are 1 in blocks that
        cannot be tuned: routed experts, parts that run several times, and weights that are used elsewhere too.

    Raises:
        UnsupportedModelError: if the attention of a model is not understood.
        ValueError: if the models do not match or cannot be run layer by layer, ``damp`` or ``memory`` is negative,
            ``batches`` is empty, cannot be used or changes, or activations are NaN or infinite.
    """
    if not (damp >= 0 and math.isfinite(damp)):
        raise ValueError(f"`damp` must be a finite number of at least 0, got {damp}.")
    if memory < 0:
        raise ValueError(f"`memory` must be a number of bytes, at least 0, got {memory}.")
    small, whole = both_found(model, dense)
    return tune_found(
        small, whole, batches, damp=damp, fidelity=fidelity, memory=memory, progress=progress
    )


def tune_found(
    small: Prunable,
    whole: Prunable,
    batches: Iterable[Batch],
    *,
    damp: float = DAMP,
    fidelity: Fidelity | None = None,
    memory: int = STREAM_BYTES,
    progress: Progress = silent,
) -> tuple[Floats, ...]:
    """:func:`tune_masks` for blocks that were found already: the masks of every block, ``[masks]``."""
    check_match(small, whole)
    data = Repeated(batches)
    members = [_members(block) for block in small]
    masks: list[Floats] = [
        np.ones(0 if b.ghost else len({*m})) for b, m in zip(small, members, strict=True)
    ]
    with torch.no_grad(), evaluating(small.model, whole.model):
        first = next(prepared(data, whole.model))
        check_runs_once(whole, first)
        layers = _tunable(small, whole, first)
        places = [layer.place for layer in layers]
        sides = SideBySide(small, whole, places, data, length(batches), memory=memory)
        seen = _SeenTokens(whole, layers, fidelity)
        for index, layer in enumerate(layers):
            sums = _Sums.of(layer.block)
            for gap in sides.gaps(index):
                counts = sides.rows(layer.number, seen.of(layer, gap), gap)[:, 0]
                inputs, missing = (
                    sides.rows(layer.number, rows, gap)[counts]
                    for rows in (gap.inputs, gap.missing)
                )
                sums.add(inputs, missing)
                progress(f"tune block {layer.number + 1}/{len(small)}", gap.number + 1, sides.total)
            found = sums.masks(members[layer.number], damp)
            if found is None:
                break
            masks[layer.number] = found
            _multiply(layer.block, found[members[layer.number]])
    return tuple(masks)


def check_tunable(prunable: Prunable, batch: Batch) -> None:
    """Refuse a model, sliced or not, that :func:`tune_masks` could not walk: run one batch through it.

    Args:
        prunable: the blocks of the model, unpruned or sliced.
        batch: keyword arguments for it.

    Raises:
        ValueError: if its layers cannot be run one after the other.
    """
    check_walkable(prunable, batch, feed_forward=bool(prunable.feed_forward))


def tuned(gram: Floats, missing: Floats, damp: float = DAMP) -> Floats | None:
    """The masks of one block, as :func:`tune_masks` states them.

    Args:
        gram: ``sum_t a_it' a_jt``, ``[units, units]``.
        missing: ``sum_t a_it' m_t``, ``[units]``.
        damp: of the least squares.

    Returns:
        The masks ``1 + r``, ``[units]``; None if one is above :data:`LARGEST`, or without a solution.
    """
    damped: Floats = gram + damp**2 * np.eye(len(gram))
    try:
        masks: Floats = 1 + np.asarray(np.linalg.solve(damped, missing), dtype=np.float64)
    except np.linalg.LinAlgError:
        return None
    return masks if np.all(np.abs(masks) <= LARGEST) else None


class _Layer(NamedTuple):
    """A block of the sliced model that is tuned, its number, and where the stream behind it is seen."""

    place: Place
    number: int
    block: PrunableBlock


def _tunable(small: Prunable, whole: Prunable, batch: Batch) -> list[_Layer]:
    """The blocks that may be tuned, in the order of the path."""
    model, theirs = small.model, {id(parameter) for parameter in whole.model.parameters()}
    numbers = {id(block.out): number for number, block in enumerate(small)}
    found = list[_Layer]()
    for place in places_of(whole, batch, feed_forward=bool(whole.feed_forward)):
        out = model.get_submodule(place.out)
        number = numbers.get(id(out))
        own = not any(id(parameter) in theirs for parameter in out.parameters())
        if number is not None and own and is_used_once(model, place.out):
            block = small.blocks[number]
            found.extend([] if block.ghost else [_Layer(place, number, block)])
    return found


class _SeenTokens:
    """The tokens of the last layer that the output depends on.

    Args:
        whole: the blocks of the unpruned model.
        layers: the blocks that are tuned, in the order of the path.
        fidelity: as for :func:`tune_masks`.
    """

    def __init__(
        self, whole: Prunable, layers: Sequence[_Layer], fidelity: Fidelity | None
    ) -> None:
        last = max((layer.place.layer for layer in layers), default=0)
        names = {layer.place.block for layer in layers if layer.place.layer == last}
        self._last = replace(whole, blocks=tuple(b for b in whole if b.name in names))
        self._weights: TokenWeights | None = None
        with suppress(ValueError):  # nothing is known of the model's head
            self._weights = (
                TokenWeights(
                    self._last, fidelity=fidelity, weighting=Weighting.SENSITIVITY, memory=0
                )
                if names
                else None
            )

    def of(self, layer: _Layer, gap: Gap) -> Tensor:
        """Whether every token counts, bool ``[..., 1]``."""
        if self._weights is None or layer.place.block not in {b.name for b in self._last}:
            return torch.ones_like(gap.missing[..., :1], dtype=torch.bool)
        return self._weights.of(layer.place.block, gap.missing, gap.dense_batch, gap.number) != 0


def _members(block: PrunableBlock) -> Ints:
    """The number of the mask of every input column of a block's output layer, ``[width]``."""
    if isinstance(block, FeedForwardBlock):
        return np.arange(block.width)
    return np.unique(block.columns, return_inverse=True)[1].astype(np.int64)


def _multiply(block: PrunableBlock, factors: Floats) -> None:
    """Multiply the input columns of a block's output layer by factors ``[width]``."""
    for path, axis in column_tensors(block.out):
        weight = block.out.get_parameter(path).movedim(axis, -1)
        weight *= torch.tensor(factors.tolist()).to(weight)


@dataclass(eq=False)
class _Sums:
    """Sums over tokens in double precision.

    Args:
        block: whose output layer is tuned.
        inner: of the products of its inputs, ``[width, width]``.
        outer: of the products of its inputs with what is missing, ``[width, hidden]``.
    """

    block: PrunableBlock
    inner: Tensor
    outer: Tensor

    @staticmethod
    def of(block: PrunableBlock) -> _Sums:
        """Empty sums."""
        weight = out_weight(block)
        width, home = weight.shape[1], double_home(weight.device)
        inner = torch.zeros(width, width, dtype=torch.float64, device=home)
        return _Sums(
            block, inner, torch.zeros(width, len(weight), dtype=torch.float64, device=home)
        )

    def add(self, inputs: Tensor, missing: Tensor) -> None:
        """Add rows ``inputs [rows, width]`` and ``missing [rows, hidden]``."""
        self.inner += (inputs.T @ inputs).to(self.inner)
        self.outer += (inputs.T @ missing.to(inputs)).to(self.outer)

    def masks(self, members: Ints, damp: float) -> Floats | None:
        """The masks of the units, ``[units]``; ``members [width]`` states the unit of every column.

        Raises:
            ValueError: if what was added is NaN or infinite.
        """
        weight = out_weight(self.block).to(self.inner)
        gram = (self.inner * (weight.T @ weight)).cpu().numpy()
        missing = (self.outer * weight.T).sum(dim=1).cpu().numpy()
        if not (np.isfinite(gram).all() and np.isfinite(missing).all()):
            raise ValueError(
                f"activations at block {self.block.name!r} hold NaN or infinite values; check the weights and the "
                "precision of both models."
            )
        if len({*members.tolist()}) < len(members):
            unit = np.eye(members.max() + 1)[members]
            gram, missing = unit.T @ gram @ unit, unit.T @ missing
        return tuned(gram, missing, damp)
