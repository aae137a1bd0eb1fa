"""The record of measured time: seconds per block by number of units kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import fsum
from typing import Any

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Floats
from cahp_opt.costs.anchors import fit_anchors
from cahp_opt.costs.count_table import check_counts, count_arrays
from cahp_opt.costs.provenance import Execution, Phase, Provenance
from cahp_opt.files.records import PathLike, read_json, reading, write_json
from cahp_opt.space import HeadSpace

LATENCY_KIND, _VERSION = "cahp-latency", 1

NOISY = 0.1
"""A spread, a drift or an error of that much is worth a remark."""


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Measured seconds of every block at every count, and of everything outside the blocks.

    Args:
        space: the blocks.
        fixed: seconds of everything outside the blocks.
        seconds: for every block an array of shape ``[units + 1]``; entry ``k`` is the time of the
            block with ``k`` units kept. Times need not grow with ``k``.
        provenance: where and how it was measured.
        least: seconds that the whole never goes below, however few units are kept: on a fast device the
            time to launch all operations, while the device waits.

    Raises:
        ValueError: for a wrong shape, or a time that is negative or not finite.
    """

    space: HeadSpace
    fixed: float
    seconds: tuple[Floats, ...]
    provenance: Provenance = field(default_factory=Provenance)
    least: float = 0.0

    def __post_init__(self) -> None:
        for name in ("fixed", "least"):
            time = getattr(self, name)
            if not (np.isfinite(time) and time >= 0):
                raise ValueError(f"`{name}` must be a finite time of at least 0 s, got {time}.")
            object.__setattr__(self, name, float(time))
        object.__setattr__(self, "seconds", count_arrays(self.space, self.seconds, "seconds"))

    @property
    def dense(self) -> float:
        """Predicted seconds of the unpruned model."""
        return self.predict(self.space.units)

    @property
    def floor(self) -> float:
        """The least time that any counts can reach, in seconds."""
        return max(self.least, fsum([self.fixed, *(float(s.min()) for s in self.seconds)]))

    def predict(self, counts: npt.ArrayLike) -> float:
        """Predicted seconds of the whole model that keeps ``counts[b]`` units in block ``b``.

        Raises:
            ValueError: if a count is outside ``0 .. units`` of its block.
        """
        array = check_counts(self.space, counts)
        total = fsum([self.fixed, *(float(s[k]) for s, k in zip(self.seconds, array, strict=True))])
        return max(self.least, total)

    @property
    def remarks(self) -> list[str]:
        """What a reader of the table should know before trusting it, as sentences."""
        facts, found = self.provenance, list[str]()
        if facts.estimated:
            found.append(
                f"the latency is an {facts.device or 'estimate for a described device'} and was not "
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

    def corrected(self, evidence: Sequence[tuple[npt.ArrayLike, float]]) -> LatencyTable:
        """The table with another factor for its blocks and another offset, to fit whole models.

        Args:
            evidence: counts and measured seconds of whole models. Where they do not tell the factor,
                only the offset changes.

        Raises:
            ValueError: without evidence, or for a time that is not above 0.
        """
        if not evidence or not all(np.isfinite(taken) and taken > 0 for _, taken in evidence):
            raise ValueError("`evidence` must hold at least one whole model with a time above 0 s.")
        free = replace(self, fixed=0.0, least=0.0)
        blocks = np.array([free.predict(counts) for counts, _ in evidence])
        fit = fit_anchors(blocks, np.array([taken for _, taken in evidence]))
        return replace(
            self,
            fixed=fit.fixed,
            seconds=tuple(fit.scale * s for s in self.seconds),
            least=max(fit.least, min(self.least, *(taken for _, taken in evidence))),
        )

    @staticmethod
    def mix(parts: Sequence[tuple[float, LatencyTable]]) -> LatencyTable:
        """The time of several workloads together, such as one prefill and 200 decoding steps.

        Where a part cannot go below its ``least``, its time above that is replaced by a straight line
        from there to its unpruned time, which is never less than the true time: the mix may predict too
        much, and never too little.

        Args:
            parts: how often each workload runs, above 0, and its table. The provenance is the first's.

        Raises:
            ValueError: without parts, for a number of runs that is not above 0, or if the tables are of
                different models.
        """
        if not parts:
            raise ValueError("`parts` is empty; a mix needs at least one table.")
        space = parts[0][1].space
        fixed, least = list[float](), list[float]()
        seconds = [np.zeros(units + 1) for units in space.units]
        for runs, table in parts:
            if not (np.isfinite(runs) and runs > 0):
                raise ValueError(f"a workload must run more than 0 times, got {runs}.")
            difference = space.difference(table.space)
            if difference:
                raise ValueError(f"the tables of a mix must be of one model: {difference}.")
            above = table._without_least()
            fixed.append(runs * above.fixed)
            least.append(runs * table.least)
            for total, own in zip(seconds, above.seconds, strict=True):
                total += runs * own
        facts = parts[0][1].provenance
        return LatencyTable(space, fsum(fixed), tuple(seconds), facts, fsum(least))

    def _without_least(self) -> LatencyTable:
        """A table without ``least`` that is nowhere below this one: a chord of the convex maximum."""
        free = replace(self, least=0.0)
        low, high = free.floor, fsum([self.fixed, *(float(s.max()) for s in self.seconds)])
        if self.least <= low:
            return free
        if self.least >= high or high == low:
            flat = tuple(np.zeros_like(s) for s in self.seconds)
            return replace(self, fixed=max(self.least, high), seconds=flat, least=0.0)
        slope = (high - self.least) / (high - low)
        fixed = self.least - slope * (low - self.fixed)
        return replace(self, fixed=fixed, seconds=tuple(slope * s for s in self.seconds), least=0.0)

    def save(self, path: PathLike) -> None:
        """Write the table as JSON."""
        write_json(path, LATENCY_KIND, _VERSION, {"blocks": self.space.to_json(), **self.to_json()})

    @staticmethod
    def load(path: PathLike) -> LatencyTable:
        """Read a table.

        Raises:
            RecordError: if the file is not a usable table.
            OSError: if it cannot be read.
        """
        data = read_json(path, LATENCY_KIND, _VERSION)
        with reading(path):
            return LatencyTable.from_json(HeadSpace.from_json(data["blocks"]), data)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file, without the blocks."""
        facts = asdict(self.provenance)
        facts |= {"phase": facts["phase"].value, "execution": facts["execution"].value}
        return {
            "fixed": self.fixed,
            "least": self.least,
            "seconds": [s.tolist() for s in self.seconds],
            "provenance": facts,
        }

    @staticmethod
    def from_json(space: HeadSpace, data: Mapping[str, Any]) -> LatencyTable:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError, KeyError, TypeError: if it is no table of these blocks.
        """
        facts = dict(data["provenance"])
        facts["phase"] = Phase(facts["phase"])
        facts["execution"] = Execution(facts.get("execution", Execution.EAGER.value))
        return LatencyTable(
            space,
            data["fixed"],
            tuple(np.array(s, dtype=np.float64) for s in data["seconds"]),
            Provenance(**facts),
            data.get("least", 0.0),
        )
