"""Improving keep-sets of a quadratic form by swaps, single flips and whole blocks, until none helps."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.bounds.oracle import MOST_TABULATED, Oracle
from cahp_opt.costs.budget import Budget
from cahp_opt.objective import QuadraticForm
from cahp_opt.solvers.parts.ledger import Ledger
from cahp_opt.subsets import subset_values


class Polisher:
    """Local search for one quadratic form and budget.

    Args:
        budget: the limits.
        form: the objective.
    """

    def __init__(self, budget: Budget, form: QuadraticForm) -> None:
        self._budget, self._form = budget, form
        self._block_of = budget.space.block_of
        self._alone = form.linear + np.diagonal(form.pairwise)
        self._across = form.pairwise - np.diag(np.diagonal(form.pairwise))
        self._blocks: Oracle | None = None
        if all(units <= MOST_TABULATED for units in budget.space.units):  # 2^units values each
            self._blocks = Oracle(
                budget,
                [subset_values(form.linear[s], form.pairwise[s, s]) for s in budget.space.slices],
            )
        self._ledger = Ledger(budget, budget.cheapest)

    def value(self, kept: Bools) -> float:
        """The form's value at a keep-set, bool ``[n]``."""
        x = kept.astype(np.float64)
        return self._form.constant + float(self._form.linear @ x + x @ self._form.pairwise @ x)

    def best_of(self, starts: Iterable[Bools], deadline: float) -> tuple[Bools, float]:
        """The best keep-set, bool ``[n]``, reached from several starts within the budget; and its
        value."""
        best: tuple[Bools, float] | None = None
        for start in starts:
            if best is not None and time.monotonic() > deadline:
                break
            kept = self.polish(start, deadline)
            value = self.value(kept)
            if best is None or value > best[1]:
                best = kept, value
        if best is None:
            raise ValueError("`starts` must hold at least one keep-set.")
        return best

    def shaken(
        self, kept: Bools, rng: np.random.Generator, rounds: int, deadline: float
    ) -> tuple[Bools, float]:
        """Iterated local search from a keep-set, bool ``[n]``: drop a few random units, fill and
        polish, keep the better one."""
        best, value = kept, self.value(kept)
        for _ in range(rounds):
            if time.monotonic() > deadline:
                break
            trial = best.copy()
            blocks = rng.choice(len(self._budget.space.blocks), 2)
            for b in blocks:
                where = self._budget.space.slices[int(b)]
                trial[where] = rng.permutation(trial[where])
            trial = self.polish(trial, deadline)
            own = self.value(trial)
            if own > value:
                best, value = trial, own
        return best, value

    def polish(self, kept: Bools, deadline: float) -> Bools:
        """The local optimum, bool ``[n]``, that the best moves lead to."""
        kept = kept.copy()
        scale = 1e-12 * float(np.abs(self._alone).sum() + np.abs(self._across).sum())
        while time.monotonic() <= deadline:
            if not (self._flip(kept, scale) or self._block(kept, scale)):
                break
        return kept

    def _flip(self, kept: Bools, scale: float) -> bool:
        """The best swap, addition or removal, if it gains anything."""
        space = self._budget.space
        worth = self._alone + 2 * (self._across @ kept)
        counts = space.counts(kept)
        ins, outs = np.flatnonzero(~kept), np.flatnonzero(kept)
        best, move = scale, (-1, -1)
        blocks = len(space.blocks)
        self._ledger.go_to(counts)
        room = self._ledger.room()
        for add in range(blocks):
            free = room[blocks, add]
            own = ins[self._block_of[ins] == add]
            if free and own.size and worth[own].max() > best:
                best, move = float(worth[own].max()), (int(own[np.argmax(worth[own])]), -1)
        for drop in range(blocks):
            own = outs[self._block_of[outs] == drop]
            if own.size and -worth[own].min() > best and room[drop, blocks]:
                best, move = float(-worth[own].min()), (-1, int(own[np.argmin(worth[own])]))
        if ins.size and outs.size:
            swap = worth[ins][:, None] - worth[outs][None] - 2 * self._across[np.ix_(ins, outs)]
            swap[~room[self._block_of[outs][None], self._block_of[ins][:, None]]] = -np.inf
            place = int(np.argmax(swap))
            if float(swap.flat[place]) > best:
                i, j = divmod(place, outs.size)
                move = int(ins[i]), int(outs[j])
        if move == (-1, -1):
            return False
        for unit in move:
            if unit >= 0:
                kept[unit] ^= True
        return True

    def _block(self, kept: Bools, scale: float) -> bool:
        """The best change of one block or two at once, each to its best subset of another size."""
        if self._blocks is None:
            return False
        space = self._budget.space
        x = kept.astype(np.float64)
        base = self.value(kept)
        pull: Floats = 2 * (self._form.pairwise @ x)
        for where in space.slices:
            pull[where] -= 2 * (self._form.pairwise[where, where] @ x[where])
        tables = self._blocks.tables(pull)
        counts = space.counts(kept)
        now = [
            float(
                self._form.linear[s] @ x[s]
                + x[s] @ self._form.pairwise[s, s] @ x[s]
                + pull[s] @ x[s]
            )
            for s in space.slices
        ]
        self._ledger.go_to(counts)
        options: list[tuple[float, int, int]] = []
        for b, table in enumerate(tables):
            for k in np.flatnonzero(self._budget.allowed[b]):
                gain = float(table.values[k]) - now[b]
                if gain > scale and self._ledger.fits((b, int(k))):
                    where = space.slices[b]
                    kept[where] = table.kept[k]
                    return True
                options.append((gain, b, int(k)))
        pairs = sorted(
            (
                (g1 + g2, b1, k1, b2, k2)
                for g1, b1, k1 in options
                for g2, b2, k2 in options
                if b1 < b2
                and (k1 - counts[b1]) * (k2 - counts[b2]) < 0
                and g1 + g2 > -abs(base) * 0.01
            ),
            reverse=True,
        )[:40]
        for _, b1, k1, b2, k2 in pairs:
            if not self._ledger.fits((b1, k1), (b2, k2)):
                continue
            changed = kept.copy()
            changed[space.slices[b1]] = tables[b1].kept[k1]
            changed[space.slices[b2]] = tables[b2].kept[k2]
            if self.value(changed) > base + scale:
                kept[:] = changed
                return True
        return False
