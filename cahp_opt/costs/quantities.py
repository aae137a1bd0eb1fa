"""Resources that can be limited, their units of measure, and how amounts are stated and shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PARAMETERS = "parameters"
"""The resource counted in weights."""
MEMORY = "memory"
"""The resource counted in bytes of the weights."""
KV_CACHE = "kv_cache"
"""The resource counted in bytes of the key/value cache of a decoding workload."""


@dataclass(frozen=True)
class Quantity:
    """A unit of measure.

    Args:
        suffixes: what amounts are stated with, and how many of the unit each stands for.
        examples: amounts as they are stated, for a sentence.
        counted: whether amounts are whole numbers, which are computed and not measured.
        bare: whether a whole number above 1 may be stated without a suffix.
    """

    suffixes: Mapping[str, float]
    examples: str
    counted: bool = True
    bare: bool = False

    @property
    def base(self) -> str:
        """The suffix of one unit; empty if that has none."""
        return next((suffix for suffix, factor in self.suffixes.items() if factor == 1), "")


_BYTES = {
    "B": 1,
    **{f"{prefix}B": 1000**n for n, prefix in enumerate("kMGT", start=1)},
    **{f"{prefix}iB": 1024**n for n, prefix in enumerate("KMGT", start=1)},
}

QUANTITIES: Mapping[str, Quantity] = {
    "s": Quantity({"s": 1, "ms": 1e-3}, "12.5ms or 0.0125s", counted=False),
    "J": Quantity({"J": 1, "mJ": 1e-3}, "0.8J or 800mJ", counted=False),
    "bytes": Quantity(_BYTES, "512MB, 1.5GiB or 123456B"),
    "weights": Quantity(
        {"k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}, "7500000, 7.5M or 1.2B", bare=True
    ),
}
"""The units of measure by name, as tables have them."""


@dataclass(frozen=True)
class Resource:
    """A cost that can be limited beside latency.

    Args:
        unit: its unit of measure, one of :data:`QUANTITIES`.
        meter: ``module:function`` of a measured resource: the function takes a ``torch.device`` and
            returns a counter, which takes nothing and returns the amount used so far. Empty for a
            resource that is computed. A measured one is limited per workload, as ``NAME of prefill``.
    """

    unit: str
    meter: str = ""


RESOURCES: dict[str, Resource] = {
    PARAMETERS: Resource("weights"),
    MEMORY: Resource("bytes"),
    KV_CACHE: Resource("bytes"),
}
"""The resources that can be limited beside latency, by name."""


SHORTHANDS = (PARAMETERS, MEMORY, KV_CACHE)
"""Resources that have an option of their own on the command line."""


def unit_of_measure(name: str) -> str:
    """The unit of measure of a cost by its name in a budget, where records do not say it; empty if unknown."""
    kind = resource_of(name.split(" (")[0])
    return "s" if kind == "latency" else RESOURCES[kind].unit if kind in RESOURCES else ""


def resource_of(name: str) -> str:
    """The resource in a name such as ``NAME of prefill``."""
    return name.partition(" of ")[0]


def workload_of(name: str) -> str:
    """The workload that a measured table is about: of latencies it is the name of the table."""
    return name.partition(" of ")[2] or name


def metered(workloads: Iterable[str]) -> list[str]:
    """The names of all resources that are measured, of each of these workloads."""
    kinds = [name for name, resource in RESOURCES.items() if resource.meter]
    return [f"{kind} of {workload}" for workload in workloads for kind in kinds]


def amount(cost: float | None, unit: str) -> str:
    """An amount for people: measured ones in thousandths below 1; empty for None."""
    if cost is None:
        return ""
    if unit not in QUANTITIES or QUANTITIES[unit].counted:
        number = f"{cost:,.0f}" if float(cost).is_integer() else f"{cost:,.10g}"
        return f"{number} {unit}".rstrip()
    return f"{cost:.3f} {unit}" if cost >= 1 else f"{1000 * cost:.4g} m{unit}"
