"""The attention maps of every unit, cropped to the real tokens."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cahp_opt.arrays import Floats
from cahp_opt.runs.measuring import Measuring
from cahp_opt.stats.statistic import Statistic
from cahp_opt.stats.totals import PerPair
from cahp_opt.torch.blocks.finder import AttentionBlock, Prunable
from cahp_opt.torch.calibration.collector import Collecting, Collector, Dense, Subject, at_least_0
from cahp_opt.torch.running.batches import Batch, batch_size, inputs_of, real_tokens, wide
from cahp_opt.torch.running.undisturbed import without_new_hooks

_EAGER = "eager"  # the only implementation that returns its attention maps


class AttentionMaps:
    """Reads attention maps from a model that returns them. The map of a key/value group is the mean
    of its heads'.

    Args:
        prunable: the blocks of the model, which is in evaluation mode.
        option: the argument of :func:`~cahp_opt.torch.calibrate` that asks for them, for messages.

    Raises:
        ValueError: if some of the blocks are no attention.
    """

    def __init__(self, prunable: Prunable, option: str) -> None:
        if prunable.feed_forward:
            raise ValueError(
                f"`{option}` asks for attention maps, which feed-forward parts such as "
                f"{prunable.feed_forward[0].name!r} do not have; calibrate with `{option}=0`, or attention "
                "alone (`find_attention`, `--prune heads`)."
            )
        self._model, self._blocks, self._option = prunable.model, prunable.attention, option

    def each(self, batch: Batch) -> Iterator[Tensor]:
        """For every example the maps of all units over its real tokens, ``[n, tokens, tokens]``.

        Raises:
            ValueError: if the model does not return its attention maps.
        """
        with torch.no_grad(), without_new_hooks(self._model), eager_attention(self._model):
            output: Any = self._model(**{**inputs_of(batch), "output_attentions": True})
        maps = self._unit_maps(getattr(output, "attentions", None), batch)
        real = real_tokens(batch).to(maps.device)
        if real.shape != (len(maps), maps.shape[2]):  # images: every patch is real
            real = torch.ones(len(maps), maps.shape[2], dtype=torch.bool, device=maps.device)
        for example, mask in zip(maps, real, strict=True):
            yield example[:, mask][:, :, mask]

    def _unit_maps(self, attentions: Sequence[Any] | None, batch: Batch) -> Tensor:
        """Attention maps of all units side by side, ``[batch, n, tokens, tokens]``."""
        blocks = self._blocks
        found = [a for a in attentions or () if isinstance(a, Tensor) and a.ndim == 4]
        if [a.shape[1] for a in found] != [b.heads for b in blocks]:
            raise ValueError(
                f"`model` returned attention maps with {[a.shape[1] for a in found]} heads, and its "
                f"blocks have {[b.heads for b in blocks]}; calibrate with `{self._option}=0`."
            )
        size = batch_size(batch)
        if {(len(a), *a.shape[2:]) for a in found} != {(size, *found[0].shape[2:3] * 2)}:
            raise ValueError(
                f"`model` returned attention maps of the shapes {[list(a.shape) for a in found]}, which "
                f"cannot be compared; calibrate with `{self._option}=0`."
            )
        device = found[0].device
        grouped = [
            _by_unit(wide(a).to(device), block) for a, block in zip(found, blocks, strict=True)
        ]
        return torch.cat(grouped, dim=1)


def _by_unit(maps: Tensor, block: AttentionBlock) -> Tensor:
    """The maps ``[batch, heads, ...]`` of a block's heads as the means over every unit's heads."""
    of_head = block.columns[:: block.head_dim]
    heads = np.argsort(of_head, kind="stable").tolist()
    return maps[:, heads].reshape(len(maps), block.units, -1, *maps.shape[2:]).mean(dim=2)


@contextmanager
def eager_attention(model: nn.Module) -> Generator[None, None, None]:
    """Eager attention inside; afterwards the implementation of before."""
    config: Any = getattr(model, "config", None)
    before: str | None = getattr(config, "_attn_implementation", None)
    change: Any = getattr(model, "set_attn_implementation", None)
    if before in (None, _EAGER) or change is None:
        yield
        return
    try:
        change(_EAGER)
        yield
    finally:
        change(before)


@dataclass(frozen=True)
class MapDivergences(Collector):
    """Asks for the Jensen-Shannon divergence between every two units' attention maps.

    Args:
        examples: the number of examples, from the start; None for all.
    """

    examples: int | None = 64

    def __post_init__(self) -> None:
        at_least_0("divergence_examples", self.examples)

    @classmethod
    def wanted(cls, measuring: Measuring) -> MapDivergences | None:
        asked = "divergence" in measuring and measuring.amounts.divergence_examples != 0
        return cls(measuring.amounts.divergence_examples) if asked else None

    def start(self, subject: Subject) -> DivergenceSums:
        return DivergenceSums(subject.prunable)


class DivergenceSums(Collecting):
    """Adds up the Jensen-Shannon divergence (Lin 1991; nats) between every two units' attention maps.

    Per example it is the mean over the real query positions of the divergence between two
    distributions over the real key positions.
    """

    def __init__(self, prunable: Prunable) -> None:
        self._maps = AttentionMaps(prunable, "divergence_examples")
        n = prunable.space.n
        self._sum: Floats = np.zeros((n, n))
        self._count = 0

    def add(self, batch: Batch, dense: Dense) -> None:
        """Add one batch.

        Raises:
            ValueError: if the model does not return its attention maps.
        """
        del dense
        for maps in self._maps.each(batch):
            self._sum += jensen_shannon(maps)
        self._count += batch_size(batch)

    def result(self) -> Mapping[str, Statistic]:
        """Sum over examples of the divergences, ``[n, n]``."""
        return {"divergence": PerPair(self._sum, self._count)}


def jensen_shannon(maps: Tensor) -> Floats:
    """Mean over queries of the pairwise divergence of ``maps [n, queries, keys]``, shape ``[n, n]``.

    Rows are normalised over the keys; a row that attends to none of them counts as uniform.
    """
    keys = maps.shape[2]
    total = maps.sum(dim=2, keepdim=True)
    p = torch.where(total > 0, maps / total, 1 / keys).flatten(1)  # [n, queries * keys]
    queries = maps.shape[1]
    entropy = -torch.xlogy(p, p).sum(dim=1)
    n = len(p)
    result = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n - 1):
        middle = (p[i] + p[i + 1 :]) / 2
        mixed = -torch.xlogy(middle, middle).sum(dim=1)
        row = (mixed - (entropy[i] + entropy[i + 1 :]) / 2) / queries
        result[i, i + 1 :] = row.clamp(min=0).cpu().double()  # below 0 by rounding only
    return (result + result.T).numpy()
