"""One cell of a study, and what came out of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cahp_opt.arrays import Bools
from cahp_opt.costs.checks import Check
from cahp_opt.costs.count_table import Cost
from cahp_opt.files.array_records import Arrays, read_arrays, write_arrays
from cahp_opt.files.records import PathLike, reading
from cahp_opt.rounding import relative_gap
from cahp_opt.selection import Selection
from cahp_opt.solver import Status
from cahp_opt.studies.scores import Scores

_KIND, _VERSION = "cahp-outcome", 1


class Arm(NamedTuple):
    """What is compared in a study: everything of a cell but its seed.

    Args:
        method: name of the method.
        limit: the limit as it was typed, such as ``0.7``, ``decode=12ms`` or ``24 heads``.
        recovery: name of the recovery.
    """

    method: str
    limit: str
    recovery: str


class Cell(NamedTuple):
    """One run of a study.

    Args:
        method: name of the method.
        limit: the limit as it was typed, such as ``0.7``, ``decode=12ms`` or ``24 heads``.
        recovery: name of the recovery.
        seed: of the drawn texts and of the method.
    """

    method: str
    limit: str
    recovery: str
    seed: int

    @property
    def arm(self) -> Arm:
        """What it is a run of."""
        return Arm(self.method, self.limit, self.recovery)


def cell_of(told: Sequence[Any]) -> Cell:
    """A cell from a file.

    Raises:
        ValueError: if it is not one.
    """
    method, limit, recovery, seed = told
    return Cell(str(method), str(limit), str(recovery), int(seed))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came out of one cell.

    Args:
        cell: the cell.
        counts: units kept per block.
        kept: the units kept, bool ``[n]``. Groups of neurons are numbered in the order of this choice,
            which its own record has.
        scores: how the model did on the held-out examples.
        value: the value of the choice by its method; NaN if it has none.
        bound: the certified upper bound on that value; infinite if none is known.
        status: how far the choice is proved.
        certificate: where the bound comes from, in words.
        costs: by name of the budget's table, the predicted cost and its limit.
        times: by name of the workload, the measured time beside the unpruned one's, and the prediction;
            empty until it is measured.
        seconds: seconds of every stage.
        provenance: where and with what it was made, by name.
        notes: sentences that the user should read.
    """

    cell: Cell
    counts: tuple[int, ...]
    kept: Bools
    scores: Scores
    value: float = math.nan
    bound: float = math.inf
    status: Status = Status.GIVEN
    certificate: str = ""
    costs: Mapping[str, Cost] = field(default_factory=lambda: dict[str, Cost]())
    times: Mapping[str, Check] = field(default_factory=lambda: dict[str, Check]())
    seconds: Mapping[str, float] = field(default_factory=lambda: dict[str, float]())
    provenance: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(
        cell: Cell,
        selection: Selection,
        scores: Scores,
        *,
        times: Mapping[str, Check] | None = None,
        seconds: Mapping[str, float] | None = None,
        provenance: Mapping[str, str] | None = None,
        notes: tuple[str, ...] = (),
    ) -> Outcome:
        """The outcome of a choice.

        Args:
            cell: the cell.
            selection: the choice.
            scores: how the model did.
            times: as above.
            seconds: as above.
            provenance: added to that of the selection.
            notes: as above.
        """
        return Outcome(
            cell,
            tuple(int(count) for count in selection.counts),
            selection.kept,
            scores,
            selection.value,
            selection.bound,
            selection.status,
            selection.certificate,
            dict(selection.costs),
            dict(times or {}),
            dict(seconds or {}),
            {**selection.provenance, **(provenance or {})},
            notes,
        )

    @property
    def gap(self) -> float:
        """``|bound - value| / max(|value|, 1e-12)``; infinite without a bound or a value."""
        return relative_gap(self.value, self.bound)

    def save(self, path: PathLike) -> None:
        """Write the outcome as one safetensors file."""
        write_arrays(path, _KIND, _VERSION, self.header(), self.arrays())

    @staticmethod
    def load(path: PathLike) -> Outcome:
        """Read an outcome.

        Raises:
            RecordError: if the file is not usable.
            OSError: if it cannot be read.
        """
        found = read_arrays(path, _KIND, _VERSION, again="run this cell of the study again")
        with reading(path):
            return Outcome.from_record(found.header, found.arrays)

    def header(self) -> dict[str, Any]:
        """Everything but the arrays, as plain data; NaN and infinity become null."""
        return {
            "cell": list(self.cell),
            "counts": list(self.counts),
            "value": self.value if math.isfinite(self.value) else None,
            "bound": self.bound if math.isfinite(self.bound) else None,
            "status": self.status.name,
            "certificate": self.certificate,
            "costs": {name: [*cost, cost.unit] for name, cost in self.costs.items()},
            "times": {name: vars(check) for name, check in self.times.items()},
            "seconds": dict(self.seconds),
            "provenance": dict(self.provenance),
            "notes": list(self.notes),
            "scores": self.scores.header(),
        }

    def arrays(self) -> dict[str, Any]:
        """The arrays: ``kept``, bool ``[n]``, and those of the scores, ``[examples]``."""
        scores = {f"scores/{name}": array for name, array in self.scores.arrays.items()}
        return {"kept": self.kept, **scores}

    @staticmethod
    def from_record(header: Mapping[str, Any], arrays: Arrays) -> Outcome:
        """The inverse of :meth:`header` and :meth:`arrays`, ``[n]`` and ``[examples]``.

        Raises:
            ValueError, KeyError, TypeError: if it is not an outcome.
        """
        start = "scores/"
        return Outcome(
            cell_of(header["cell"]),
            tuple(int(count) for count in header["counts"]),
            np.asarray(arrays["kept"], dtype=bool),
            Scores.of(
                header["scores"],
                {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)},
            ),
            math.nan if header["value"] is None else float(header["value"]),
            math.inf if header["bound"] is None else float(header["bound"]),
            Status[header["status"]],
            header["certificate"],
            {name: Cost(*told) for name, told in header["costs"].items()},
            {name: Check(**told) for name, told in header["times"].items()},
            header["seconds"],
            header["provenance"],
            tuple(header["notes"]),
        )
