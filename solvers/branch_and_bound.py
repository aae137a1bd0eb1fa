"""Exact selection for quadratic forms: branch and bound over units with Frank-Wolfe bounds."""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass, replace

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.bounds.convex_split import best_split, tabulated_parts
from cahp_opt.bounds.frank_wolfe import Effort, frank_wolfe_steps, quadratic_frank_wolfe
from cahp_opt.bounds.mixture import Mixture
from cahp_opt.bounds.split_form import SplitForm
from cahp_opt.objective import QuadraticForm
from cahp_opt.problem import Problem
from cahp_opt.rounding import rounding_slack
from cahp_opt.solver import Proposal, Solver
from cahp_opt.solvers.parts.climbing import climb
from cahp_opt.solvers.parts.incumbent import Incumbent
from cahp_opt.solvers.parts.polishing import Polisher

CERTIFICATE = "branch and bound with Frank-Wolfe bounds over the exact oracle"


@dataclass(frozen=True)
class BranchAndBound(Solver):
    """The proven optimum of a quadratic form, or the best found and a bound when time is up.

    Every node bounds its part of the search by Frank-Wolfe over the exact oracle, with the values
    inside blocks exact and the split of the rest fitted anew; it drops the subsets of blocks that the
    bound excludes, and branches on the unit whose fraction leaves the most open. The proof needs no
    solver's tolerance, and nothing but NumPy. For dense interactions across blocks it is the strongest
    route; each part of the search is explored in the order of its bound.

    Cost: O(n^3) per node, nodes exponential in n at worst; exact; needs `quadratic()`.

    Args:
        gap: relative gap, of the bound to the value, at which to stop; at least 0.
        nodes: most nodes to bound; at least 1.

    Raises:
        ValueError: if the objective offers no quadratic form.
    """

    gap: float = 0.0
    nodes: int = 100_000

    def __post_init__(self) -> None:
        if not self.gap >= 0:
            raise ValueError(f"`gap` must be at least 0, got {self.gap}.")
        if self.nodes < 1:
            raise ValueError(f"`nodes` must be at least 1, got {self.nodes}.")

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        form = problem.objective.quadratic()
        if form is None:
            raise ValueError(
                f"`BranchAndBound` needs a quadratic form, and `{type(problem.objective).__name__}` "
                "offers none; use `MIQP` for a coverage, or `LazyGreedy`."
            )
        tree = _Tree(problem, form, deadline, rng)
        tree.search(self.gap, self.nodes)
        return tree.proposal()


@dataclass(frozen=True, eq=False)
class _Node:
    """A part of the search: the subsets left, its bound, and where the bound was attained."""

    bound: float
    terms: SplitForm
    point: Floats
    met: Bools


