"""The exact oracle under every bound: the best counts for values that add up over blocks.

A multiple-choice knapsack (Kellerer, Pferschy and Pisinger 2004, chapter 11) with real costs and one
or several limits: choose one count per block. Dynamic programming over the blocks keeps the states
that no other dominates, and drops those that cannot beat the best known answer by the Lagrangian
bound, for prices ``p_t >= 0`` of the limits::

    sum_t p_t limit_t + sum_b max over k of (values[b][k] - sum_t p_t costs_t[b][k])

Costs become whole numbers on a grid far finer than a double resolves their sum, rounded
down, so that sums are exact and no feasible state is lost; an answer counts only if its exact cost
is within the limit. So the bound is valid and the answer feasible.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.costs.count_table import CountTable

_MOST_STATES = 200_000
_PAIRWISE_DOMINANCE = 2_000
_GRID_BITS = 61  # sums of costs and the room left stay below 2^62


class BestCounts(NamedTuple):
    """The best counts found, ``[blocks]`` (None if none), their value, and an upper bound on any
    value.

    Nothing fits if the bound is minus infinity.
    """

    counts: Ints | None
    value: float
    bound: float


def best_counts(
    values: Sequence[Floats],
    allowed: Sequence[Bools],
    tables: Sequence[CountTable],
    deadline: float = math.inf,
) -> BestCounts:
    """Maximise ``sum_b values[b][counts[b]]`` over allowed counts within every table's limit.

    Args:
        values: for every block an array ``[units + 1]``.
        allowed: for every block a bool ``[units + 1]``.
        tables: costs with limits; all must hold.
        deadline: the ``time.monotonic()`` after which the bound is the best proved so far.
    """
    return Knapsack(allowed, tables).best(values, deadline)


class Knapsack:
    """The budget's side of the oracle, prepared once for many values.

    Args:
        allowed: for every block a bool ``[units + 1]``.
        tables: costs with limits; all must hold, and none has a ``least`` above its limit.
    """

    def __init__(self, allowed: Sequence[Bools], tables: Sequence[CountTable]) -> None:
        self._allowed, self._tables = allowed, tables
        self._grids = [_Grid.of(table) for table in tables]
        self._room = np.array([grid.room for grid in self._grids], dtype=np.int64)

    def best(self, values: Sequence[Floats], deadline: float = math.inf) -> BestCounts:
        """The best counts for these values: for every block an array ``[units + 1]``.

        After the ``deadline``, a ``time.monotonic()``, they are the best found, and the bound is valid
        but may lie above their value.
        """
        blocks = [
            _Choices.of(v, f, [g.costs[b] for g in self._grids])
            for b, (v, f) in enumerate(zip(values, self._allowed, strict=True))
        ]
        if any(not len(o.value) for o in blocks):
            return BestCounts(None, -math.inf, -math.inf)
        counts = np.array([o.count[0] for o in blocks])  # the best value comes first
        if all(table.fits(counts) for table in self._tables):
            value = math.fsum(float(o.value[0]) for o in blocks)
            return BestCounts(counts, value, value)
        price = _multipliers(blocks, self._room)
        start = _rounded(blocks, price, _Room(self._grids), self._tables)
        return _search(blocks, self._room, price, self._tables, start, deadline)


class _Grid(NamedTuple):
    """A table in whole numbers: costs rounded down, and the room that its limit leaves for them.

    Sums of the costs may lie below the true ones by less than ``lost``.
    """

    costs: list[Ints]
    room: int
    lost: int

    @staticmethod
    def of(table: CountTable) -> _Grid:
        largest = math.fsum(float(c.max()) for c in table.costs)
        bits = _GRID_BITS - math.frexp(largest)[1]
        scaled = [np.ldexp(c, bits) for c in table.costs]
        costs = [np.floor(c).astype(np.int64) for c in scaled]
        lost = sum(bool(np.any(c != np.floor(c))) for c in scaled)
        # A cost is within the limit if its sum, correctly rounded, is: up to half a step above the
        # limit, and at exactly half only if the limit is the even neighbour.
        limit, step = Fraction(table.limit), Fraction(math.ulp(table.limit))
        room = (limit + step / 2 - Fraction(table.fixed)) * Fraction(2) ** bits
        whole = math.floor(room) if limit / step % 2 == 0 else math.ceil(room) - 1
        return _Grid(costs, max(min(whole, 1 << _GRID_BITS), -1), lost)


class _Room:
    """Whether costs on the grid are within all limits: at once, but for sums right at a limit."""

    def __init__(self, grids: Sequence[_Grid]) -> None:
        self._rooms = [(grid.room - grid.lost, grid.room) for grid in grids]

    def holds(self, spent: Sequence[int]) -> bool | None:
        """None if only exact sums can decide."""
        sure = True
        for cost, (safe, most) in zip(spent, self._rooms, strict=True):
            if cost > most:
                return False
            sure &= cost <= safe
        return sure or None


@dataclass(frozen=True, eq=False)
class _Choices:
    """The undominated choices of one block: counts ``[m]``, values ``[m]``, costs ``[m, tables]``."""

    count: Ints
    value: Floats
    cost: Ints

    @staticmethod
    def of(value: Floats, allowed: Bools, costs: Sequence[Ints]) -> _Choices:
        count = np.flatnonzero(allowed & np.isfinite(value))
        own = value[count]
        cost = np.array([c[count] for c in costs], dtype=np.int64).T.reshape(len(count), len(costs))
        order = np.lexsort((*cost.T[::-1], -own))  # best value first, cheap ones first among equals
        count, own, cost = count[order], own[order], cost[order]
        worse = np.zeros(len(count), dtype=np.bool_)
        if len(costs) == 1:
            worse[1:] = cost[1:, 0] >= np.minimum.accumulate(cost[:-1, 0])
        for i in range(1, len(count) if len(costs) > 1 else 0):
            worse[i] = bool(np.any(np.all(cost[:i][~worse[:i]] <= cost[i], axis=1)))
        return _Choices(count[~worse], own[~worse], cost[~worse])


def _multipliers(blocks: Sequence[_Choices], room: Ints) -> Floats:
    """Prices of the limits that make the Lagrangian bound small; any prices at least 0 are valid.

    Each price in turn is set by bisection on the slope of the (convex) dual function.
    """
    price = np.zeros(len(room))
    most = max(len(o.value) for o in blocks)
    value = np.full((len(blocks), most), -np.inf)
    cost = np.zeros((len(room), len(blocks), most))
    for b, o in enumerate(blocks):
        value[b, : len(o.value)], cost[:, b, : len(o.value)] = o.value, o.cost.T
    starts = most * np.arange(len(blocks))
    for _ in range(1 if len(room) == 1 else 4):
        for t, own in enumerate(cost):
            price[t] = 0.0
            left, flat = value - np.tensordot(price, cost, 1), own.ravel()
            low, high, limit = 0.0, _highest_price(blocks, t), float(room[t])
            for _ in range(50):
                tried = (low + high) / 2
                chosen = starts + (left - tried * own).argmax(axis=1)
                # The bare ufunc: on the few numbers of few blocks `sum` takes longer than adding.
                spent = np.add.reduce(flat[chosen])
                low, high = (tried, high) if spent > limit else (low, tried)
            price[t] = high
    return price


def _highest_price(blocks: Sequence[_Choices], t: int) -> float:
    """A price of table ``t`` at which every block takes its cheapest choice."""
    highest = 0.0
    for options in blocks:
        cost, value = options.cost[:, t], options.value
        cheap = int(np.argmin(cost))
        extra = cost - cost[cheap]
        dear = extra > 0
        if dear.any():
            highest = max(highest, float(np.max((value[dear] - value[cheap]) / extra[dear])))
    return 2 * max(highest, 0.0) + 1e-300


def _rounded(
    blocks: Sequence[_Choices], price: Floats, room: _Room, tables: Sequence[CountTable]
) -> tuple[Ints, float] | None:
    """Feasible counts near the Lagrangian optimum, improved one block at a time."""
    chosen = [int(np.argmax(o.value - o.cost @ price)) for o in blocks]
    costs: list[list[list[int]]] = [o.cost.tolist() for o in blocks]
    spent = [sum(c[i][t] for c, i in zip(costs, chosen, strict=True)) for t in range(len(tables))]

    def take(b: int, i: int) -> None:
        for t, (new, old) in enumerate(zip(costs[b][i], costs[b][chosen[b]], strict=True)):
            spent[t] += new - old
        chosen[b] = i

    def fits() -> bool:
        told = room.holds(spent)
        if told is not None:
            return told
        counts = [int(o.count[i]) for o, i in zip(blocks, chosen, strict=True)]
        return all(table.fits(counts) for table in tables)

    if not fits():
        weight = price + 1e-9 * price.max() if price.any() else np.ones(len(price))
        cheapest = [int(np.argmin(o.cost @ weight)) for o in blocks]
        loss = [o.value[i] - o.value[c] for o, i, c in zip(blocks, chosen, cheapest, strict=True)]
        for b in sorted(range(len(blocks)), key=loss.__getitem__):
            take(b, cheapest[b])
            if fits():
                break
        else:
            return None
    improved = True
    while improved:
        improved = False
        for b, options in enumerate(blocks):
            now = chosen[b]
            for i in range(len(options.value)):  # best value first
                if options.value[i] <= options.value[now]:
                    break
                take(b, i)
                if fits():
                    improved = True
                    break
                take(b, now)
    counts = np.array([o.count[i] for o, i in zip(blocks, chosen, strict=True)], dtype=np.int64)
    return counts, math.fsum(float(o.value[i]) for o, i in zip(blocks, chosen, strict=True))


def _search(
    blocks: Sequence[_Choices],
    room: Ints,
    price: Floats,
    tables: Sequence[CountTable],
    start: tuple[Ints, float] | None,
    deadline: float,
) -> BestCounts:
    """Dynamic programming over the blocks with dominance and Lagrangian pruning."""
    best_found, best_value = start if start else (None, -math.inf)
    order = sorted(range(len(blocks)), key=lambda b: -float(np.ptp(blocks[b].cost @ price)))
    rest_cost = np.zeros((len(blocks) + 1, len(tables)), dtype=np.int64)
    rest_value = np.zeros(len(blocks) + 1)  # Lagrangian value of the blocks still to come
    for place in range(len(blocks) - 1, -1, -1):
        options = blocks[order[place]]
        rest_cost[place] = rest_cost[place + 1] + options.cost.min(axis=0)
        rest_value[place] = rest_value[place + 1] + float(
            np.max(options.value - options.cost @ price)
        )
    # The rounding error of sums of priced costs, so that hopes stay upper bounds.
    slack = 4 * (len(blocks) + 2) * 2.0 ** (_GRID_BITS + 1) * float(np.finfo(np.float64).eps)
    rounding = slack * float(price.sum())
    most = math.fsum(float(o.value.max()) for o in blocks)
    ceiling = min(most, rest_value[0] + float(price @ room) + rounding)
    if start and ceiling <= best_value:
        return BestCounts(best_found, best_value, best_value)

    cost, value = np.zeros((1, len(tables)), dtype=np.int64), np.zeros(1)
    trail: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]] = []
    dropped, hoped = -math.inf, ceiling
    for place, b in enumerate(order):
        if time.monotonic() > deadline:
            return BestCounts(best_found, best_value, min(max(best_value, hoped, dropped), ceiling))
        options = blocks[b]
        m = len(options.value)
        parent = np.repeat(np.arange(len(value), dtype=np.int32), m)
        choice = np.tile(np.arange(m, dtype=np.int32), len(value))
        cost = (cost[:, None, :] + options.cost[None]).reshape(-1, len(tables))
        value = (value[:, None] + options.value[None]).reshape(-1)
        hope = value + rest_value[place + 1] + (room - cost) @ price + rounding
        alive = np.all(cost + rest_cost[place + 1] <= room, axis=1) & (hope > best_value)
        keep = np.flatnonzero(alive)
        keep = keep[_undominated(cost[keep], value[keep])]
        if len(keep) > _MOST_STATES:  # give up the least hopeful; their hope stays in the bound
            by_hope = keep[np.argpartition(-hope[keep], _MOST_STATES)]
            dropped = max(dropped, float(hope[by_hope[_MOST_STATES]]))
            keep = np.sort(by_hope[:_MOST_STATES])
        cost, value = cost[keep], value[keep]
        hoped = float(hope[keep].max(initial=-math.inf))
        trail.append((parent[keep], choice[keep]))
    reached = float(value.max()) if len(value) else -math.inf
    for last in np.argsort(-value, kind="stable"):
        if value[last] <= best_value:
            break
        counts = _walk_back(blocks, order, trail, int(last))
        if all(table.fits(counts) for table in tables):
            best_found, best_value = counts, float(value[last])
            break
    return BestCounts(best_found, best_value, min(max(best_value, reached, dropped), ceiling))


def _undominated(cost: Ints, value: Floats) -> npt.NDArray[np.intp]:
    """States for which no other costs no more and is worth no less."""
    if cost.shape[1] > 1 and len(value) > _PAIRWISE_DOMINANCE:
        return np.arange(len(value))
    order = np.lexsort((-value, *cost.T[::-1]))
    if cost.shape[1] == 1:
        sorted_values = value[order]
        before = np.concatenate([[-np.inf], np.maximum.accumulate(sorted_values)[:-1]])
        return order[sorted_values > before]
    kept: list[int] = []
    for i in order:
        if not kept or not np.any(
            np.all(cost[kept] <= cost[i], axis=1) & (value[kept] >= value[i])
        ):
            kept.append(int(i))
    return np.array(kept, dtype=np.intp)


def _walk_back(
    blocks: Sequence[_Choices],
    order: Sequence[int],
    trail: Sequence[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]],
    state: int,
) -> Ints:
    counts = np.zeros(len(blocks), dtype=np.int64)
    for place in range(len(order) - 1, -1, -1):
        parent, choice = trail[place]
        counts[order[place]] = blocks[order[place]].count[choice[state]]
        state = int(parent[state])
    return counts
