"""Random calibration statistics: every statistic, over any units."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeAlias
from zlib import crc32

import numpy as np

from cahp_opt.arrays import Floats, constant
from cahp_opt.space import Block, HeadSpace
from cahp_opt.stats.column_form import ColumnForm
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.moments import BlockMoments, Moments
from cahp_opt.stats.sensitivity import BlockSensitivity, Sensitivity
from cahp_opt.stats.signatures import Signatures
from cahp_opt.stats.statistic import Statistic
from cahp_opt.stats.totals import PairsByDensity, PerPair, PerUnit

_EXAMPLES, _TOKENS = 10, 60
_HIDDEN = 5
_PER_UNIT = 2  # columns of a unit of attention, and of a group of neurons whose width is not stated


def random_stats(
    space: HeadSpace,
    seed: int = 0,
    *,
    names: Collection[str] | None = None,
    densities: Sequence[float] = (1.0, 0.5),
) -> HeadStats:
    """Statistics of a model that nobody measured.

    The numbers of a block depend on its name and the seed alone: of the same blocks in another order they are
    the same in that order.

    Args:
        space: the units.
        seed: the only source of randomness.
        names: the statistics; None for all that such units have, which are attention maps only if all of them
            are attention.
        densities: of the random masks of the second-order matrices.

    Raises:
        ValueError: for the name of a statistic that nothing here makes.
    """
    if names is None:
        maps = space.of_attention.all()
        names = [name for name in MADE if maps or name not in OF_ATTENTION_MAPS]
    unknown = sorted(set(names) - set(MADE))
    if unknown:
        raise ValueError(f"`names` has {unknown}; statistics that can be made: {list(MADE)}.")
    found = {name: MADE[name](space, seed, densities) for name in MADE if name in names}
    return HeadStats(space, "a model of random numbers", _EXAMPLES, _TOKENS, statistics=found)


StatisticMaker: TypeAlias = Callable[[HeadSpace, int, Sequence[float]], Statistic]
"""Makes a statistic over these units, by the seed, at these densities where it has any."""


def _draws(space: HeadSpace, seed: int, what: str) -> Iterator[tuple[Block, np.random.Generator]]:
    """Every block with a generator of its own, by its name and what is made."""
    for block in space.blocks:
        yield block, np.random.default_rng([seed, crc32(f"{what} of {block.name}".encode())])


def _vectors(space: HeadSpace, seed: int, what: str, size: int) -> Floats:
    """Some normal numbers for every unit, ``[n, size]``."""
    return np.concatenate(
        [rng.normal(size=(block.units, size)) for block, rng in _draws(space, seed, what)]
    )


def _salience(space: HeadSpace, seed: int, densities: Sequence[float]) -> PerUnit:
    del densities
    return PerUnit(_EXAMPLES * np.abs(_vectors(space, seed, "salience", 1)[:, 0]), _EXAMPLES)


def _second_order(what: str) -> StatisticMaker:
    def make(space: HeadSpace, seed: int, densities: Sequence[float]) -> PairsByDensity:
        gradients = _vectors(space, seed, what, 2 * _EXAMPLES)
        by_density = np.linspace(0, 1, gradients.shape[1])
        of = {rho: gradients * (1 + rho * by_density) for rho in densities}
        return PairsByDensity({rho: PerPair(g @ g.T, _EXAMPLES) for rho, g in of.items()})

    return make


def _outputs(
    space: HeadSpace, seed: int, what: str
) -> Iterator[tuple[np.random.Generator, Floats, Floats]]:
    """For every block what its units put out, ``[tokens, d]``, and what its projection makes of that,
    ``[hidden, d]``."""
    for block, rng in _draws(space, seed, what):
        d = len(block.order) if block.order is not None else _PER_UNIT * block.units
        yield (
            rng,
            rng.normal(size=(_TOKENS, d)) @ rng.normal(size=(d, d)),
            rng.normal(size=(_HIDDEN, d)),
        )


def _moments(space: HeadSpace, seed: int, densities: Sequence[float]) -> BlockMoments:
    del densities
    found: list[Moments] = []
    for _, z, projection in _outputs(space, seed, "moments"):
        apart = z - z.mean(axis=0)
        form = ColumnForm.small(projection)
        found.append(Moments(z.sum(axis=0), constant(apart.T @ apart), form, _TOKENS))
    return BlockMoments(found)


def _sensitivity(space: HeadSpace, seed: int, densities: Sequence[float]) -> BlockSensitivity:
    del densities
    found: list[Sensitivity] = []
    for rng, z, projection in _outputs(space, seed, "sensitivity"):
        gradients = rng.normal(size=(_TOKENS, _HIDDEN))
        weight = (gradients**2).sum(axis=1)
        whole = float(weight.sum())
        apart = z - weight @ z / whole
        form = ColumnForm.small(projection, constant(gradients.T @ gradients))
        scatter = constant((weight * apart.T) @ apart)
        found.append(Sensitivity(weight @ z, scatter, form, whole, _EXAMPLES))
    return BlockSensitivity(found)


def _divergence(space: HeadSpace, seed: int, densities: Sequence[float]) -> PerPair:
    del densities
    points = _vectors(space, seed, "divergence", 3)
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    return PerPair(_EXAMPLES * np.log(2) * -np.expm1(-apart), _EXAMPLES)


def _signatures(space: HeadSpace, seed: int, densities: Sequence[float]) -> Signatures:
    del densities
    counts = np.array([_EXAMPLES // 2, _EXAMPLES - _EXAMPLES // 2])
    maps = _vectors(space, seed, "signatures", 16).reshape(space.n, 2, 2, 4)
    both = maps.reshape(space.n, 2, 2, 2, 2).transpose(1, 2, 0, 3, 4)
    return Signatures(counts, both[0], both[1] ** 2 + 1)


# To add a statistic, add a line with its maker here.
MADE: Mapping[str, StatisticMaker] = {
    "salience": _salience,
    "gauss_newton": _second_order("gauss_newton"),
    "fisher": _second_order("fisher"),
    "moments": _moments,
    "sensitivity": _sensitivity,
    "divergence": _divergence,
    "signatures": _signatures,
}
"""Makers of every statistic of the library, by name."""

OF_ATTENTION_MAPS = frozenset({"divergence", "signatures"})
"""Statistics that feed-forward parts do not have."""

OF_LABELS = frozenset({"fisher", "signatures"})
"""Statistics that labelled texts alone have."""
