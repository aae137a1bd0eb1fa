"""The laws of objectives, each stated once, and the check of an objective against all of them."""

from __future__ import annotations

import math

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.objective import Objective
from cahp_opt.space import HeadSpace
from cahp_opt.testing.broken_law import BrokenLaw, found_on, require


def check_objective(
    objective: Objective, space: HeadSpace, *, chains: int = 30, seed: int = 0
) -> None:
    """Check an objective against the laws on random keep-sets.

    Its value must be finite, the same for the same keep-set, and leave that as it is; its gains and its
    trackers must say what the value says, after any additions and removals; and what it declares must
    hold: ``monotone``, ``submodular``, ``linear``, ``quadratic``, ``coverage``, ``separable``. What
    is declared falsely only for a few keep-sets of many may need more chains.

    Args:
        objective: the objective; a few units are enough, and quick.
        space: its units, ``objective.n`` of them.
        chains: how many random sequences of changes to follow, and pairs of keep-sets to compare.
        seed: of the first chain; the following ones count on from it.

    Raises:
        BrokenLaw: an ``AssertionError``; it names the law, the seed of the chain, and what came.
        TypeError: if it is not an objective.
        ValueError: if there is no chain to follow.
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"`objective` must be an Objective, got {objective!r}.")
    if chains < 1:
        raise ValueError(f"`chains` must be at least 1, got {chains}.")
    name = type(objective).__name__
    require(
        objective.n == space.n, f"`{name}` has n = {objective.n}, and `space` has {space.n} units."
    )
    for chain in range(seed, seed + chains):
        with found_on(f"the chain of seed {chain} over blocks of {space.units.tolist()} units"):
            check_tracker(objective, np.random.default_rng(chain))
            check_declared_facts(objective, space, np.random.default_rng(chain))


def check_tracker(objective: Objective, rng: np.random.Generator) -> None:
    """A tracker says what the objective says, after any sequence of additions and removals."""
    name = type(objective).__name__
    kept = _random(rng, objective.n)
    start, given = kept, kept.copy()
    tracker = objective.tracker(given)
    unit, changes = 0, ""
    for _ in range(12):
        if rng.random() < 0.6:  # else the same unit again: its flip is taken back
            unit = int(rng.integers(objective.n))
        (tracker.remove if kept[unit] else tracker.add)(unit)
        changes += f" {'-' if kept[unit] else '+'}{unit}"
        kept = _flipped(kept, unit)
        value = _value(objective, kept)
        after = f"the tracker of `{name}`, from {_units(start)} after{changes}"
        slack = _slack(objective, value)
        require(np.array_equal(tracker.kept, kept), f"{after}, keeps {_units(tracker.kept)}.")
        direct = np.array(
            [_value(objective, _flipped(kept, i)) - value for i in range(objective.n)]
        )
        gains, own, one = tracker.gains(), objective.gains(kept), tracker.gain(unit)
        some = rng.permutation(objective.n)[: int(rng.integers(objective.n + 1))]
        asked = tracker.gains(some)
        answers: tuple[tuple[str, float | Floats, float | Floats, str], ...] = (
            ("says", tracker.value, value, ""),
            ("has the gains", gains, direct, ""),
            ("has the gains", asked, direct[some], f" for {some.tolist()}"),
            ("has the gain", one, direct[unit], f" for {unit}"),
        )
        # No sentence without need, here and in `_value`: an array takes longer to write down than to compare.
        for says, came, right, where in answers:
            if not _close(came, right, slack):
                raise BrokenLaw(f"{after}, {says} {came}{where}, not {right}.")
        if not _close(own, direct, slack):
            raise BrokenLaw(f"`{name}` has the gains {own} at {_units(kept)}, not {direct}.")
    require(
        np.array_equal(given, start),
        f"a tracker of `{name}` changes the keep-set that it is given; it must copy it.",
    )


def check_declared_facts(objective: Objective, space: HeadSpace, rng: np.random.Generator) -> None:
    """What an objective declares, and the structure it offers, holds at random keep-sets."""
    name = type(objective).__name__
    larger = _random(rng, space.n)
    smaller = larger & _random(rng, space.n)
    slack = _slack(objective)
    out = np.flatnonzero(~larger)
    at_large, at_small = objective.gains(larger)[out], objective.gains(smaller)[out]
    for kept, gains in ((larger, at_large), (smaller, at_small)):
        require(
            not objective.monotone or np.all(gains >= -slack),
            f"`{name}` declares `monotone`, and adding one of {out.tolist()} to {_units(kept)} changes "
            f"the value by {gains}.",
        )
    require(
        not objective.submodular or np.all(at_large <= at_small + slack),
        f"`{name}` declares `submodular`, and {out.tolist()} gain {at_small} beside {_units(smaller)}, "
        f"but {at_large} beside {_units(larger)}.",
    )
    _check_forms(objective, larger, slack)
    _check_separable(objective, space, smaller, slack)


def _check_forms(objective: Objective, kept: Bools, slack: float) -> None:
    """The forms that an objective offers have its value."""
    weights, form, cover = objective.linear(), objective.quadratic(), objective.coverage()
    x, said = kept.astype(float), dict[str, float]()
    if weights is not None:
        said["linear"] = float(weights @ x)
    if form is not None:
        said["quadratic"] = float(form.constant + form.linear @ x + x @ form.pairwise @ x)
    if cover is not None and kept.any():
        said["coverage"] = float(cover.weights @ cover.similarity[:, kept].max(axis=1))
    value = _value(objective, kept)
    for method, came in said.items():
        require(
            _close(came, value, slack),
            f"`{type(objective).__name__}` has the value {value} at {_units(kept)}, but {came} by its "
            f"`{method}`.",
        )


def _check_separable(objective: Objective, space: HeadSpace, kept: Bools, slack: float) -> None:
    """The tables of best subsets hold what a subset adds to the other blocks, whatever those keep."""
    name = type(objective).__name__
    for b, table in enumerate(objective.separable(space) or ()):
        where, whole = space.slices[b], kept.copy()
        whole[where] = False
        others, rest = _units(whole), _value(objective, whole)
        for k, (best, subset) in enumerate(zip(table.values, table.kept, strict=True)):
            whole[where] = subset
            came = _value(objective, whole) - rest
            require(
                subset.sum() == k and _close(came, best, slack),
                f"`{name}` gives {best} to the best {k} units of block {b} in `separable`, "
                f"{_units(subset)}; they add {came} to {others}.",
            )
        came, best = _value(objective, kept) - rest, table.most[kept[where].sum()]
        require(
            came <= best + slack,
            f"`{name}` gives {best} to the best {kept[where].sum()} units of block {b} in `separable`; "
            f"{_units(kept[where])} add {came} to {others}.",
        )


def _value(objective: Objective, kept: Bools) -> float:
    """The value, which must be finite and leave the keep-set as it is."""
    given = kept.copy()
    value = objective.value(given)
    name = type(objective).__name__
    if not np.array_equal(given, kept):
        raise BrokenLaw(f"`{name}.value` changes the keep-set {_units(kept)}.")
    if not math.isfinite(value):
        raise BrokenLaw(f"`{name}` has the value {value} at {_units(kept)}.")
    return value


def _slack(objective: Objective, value: float = 0.0) -> float:
    """How far rounding may take numbers apart that are made of values of this size."""
    return 1e-8 * max(1.0, abs(value), abs(objective.value(np.ones(objective.n, dtype=np.bool_))))


def _close(came: float | Floats, right: float | Floats, slack: float) -> bool:
    return np.shape(came) == np.shape(right) and bool(np.all(np.abs(came - right) <= slack))


def _random(rng: np.random.Generator, n: int) -> Bools:
    """A keep-set of random density, so that few and nearly all units are as likely as half of them."""
    kept: Bools = rng.random(n) < rng.random()
    return kept


def _flipped(kept: Bools, unit: int) -> Bools:
    flipped = kept.copy()
    flipped[unit] ^= True
    return flipped


def _units(kept: Bools) -> list[int]:
    return [int(unit) for unit in np.flatnonzero(kept)]