class _Tree:
    """The open nodes, best bound first, and the best keep-set so far."""

    def __init__(
        self, problem: Problem, form: QuadraticForm, deadline: float, rng: np.random.Generator
    ) -> None:
        self._problem, self._form, self._deadline, self._rng = problem, form, deadline, rng
        self._polisher = Polisher(problem.budget, form)
        self._parts = tabulated_parts(problem.space)
        now = time.monotonic()
        start = climb(
            problem, 3, lazy=problem.objective.submodular, deadline=now + (deadline - now) / 4
        )
        self._best = Incumbent(problem, start.kept, deadline)
        self._open: list[tuple[float, int, _Node]] = []
        self._ceiling, self._bounded, self._pushed = math.inf, 0, 0

    def search(self, gap: float, nodes: int) -> None:
        """Bound, prune and branch until the gap is reached, or the nodes or the time are spent."""
        root = self._root()
        self._push(root)
        while self._open:
            self._ceiling = -self._open[0][0]
            if self._ceiling - self._best.value <= gap * abs(self._best.value):
                break
            if self._bounded >= nodes:
                break
            if time.monotonic() > self._deadline:
                self._best.cut_short = True
                break
            node = heapq.heappop(self._open)[2]
            for child in self._children(node):
                self._push(child)
            if self._best.cut_short:  # children may be missing: the node's own bound stands
                self._ceiling = node.bound
                return
        if not self._open:
            self._ceiling = -math.inf

    def proposal(self) -> Proposal:
        """The best keep-set with what is proved about it."""
        best = self._best
        # Nodes up to half a slack above the value were pruned.
        pruned = best.value + rounding_slack(best.value, self._ceiling) / 2
        best.tighten(max(self._ceiling, pruned), CERTIFICATE)
        best.stats.update(nodes=self._bounded, open=len(self._open))
        return best.proposal()

    # -- inside ------------------------------------------------------------------------------------

    @property
    def _floor(self) -> float:
        """Nodes with a bound up to here hold nothing better, but for rounding."""
        return self._best.value + rounding_slack(self._best.value, self._best.value) / 2

    def _root(self) -> _Node:
        problem, form = self._problem, self._form
        self._offer(self._best.kept)
        found = quadratic_frank_wolfe(
            problem.budget,
            form,
            self._best.kept,
            Effort(5, 50, 1e-5),
            deadline=self._best.share(0.4),
            floor=self._floor,
        )
        self._bounded += 1
        until = self._best.share(0.3)
        kept, _ = self._polisher.best_of([self._best.kept, *found.met[:8]], until)
        rounds = 40 if problem.space.n > 30 else 3
        kept, _ = self._polisher.shaken(kept, self._rng, rounds, until)
        self._best.offer(kept)
        terms = SplitForm.of(problem.budget, form, found.split, self._deadline, every=True)
        return self._thinned(_Node(found.bound, terms, found.point, found.met))

    def _children(self, node: _Node) -> list[_Node]:
        y = node.point
        open_units = y * (1 - y)
        unit = int(np.argmax(open_units * (np.diagonal(node.terms.split.rest) + 1e-12)))
        if open_units[unit] < 1e-9:  # at a keep-set: any unit that still differs somewhere
            unit = self._undecided(node)
            if unit < 0:
                self._offer(y > 0.5)
                return []
        children: list[_Node] = []
        for kept in (True, False):
            if time.monotonic() > self._deadline:
                self._best.cut_short = True
                return children
            child = self._bound(node, unit, kept)
            if child is not None:
                children.append(child)
        return children

    def _bound(self, node: _Node, unit: int, kept: bool) -> _Node | None:
        """The child with this unit fixed; None if it holds nothing better."""
        form, floor = self._form, self._floor
        terms = node.terms.fixing(unit, kept)
        met = node.met[node.met[:, unit] == kept]
        _, vertex = terms.bound_at(node.point)
        if vertex.bound == -math.inf:
            return None
        if not len(met):
            met = vertex.kept[None]
        active = Mixture(form, met[0])
        for other in met[1:]:
            active.add(other)
        active.use(terms.split.rest)
        self._bounded += 1
        found = frank_wolfe_steps(terms, active, _EFFORT, deadline=self._deadline, floor=floor)
        best = _Node(min(found.bound, node.bound), terms, found.point, active.met)
        if best.bound > floor and time.monotonic() <= self._deadline:
            split = best_split(
                form.pairwise,
                self._parts,
                active.covariance(self._parts),
                terms.split,
                deadline=self._deadline,
            )
            terms = terms.resplit(self._problem.space, split)
            active.use(split.rest)
            found = frank_wolfe_steps(terms, active, _EFFORT, deadline=self._deadline, floor=floor)
            if found.bound < best.bound:
                best = _Node(found.bound, terms, found.point, active.met)
        for met_there in active.met[:3]:
            if self._best.value - self._polisher.value(met_there) < 0.3 * (
                node.bound - self._best.value
            ):
                self._offer(met_there)
        if best.bound <= self._floor:
            return None
        return self._thinned(best)

    def _thinned(self, node: _Node) -> _Node:
        """Without the subsets that the node's own bound excludes, and with what it hands on."""
        terms = node.terms.hopeful(node.point, self._floor)
        return replace(node, terms=terms, met=node.met[:_MOST_MET])

    def _undecided(self, node: _Node) -> int:
        """A unit that some keep-set left in this node has otherwise than the node's point; -1 if none."""
        for unit in range(len(node.point)):
            other = node.terms.fixing(unit, bool(node.point[unit] <= 0.5))
            if other.oracle.best(np.zeros(len(node.point))).bound > -math.inf:
                return unit
        return -1

    def _push(self, node: _Node) -> None:
        if node.bound > self._floor:
            self._pushed += 1
            heapq.heappush(self._open, (-node.bound, self._pushed, node))

    def _offer(self, kept: Bools) -> None:
        if self._problem.budget.allows(self._problem.space.counts(kept)):
            self._best.offer(self._polisher.polish(kept, self._deadline))


_EFFORT = Effort(steps=25, precision=0.02)
"""What bounding a node takes, for each of its two splits."""

_MOST_MET = 60
"""Keep-sets that a node hands to its children."""
