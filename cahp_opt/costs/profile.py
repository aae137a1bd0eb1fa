"""All costs of one model that a budget can limit, in one portable file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from cahp_opt.costs.cost_table import CostTable, check_served
from cahp_opt.costs.latency_table import LATENCY_KIND, LatencyTable
from cahp_opt.files.records import PathLike, kind_of, read_json, reading, write_json
from cahp_opt.identity import difference, structure_of
from cahp_opt.space import HeadSpace

_KIND, _VERSION = "cahp-profile", 1


ResourceTable = CostTable
"""The table of a resource: ``ResourceTable(space, fixed, costs, unit)``."""


@dataclass(frozen=True, eq=False)
class Profile:
    """The costs of a model by the counts it keeps: latency tables by workload, resources by name.

    Args:
        space: the blocks. The order of their neurons, where it is stated, belongs to what was measured on
            the same units, and is not saved.
        latency: measured (or estimated) times by name of the workload, such as ``prefill``.
        resources: other costs by name: exact ones, such as ``parameters``, or measured ones.

    Raises:
        ValueError: if there is no table at all, a name is empty, or a table is of other blocks or of
            another model than the others.
    """

    space: HeadSpace
    latency: Mapping[str, LatencyTable] = field(default_factory=lambda: MappingProxyType({}))
    resources: Mapping[str, CostTable] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for kind in ("latency", "resources"):
            tables: Mapping[str, CostTable] = getattr(self, kind)
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
        """The class and the shapes of the model; empty if no table states them."""
        return next((told for _, told in self._models() if told), "")

    @property
    def measured(self) -> dict[str, CostTable]:
        """The tables that were measured: of latency by workload, of other costs by their own name."""
        other = {name: table for name, table in self.resources.items() if table.measured}
        return {**self.latency, **other}

    def restricted(self, space: HeadSpace) -> Profile:
        """The profile of the same model over the blocks of ``space``, in whose order neurons are grouped.

        Args:
            space: as for :meth:`CostTable.restricted`, so that a profile of both kinds of blocks serves
                where one kind alone is pruned.

        Raises:
            ValueError: if the tables are of other blocks.
        """
        return Profile(
            check_served(self.space, space).ordered_as(space),
            {name: table.restricted(space) for name, table in self.latency.items()},
            {name: table.restricted(space) for name, table in self.resources.items()},
        )

    def replacing(self, tables: Mapping[str, CostTable]) -> Profile:
        """The profile with other tables in place of :attr:`measured` ones, by name."""
        timed = {n: t for n, t in tables.items() if isinstance(t, LatencyTable)}
        other = {n: t for n, t in tables.items() if n not in timed}
        return Profile(self.space, {**self.latency, **timed}, {**self.resources, **other})

    def check(self, model: str) -> None:
        """Refuse another model than the tables are of, even if its blocks have the same names and units.

        Args:
            model: its identity, as in :mod:`cahp_opt.identity`; only class and shapes are compared,
                if they are known.

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
        tables = [*self.latency.items(), *self.resources.items()]
        return [(name, table.model) for name, table in tables]

    def save(self, path: PathLike) -> None:
        """Write the profile as JSON."""
        body: dict[str, Any] = {
            "blocks": self.space.unordered().to_json(),
            "latency": {name: table.to_json() for name, table in self.latency.items()},
            "resources": {name: table.to_json() for name, table in self.resources.items()},
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
                {name: CostTable.from_json(space, t) for name, t in data["resources"].items()},
            )
