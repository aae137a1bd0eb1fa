"""The table of measured time: seconds per block by number of units kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.costs.cost_table import CostTable
from cahp_opt.costs.provenance import Provenance
from cahp_opt.files.records import PathLike, read_json, reading, write_json
from cahp_opt.space import HeadSpace

LATENCY_KIND, _VERSION = "cahp-latency", 1


@dataclass(frozen=True, eq=False)
class LatencyTable(CostTable):
    """A :class:`CostTable` in seconds, with its own file: ``LatencyTable(space, fixed, seconds,
    provenance, least)``."""

    unit: str = field(default="s", kw_only=True)

    @property
    def seconds(self) -> tuple[Floats, ...]:
        """The costs: for every block an array ``[units + 1]`` of seconds."""
        return self.costs

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
        return {
            "fixed": self.fixed,
            "least": self.least,
            "seconds": [s.tolist() for s in self.seconds],
            "provenance": self.provenance.to_json(),
        }

    @staticmethod
    def from_json(space: HeadSpace, data: Mapping[str, Any]) -> LatencyTable:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError, KeyError, TypeError: if it is not a table of these blocks.
        """
        return LatencyTable(
            space,
            data["fixed"],
            tuple(np.array(s, dtype=np.float64) for s in data["seconds"]),
            Provenance.from_json(data["provenance"]),
            data.get("least", 0.0),
        )
