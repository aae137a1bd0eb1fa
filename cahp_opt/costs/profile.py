"""Everything a budget can be about, of one model, in one portable file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import fsum
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Floats
from cahp_opt.costs.count_table import check_counts, count_arrays
from cahp_opt.costs.latency_table import LATENCY_KIND, LatencyTable
from cahp_opt.files.records import PathLike, kind_of, read_json, reading, write_json
from cahp_opt.identity import difference, structure_of
from cahp_opt.space import HeadSpace

_KIND, _VERSION = "cahp-profile", 1


@dataclass(frozen=True, eq=False)
class ResourceTable:
    """An exact cost of every block at every count, such as its weights, and of everything outside.

    Args:
        space: the blocks.
        fixed: the cost of everything outside the blocks.
        costs: for every block an array ``[units + 1]``.
        unit: the unit of measure, such as ``bytes``.
        model: the model's class and shapes, as :func:`~cahp_opt.identity.structure_of` has them; empty if
            unknown.

    Raises:
        ValueError: for a wrong shape, or a cost that is negative or not finite.
    """

    space: HeadSpace
    fixed: float
    costs: tuple[Floats, ...]
    unit: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.fixed) and self.fixed >= 0):
            raise ValueError(f"`fixed` must be finite and at least 0, got {self.fixed}.")
        object.__setattr__(self, "fixed", float(self.fixed))
        object.__setattr__(self, "costs", count_arrays(self.space, self.costs, "costs"))

    @property
    def dense(self) -> float:
        """The cost of the unpruned model."""
        return self.predict(self.space.units)

    @property
    def floor(self) -> float:
        """The least cost that any counts can reach."""
        return fsum([self.fixed, *(float(c.min()) for c in self.costs)])

    def predict(self, counts: npt.ArrayLike) -> float:
        """The cost of the whole model that keeps ``counts[b]`` units in block ``b``.

        Raises:
            ValueError: if a count is outside ``0 .. units`` of its block.
        """
        array = check_counts(self.space, counts)
        return fsum([self.fixed, *(float(c[k]) for c, k in zip(self.costs, array, strict=True))])


@dataclass(frozen=True, eq=False)
class Profile:
    """What a model costs by the counts it keeps: latency tables by workload, resources by name.

    Args:
        space: the blocks.
        latency: measured (or estimated) times by name of the workload, such as ``prefill``.
        resources: exact costs by name, such as ``parameters``.

    Raises:
        ValueError: if there is no table at all, a name is empty, or a table is of other blocks or of
            another model than the others.
    """

    space: HeadSpace
    latency: Mapping[str, LatencyTable] = field(default_factory=lambda: MappingProxyType({}))
    resources: Mapping[str, ResourceTable] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for kind in ("latency", "resources"):
            tables: Mapping[str, LatencyTable | ResourceTable] = getattr(self, kind)
            for name, table in tables.items():
                difference = self.space.difference(table.space)
                if not name or difference:
                    raise ValueError(
                        f"`{kind}` must have tables of the profile's own blocks under non-empty names; "
                        f"{name!r} differs: {difference or 'it has no name'}."
                    )
            object.__setattr__(self, kind, MappingProxyType(dict(tables)))
        if not self.latency and not self.resources:
            raise ValueError("a profile needs at least one table.")
        self.check(self.model)

    @property
    def model(self) -> str:
        """The class and the shapes of the model; empty if no table tells them."""
        return next((told for _, told in self._models() if told), "")

    def check(self, model: str) -> None:
        """Refuse another model than the tables are of, even if its blocks have the same names and units.

        Args:
            model: its identity, as :mod:`cahp_opt.identity` has it; only class and shapes are compared, and
                nothing that is unknown.

        Raises:
            ValueError: if it is another one.
        """
        for name, told in self._models():
            found = difference(structure_of(model), told)
            if found is not None:
                raise ValueError(
                    f"the table {name!r} is of another model ({found}); measure it on this one."
                )

    def _models(self) -> list[tuple[str, str]]:
        timed = [(name, table.provenance.model) for name, table in self.latency.items()]
        return timed + [(name, table.model) for name, table in self.resources.items()]

    def save(self, path: PathLike) -> None:
        """Write the profile as JSON."""
        body: dict[str, Any] = {
            "blocks": self.space.to_json(),
            "latency": {name: table.to_json() for name, table in self.latency.items()},
            "resources": {
                name: {
                    "fixed": table.fixed,
                    "unit": table.unit,
                    "model": table.model,
                    "costs": [c.tolist() for c in table.costs],
                }
                for name, table in self.resources.items()
            },
        }
        write_json(path, _KIND, _VERSION, body)

    @staticmethod
    def load(path: PathLike) -> Profile:
        """Read a profile, or a single latency table as a profile with only that.

        Raises:
            RecordError: if the file is neither.
            OSError: if it cannot be read.
        """
        if kind_of(path) == LATENCY_KIND:
            table = LatencyTable.load(path)
            return Profile(table.space, {table.provenance.phase.value: table})
        data = read_json(path, _KIND, _VERSION)
        with reading(path):
            space = HeadSpace.from_json(data["blocks"])
            return Profile(
                space,
                {name: LatencyTable.from_json(space, t) for name, t in data["latency"].items()},
                {
                    name: ResourceTable(
                        space,
                        t["fixed"],
                        tuple(np.array(c, dtype=np.float64) for c in t["costs"]),
                        t["unit"],
                        t.get("model", ""),
                    )
                    for name, t in data["resources"].items()
                },
            )
