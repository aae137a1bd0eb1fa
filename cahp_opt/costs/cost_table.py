"""The cost of every number of kept units, block by block: seconds, bytes, weights or joules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import fsum, isfinite
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Floats
from cahp_opt.costs.count_table import CountTable, check_counts, count_arrays, whole_cost
from cahp_opt.costs.provenance import Provenance
from cahp_opt.costs.prune import Prune
from cahp_opt.costs.whole_models import fit_whole_models
from cahp_opt.space import HeadSpace

NOISY = 0.1
"""A spread, a drift or an error of at least this much gets a remark."""

Table = TypeVar("Table", bound="CostTable")


@dataclass(frozen=True, eq=False)
class CostTable:
    """The cost of every block at every count, and of everything outside the blocks.

    ``max(least, fixed + sum over blocks of costs[b][counts[b]])``, computed from the model, as weights
    and bytes are, or measured, as seconds and joules are.

    Args:
        space: the blocks; the order of their neurons, which costs do not depend on, is dropped.
        fixed: the cost of everything outside the blocks.
        costs: for every block an array of shape ``[units + 1]``; entry ``k`` is the cost of the
            block with ``k`` units kept. Costs need not grow with ``k``.
        unit: the unit of measure, such as ``s`` or ``bytes``; see :mod:`cahp_opt.costs.quantities`.
        provenance: where and how it was measured; of a table that was computed, the model alone.
        least: the lowest possible cost of the whole: on a fast device the time to launch all
            operations, while the device waits.

    Raises:
        ValueError: for a wrong shape, or a cost that is negative or not finite.
    """

    space: HeadSpace
    fixed: float
    costs: tuple[Floats, ...]
    unit: str = ""
    provenance: Provenance = field(default_factory=Provenance)
    least: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "space", self.space.unordered())
        for name in ("fixed", "least"):
            cost = getattr(self, name)
            if not (np.isfinite(cost) and cost >= 0):
                raise ValueError(f"`{name}` must be finite and at least 0, got {cost}.")
            object.__setattr__(self, name, float(cost))
        object.__setattr__(self, "costs", count_arrays(self.space, self.costs, "costs"))

    @property
    def model(self) -> str:
        """The model's class and shapes, as :func:`~cahp_opt.identity.structure_of` has them; empty if
        unknown."""
        return self.provenance.model

    @property
    def measured(self) -> bool:
        """Whether it was measured, or estimated for a device, so that a sliced model may differ."""
        return bool(self.provenance.device)

    @property
    def dense(self) -> float:
        """The cost of the unpruned model."""
        return self.predict(self.space.units)

    @property
    def floor(self) -> float:
        """The smallest cost that any counts can reach."""
        return whole_cost(self.least, self.fixed, (float(c.min()) for c in self.costs))

    def predict(self, counts: npt.ArrayLike) -> float:
        """The cost of the whole model at these counts, ``[blocks]``.

        Raises:
            ValueError: if a count is outside ``0 .. units`` of its block.
        """
        array = check_counts(self.space, counts)
        parts = (float(c[k]) for c, k in zip(self.costs, array, strict=True))
        return whole_cost(self.least, self.fixed, parts)

    def restricted(self: Table, space: HeadSpace) -> Table:
        """The table of the same model where only the units of ``space`` may go.

        Args:
            space: all attention of the model, all of its feed-forward blocks, or both. Blocks of a kind
                that it lacks stay whole: their cost becomes part of ``fixed``.

        Raises:
            ValueError: if the table is of other blocks.
        """
        served = check_served(self.space, space)
        if len(served.blocks) == len(self.space.blocks):
            return self
        names = {block.name for block in served.blocks}
        pairs = list(zip(self.space.blocks, self.costs, strict=True))
        whole = (float(costs[-1]) for block, costs in pairs if block.name not in names)
        costs = tuple(costs for block, costs in pairs if block.name in names)
        return replace(self, space=served, fixed=fsum([self.fixed, *whole]), costs=costs)

    def within(self, limit: float, name: str) -> CountTable:
        """The table with a limit, for a budget, under the name that it has there."""
        return CountTable(name, self.costs, limit, self.fixed, self.unit, self.least)

    @property
    def remarks(self) -> list[str]:
        """Sentences on reasons not to trust the table."""
        facts, found = self.provenance, list[str]()
        if facts.estimated:
            what = "latency" if self.unit == "s" else "cost"
            found.append(
                f"the {what} is an {facts.device or 'estimate for a described device'} and was not "
                "measured."
            )
        if 0 < facts.quota < facts.threads:
            found.append(
                f"it was measured with {facts.threads} threads where control groups grant "
                f"{facts.quota:g} of the processors, so that they were stopped for a part of the time; "
                "measure with fewer threads."
            )
        elif facts.spread >= NOISY:
            found.append(
                f"this machine was noisy: the spread was {100 * facts.spread:.0f} %; measure while nothing "
                "else runs, or with more repeats."
            )
        if abs(facts.drift) >= NOISY:
            more = "slower" if facts.drift > 0 else "faster"
            found.append(
                f"this machine became {100 * abs(facts.drift):.0f} % {more} while it was measured."
            )
        if facts.error >= NOISY:
            found.append(
                f"the table is {100 * facts.error:.0f} % off on a whole model that was timed as a check."
            )
        return found

    def corrected(self: Table, evidence: Sequence[tuple[npt.ArrayLike, float]]) -> Table:
        """The table with another factor for all its blocks and another offset, to fit whole models.

        Args:
            evidence: counts, ``[blocks]``, and measured costs of whole models. If they do not
                determine the factor, only the offset changes.

        Raises:
            ValueError: without evidence, or for a cost that is not above 0.
        """
        if not evidence or not all(isfinite(taken) and taken > 0 for _, taken in evidence):
            raise ValueError(
                f"`evidence` must hold at least one whole model that took more than 0 {self.unit}."
            )
        free = replace(self, fixed=0.0, least=0.0)
        blocks = np.array([free.predict(counts) for counts, _ in evidence])
        fit = fit_whole_models(blocks, np.array([taken for _, taken in evidence]))
        return replace(
            self,
            fixed=fit.fixed,
            costs=tuple(fit.scales[0] * c for c in self.costs),
            least=max(fit.least, min(self.least, *(taken for _, taken in evidence))),
        )

    @staticmethod
    def mix(parts: Sequence[tuple[float, Table]]) -> Table:
        """The cost of several workloads together, ``sum of runs * table``, such as one prefill and
        200 decoding steps.

        A part with a ``least`` is replaced by the straight line from ``least``, at its smallest
        sum, to its largest sum, a chord of the convex maximum: the mix may predict too much, and
        never too little.

        Args:
            parts: how often each workload runs, above 0, and its table, all in one unit of measure. The
                provenance is the first's.

        Raises:
            ValueError: without parts, for a number of runs that is not above 0, or if the tables are of
                different models.
        """
        if not parts:
            raise ValueError("`parts` is empty; a mix needs at least one table.")
        first = parts[0][1]
        fixed, least = list[float](), list[float]()
        costs = [np.zeros(units + 1) for units in first.space.units]
        for runs, table in parts:
            if not (np.isfinite(runs) and runs > 0):
                raise ValueError(f"a workload must run more than 0 times, got {runs}.")
            difference = first.space.difference(table.space)
            if difference:
                raise ValueError(f"the tables of a mix must be of one model: {difference}.")
            above = table._without_least()
            fixed.append(runs * above.fixed)
            least.append(runs * table.least)
            for total, own in zip(costs, above.costs, strict=True):
                total += runs * own
        return replace(first, fixed=fsum(fixed), costs=tuple(costs), least=fsum(least))

    def _without_least(self) -> CostTable:
        """A table without ``least`` that is nowhere below this one: a chord of the convex maximum."""
        free = replace(self, least=0.0)
        low, high = free.floor, whole_cost(0.0, self.fixed, (float(c.max()) for c in self.costs))
        if self.least <= low:
            return free
        if self.least >= high or high == low:
            flat = tuple(np.zeros_like(c) for c in self.costs)
            return replace(self, fixed=max(self.least, high), costs=flat, least=0.0)
        slope = (high - self.least) / (high - low)
        fixed = self.least - slope * (low - self.fixed)
        return replace(self, fixed=fixed, costs=tuple(slope * c for c in self.costs), least=0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file, without the blocks."""
        body: dict[str, Any] = {"fixed": self.fixed, "unit": self.unit, "model": self.model}
        if self.least:
            body["least"] = self.least
        if self.provenance != Provenance(model=self.model):
            body["provenance"] = self.provenance.to_json()
        return {**body, "costs": [c.tolist() for c in self.costs]}

    @staticmethod
    def from_json(space: HeadSpace, data: Mapping[str, Any]) -> CostTable:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError, KeyError, TypeError: if it is not a table of these blocks.
        """
        told = data.get("provenance", {"model": data.get("model", "")})
        costs = tuple(np.array(c, dtype=np.float64) for c in data["costs"])
        facts = Provenance.from_json(told)
        return CostTable(space, data["fixed"], costs, data["unit"], facts, data.get("least", 0.0))


def check_served(there: HeadSpace, asked: HeadSpace) -> HeadSpace:
    """The blocks of a table that are of the kinds that are asked for.

    Args:
        there: the blocks of the table.
        asked: the blocks that are asked for.

    Raises:
        ValueError: if they differ from those, or the table has none of a kind.
    """
    for kind, what in ((Prune.HEADS, "attention"), (Prune.NEURONS, "feed-forward")):
        if kind.blocks(asked) is not None and kind.blocks(there) is None:
            raise ValueError(
                f"the latency table has no {what} blocks, and units of them are to be chosen; measure it "
                "for both kinds of blocks, or choose among the other kind alone."
            )
    served = Prune.in_space(asked).blocks(there)
    difference = asked.difference(served) if served is not None else "no blocks in common"
    if served is None or difference:
        raise ValueError(
            "the statistics and the latency table are of different models "
            f"({difference}); measure both on the same one."
        )
    return served
