"""The ways of choosing heads and neurons that are compared, and how each repairs what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from benchmarks.both_kinds.draws import Draw
from cahp_opt import Budget, HeadSpace, LatencyTable, Objective, Problem, Solver, select
from cahp_opt.arrays import Bools, Ints
from cahp_opt.objectives import Modular
from cahp_opt.selection import Chooser
from cahp_opt.solvers import DynamicProgram, RandomSubset
from cahp_opt.torch import Prunable, refit, tune_masks


class Chosen(NamedTuple):
    """What stays.

    Args:
        dense: the blocks of the unpruned model, in the units that were chosen from.
        kept: bool ``[n]``.
    """

    dense: Prunable
    kept: Bools


class Method(NamedTuple):
    """A way of pruning.

    Args:
        name: what tables call it.
        choose: what stays, within a share of the unpruned time.
        repair: mends the sliced model, whose blocks come first.
    """

    name: str
    choose: Callable[[Draw, float], Chosen]
    repair: Callable[[Prunable, Draw, Chosen], None]


def refitted(small: Prunable, draw: Draw, chosen: Chosen) -> None:
    """The library's refit, with the weights of tokens."""
    refit(small, chosen.dense, draw.batches, weighting=draw.weights)


def tuned(small: Prunable, draw: Draw, chosen: Chosen) -> None:
    """Mask tuning, on the texts that gave the Fisher matrices."""
    tune_masks(small, chosen.dense, draw.labelled)


def _best(
    objective: Objective, budget: Budget, solver: Solver | None = None, seed: int = 0
) -> Bools:
    return select(Problem(objective, budget), solver or DynamicProgram(), seed=seed).kept


def _among(kinds: Callable[[HeadSpace], Bools]) -> Callable[[Draw, float], Chosen]:
    """The method of the library with only some blocks pruned, bool ``[blocks]`` by ``kinds``."""

    def choose(draw: Draw, share: float) -> Chosen:
        space = draw.stats.space
        fewest = np.where(kinds(space), 0, space.units)
        budget = Budget.latency(draw.table, share, minimum=fewest.tolist())
        return Chosen(draw.ordered, _best(draw.explained, budget))

    return choose


def _even(draw: Draw, share: float) -> Chosen:
    counts = even(draw.table, share)
    fixed = Budget(draw.stats.space, (), counts.tolist(), counts.tolist())
    return Chosen(draw.ordered, _best(draw.explained, fixed))


def even(table: LatencyTable, share: float) -> Ints:
    """Units per block, ``[blocks]``, at least one: shares as even over all blocks as the time has room for.

    Raises:
        BudgetError: if one unit per block takes too long.
    """
    units, budget = table.space.units, Budget.latency(table, share, minimum=1)
    counts = np.ones_like(units)
    grown = True
    while grown:
        grown = False
        for block in np.argsort(counts / units, kind="stable"):
            more = counts + (np.arange(len(units)) == block)
            if more[block] <= units[block] and budget.allows(more):
                counts, grown = more, True
                break
    return counts


def _single(
    chooser: Callable[[Draw], Chooser],
) -> Callable[[Draw, float], Chosen]:
    """A method of the library that ranks single neurons."""

    def choose(draw: Draw, share: float) -> Chosen:
        found = chooser(draw)(Budget.latency(draw.table, share))
        return Chosen(draw.grouped.grouped(found.space), found.kept)

    return choose


def _random(draw: Draw, share: float) -> Chosen:
    anything = Modular(np.ones(draw.grouped.space.n))
    budget = Budget.latency(draw.table, share)
    return Chosen(draw.grouped, _best(anything, budget, RandomSubset(), draw.seed))


_kwon = _single(lambda draw: draw.kwon)

METHODS: Mapping[str, Method] = {
    "both": Method(
        "heads and neurons", _among(lambda s: np.ones(len(s.blocks), np.bool_)), refitted
    ),
    "neurons": Method("neurons alone", _among(lambda s: ~s.of_attention), refitted),
    "heads": Method("heads alone", _among(lambda s: s.of_attention), refitted),
    "even": Method("the same share everywhere", _even, refitted),
    "kwon": Method("Kwon et al. 2022", _kwon, tuned),
    "kwon-refit": Method("Kwon et al. 2022, refitted instead of tuned", _kwon, refitted),
    "magnitude": Method("magnitude", _single(lambda draw: draw.magnitude), refitted),
    "random": Method("random", _random, refitted),
}
"""By the name that the command line takes."""
