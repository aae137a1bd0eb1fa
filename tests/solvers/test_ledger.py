"""The ledger of counts: every answer is the exact one, also right at a limit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cahp_opt import Budget, HeadSpace
from cahp_opt.arrays import Ints
from cahp_opt.solvers.parts.ledger import Ledger
from cahp_opt.testing import BUDGETS, SPACES


def _fits(budget: Budget, counts: Ints) -> bool:
    return all(table.fits(counts) for table in budget.coupling)


def _near(budget: Budget, rng: np.random.Generator) -> Budget:
    """The budget with limits that some counts meet to the last digit, or miss by it."""
    start = budget.cheapest
    full = rng.integers(start, budget.space.units + 1)
    tables = [
        replace(t, limit=max(t.limit, float(np.nextafter(t.cost(full), rng.choice([0, np.inf])))))
        for t in budget.tables
    ]
    return Budget(budget.space, tuple(tables))


@given(
    kind=st.sampled_from(sorted(BUDGETS)),
    space=st.sampled_from(SPACES),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_ledger_says_what_exact_sums_say(kind: str, space: HeadSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    budget = _near(BUDGETS[kind](rng, space), rng)
    counts = budget.cheapest.copy()
    ledger = Ledger(budget, counts)
    blocks = len(counts)
    for _ in range(20):
        block, other = (int(b) for b in rng.integers(blocks, size=2))
        target, there = int(rng.integers(space.units[block] + 1)), int(counts[other])
        changed = counts.copy()
        changed[block] = target
        assert ledger.fits() == _fits(budget, counts)
        assert ledger.fits((block, target)) == _fits(budget, changed)
        if other != block:
            there = int(rng.integers(space.units[other] + 1))
            changed[other] = there
            assert ledger.fits((block, target), (other, there)) == _fits(budget, changed)
        if rng.random() < 0.8:
            ledger.move(block, target)
            counts[block] = target
        else:
            counts = changed
            ledger.go_to(counts)
        np.testing.assert_array_equal(ledger.counts, counts)
        assert ledger.spare().tolist() == [t.limit - t.cost(counts) for t in budget.coupling]
        _check_room(budget, ledger)


def _check_room(budget: Budget, ledger: Ledger) -> None:
    room, blocks = ledger.room(), len(ledger.counts)
    for a in range(blocks + 1):
        for b in range(blocks + 1):
            counts = ledger.counts.copy()
            if a < blocks:
                counts[a] -= 1
            if b < blocks:
                counts[b] += 1
            if a == b:
                assert room[a, b] == (a < blocks)
                continue
            moved = [i for i in (a, b) if i < blocks]
            inside = all(
                0 <= counts[i] <= budget.space.units[i] and budget.allowed[i][counts[i]]
                for i in moved
            )
            assert room[a, b] == (inside and _fits(budget, counts))
    if ledger.has_room():
        for b, count in enumerate(ledger.counts.tolist()):
            if count < budget.space.units[b]:
                assert ledger.fits((b, count + 1))


def test_running_sums_do_not_drift() -> None:
    """After any number of moves a limit that is met to the last digit is still met."""
    space, rng = HeadSpace.uniform(3, 4), np.random.default_rng(0)
    costs = [np.sort(rng.random(5)) for _ in range(3)]
    budget = Budget.table(space, costs, 100.0)
    exact = budget.coupling[0].cost([2, 2, 2])
    budget = budget.with_limit(exact)
    ledger = Ledger(budget, np.zeros(3, dtype=np.int64))
    assert ledger.fits()
    for _ in range(2_000):
        ledger.move(int(rng.integers(3)), int(rng.integers(5)))
        ledger.fits()
    for block in (0, 1):
        ledger.move(block, 2)
    assert ledger.fits((2, 2))
    assert not Ledger(budget.with_limit(float(np.nextafter(exact, 0))), ledger.counts).fits((2, 2))
