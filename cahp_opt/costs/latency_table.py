"""The record of measured time: seconds per block by number of units kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from math import fsum, inf
from typing import Any

import numpy as np
import numpy.typing as npt

from cahp_opt.costs.anchors import fit_anchors
from cahp_opt.files.records import PathLike, read_json, reading, write_json
from cahp_opt.space import Floats, HeadSpace, is_whole

LATENCY_KIND, _VERSION = "cahp-latency", 1

NOISY = 0.1
"""A spread, a drift or an error of that much is worth a remark."""


class Phase(str, Enum):
    """The workload that was timed."""

    PREFILL = "prefill"
    """One forward pass over the whole input; for encoders the only phase there is."""
    DECODE = "decode"
    """One new token against a filled key/value cache."""


class Execution(str, Enum):
    """How the model was run."""

    EAGER = "eager"
    """Operation by operation, as Python asks for them."""
    COMPILED = "compiled"
    """Through ``torch.compile``."""
    CUDA_GRAPH = "cuda_graph"
    """Captured once as a CUDA graph and replayed, without the cost of launching single operations."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where and how a table was measured; unknown facts are empty or 0.

    Args:
        device: name of the processor; of an estimate, ``estimate for`` and that.
        dtype: precision of the weights.
        batch: examples per batch.
        sequence_length: tokens per example; while decoding, those in the cache.
        phase: prefill or decode.
        execution: how the model was run.
        attention: implementation of attention, such as ``sdpa``.
        threads: threads of the CPU.
        quota: processors' worth of time that a container is granted; 0 for no limit. More threads than that
            are stopped together for a part of the time.
        repeats: timed runs of every whole model.
        spread: the largest relative distance between the reported quantile and the median over all
            measured points: the noise of the machine meanwhile.
        drift: by how much the unpruned model was slower in the second half of the measurement than in
            the first, relative; negative if it was faster.
        error: the largest relative error of the prediction on whole uneven models that were timed as a
            check, and that it was not fitted to.
        estimated: whether the times were computed from a description of the hardware, and not measured.
        versions: of the software, by name.
        model: the model's class and shapes, as :func:`~cahp_opt.identity.structure_of` has them.

    Raises:
        ValueError: for a fact of another type, a negative number of things, or a share that is not finite.
    """

    device: str = ""
    dtype: str = ""
    batch: int = 0
    sequence_length: int = 0
    phase: Phase = Phase.PREFILL
    execution: Execution = Execution.EAGER
    attention: str = ""
    threads: int = 0
    quota: float = 0.0
    repeats: int = 0
    spread: float = 0.0
    drift: float = 0.0
    error: float = 0.0
    estimated: bool = False
    versions: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    model: str = ""

    def __post_init__(self) -> None:
        for names, fine, allowed in _FACTS:
            for name in names:
                given = getattr(self, name)
                if not fine(given):
                    raise ValueError(f"`{name}` of a provenance must be {allowed}, got {given!r}.")


def _is_finite(given: object) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool) and -inf < given < inf


def _is_text(given: object) -> bool:
    return isinstance(given, str)


_FACTS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("device", "dtype", "attention", "model"), _is_text, "text"),
    (
        ("batch", "sequence_length", "threads", "repeats"),
        lambda n: is_whole(n) and n >= 0,
        "a whole number of at least 0",
    ),
    (
        ("spread", "error", "quota"),
        lambda x: _is_finite(x) and x >= 0,
        "a finite number of at least 0",
    ),
    (("drift",), _is_finite, "a finite number"),
    (("phase",), lambda p: isinstance(p, Phase), "a `Phase`"),
    (("execution",), lambda e: isinstance(e, Execution), "an `Execution`"),
    (("estimated",), lambda e: isinstance(e, bool), "true or false"),
    (
        ("versions",),
        lambda v: isinstance(v, Mapping) and all(map(_is_text, [*v, *v.values()])),  # pyright: ignore
        "texts by name",
    ),
)


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
    provenance: Provenance = Provenance()
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


def check_counts(space: HeadSpace, counts: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """``counts`` as whole numbers, one per block, each within its block.

    Raises:
        ValueError: for another shape, or a count outside ``0 .. units``.
    """
    array = np.asarray(counts)
    if array.shape != (len(space.blocks),) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"`counts` must be {len(space.blocks)} whole numbers, one per block, got "
            f"{array.dtype} of shape {list(array.shape)}."
        )
    if np.any(array < 0) or np.any(array > space.units):
        raise ValueError(
            f"`counts` must lie within 0 and the units of each block {space.units.tolist()}, "
            f"got {array.tolist()}."
        )
    return array.astype(np.int64)


def count_arrays(
    space: HeadSpace, given: Sequence[npt.ArrayLike], argument: str
) -> tuple[Floats, ...]:
    """One read-only array ``[units + 1]`` of finite numbers of at least 0 for every block.

    Raises:
        ValueError: naming ``argument`` and the block that is wrong.
    """
    if len(given) != len(space.blocks):
        raise ValueError(
            f"`{argument}` must have one array per block, {len(space.blocks)} in all, "
            f"got {len(given)}."
        )
    arrays: list[Floats] = []
    for block, row in zip(space.blocks, given, strict=True):
        array = np.array(row, dtype=np.float64)
        if array.shape != (block.units + 1,):
            raise ValueError(
                f"`{argument}` of block {block.name!r} must have {block.units + 1} entries (for 0 to "
                f"{block.units} units kept), got shape {list(array.shape)}."
            )
        if not np.all(np.isfinite(array)) or np.any(array < 0):
            raise ValueError(
                f"`{argument}` of block {block.name!r} must be finite and at least 0, "
                f"got {array.tolist()}."
            )
        array.flags.writeable = False
        arrays.append(array)
    return tuple(arrays)
