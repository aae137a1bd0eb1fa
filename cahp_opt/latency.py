"""The record of measured time: seconds per block by number of units kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from math import fsum
from typing import Any

import numpy as np
import numpy.typing as npt

from cahp_opt.heads import Floats, HeadSpace
from cahp_opt.records import PathLike, read_json, reading, write_json

_KIND, _VERSION = "cahp-latency", 1


class Phase(str, Enum):
    """The workload that was timed."""

    PREFILL = "prefill"
    """One forward pass over the whole input; for encoders the only phase there is."""
    DECODE = "decode"
    """One new token against a filled key/value cache."""


@dataclass(frozen=True)
class Provenance:
    """Where and how a table was measured; unknown facts are empty or 0.

    ``spread`` is the largest relative distance between the reported quantile and the median over all
    measured points: the noise of the machine while it was measured. ``error`` is the largest
    relative error of the table's prediction on whole pruned models that were timed as a check.
    """

    device: str = ""
    dtype: str = ""
    batch: int = 0
    sequence_length: int = 0
    phase: Phase = Phase.PREFILL
    attention: str = ""
    threads: int = 0
    repeats: int = 0
    spread: float = 0.0
    error: float = 0.0
    versions: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Measured seconds of every block at every count, and of everything outside the blocks.

    Args:
        space: the blocks.
        fixed: seconds of everything outside the blocks.
        seconds: for every block an array of shape ``[units + 1]``; entry ``k`` is the time of the
            block with ``k`` units kept. Times need not grow with ``k``.
        provenance: where and how it was measured.

    Raises:
        ValueError: for a wrong shape, or a time that is negative or not finite.
    """

    space: HeadSpace
    fixed: float
    seconds: tuple[Floats, ...]
    provenance: Provenance = Provenance()

    def __post_init__(self) -> None:
        if not (np.isfinite(self.fixed) and self.fixed >= 0):
            raise ValueError(f"`fixed` must be a finite time of at least 0 s, got {self.fixed}.")
        object.__setattr__(self, "fixed", float(self.fixed))
        object.__setattr__(self, "seconds", count_arrays(self.space, self.seconds, "seconds"))

    @property
    def dense(self) -> float:
        """Predicted seconds of the unpruned model."""
        return self.predict(self.space.units)

    @property
    def floor(self) -> float:
        """The least time that any counts can reach, in seconds."""
        return fsum([self.fixed, *(float(s.min()) for s in self.seconds)])

    def predict(self, counts: npt.ArrayLike) -> float:
        """Predicted seconds of the whole model that keeps ``counts[b]`` units in block ``b``.

        Raises:
            ValueError: if a count is outside ``0 .. units`` of its block.
        """
        array = check_counts(self.space, counts)
        return fsum([self.fixed, *(float(s[k]) for s, k in zip(self.seconds, array, strict=True))])

    def save(self, path: PathLike) -> None:
        """Write the table as JSON."""
        body: dict[str, Any] = {
            "blocks": self.space.to_json(),
            "fixed": self.fixed,
            "seconds": [s.tolist() for s in self.seconds],
            "provenance": {**asdict(self.provenance), "phase": self.provenance.phase.value},
        }
        write_json(path, _KIND, _VERSION, body)

    @staticmethod
    def load(path: PathLike) -> LatencyTable:
        """Read a table.

        Raises:
            RecordError: if the file is not a usable table.
        """
        data = read_json(path, _KIND, _VERSION)
        with reading(path):
            provenance = dict(data["provenance"])
            provenance["phase"] = Phase(provenance["phase"])
            return LatencyTable(
                HeadSpace.from_json(data["blocks"]),
                data["fixed"],
                tuple(np.array(s, dtype=np.float64) for s in data["seconds"]),
                Provenance(**provenance),
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
