"""The statistics that calibration measures, and on how many examples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

ANYWAY = frozenset({"moments"})
"""Statistics that every calibration measures: they cost no pass of their own."""


@dataclass(frozen=True)
class Measuring:
    """Which statistics calibration measures, and on how many examples.

    Args:
        statistics: their names, as in :data:`cahp_opt.stats.registry.STATISTICS`; an objective
            tells those it needs (:attr:`cahp_opt.runs.method.ObjectiveName.needs`).
        gradient_examples: the number of examples, from the start, for gate gradients.
        sensitivity_examples: the number of examples, from the start, for moments weighted by
            sensitivity.
        divergence_examples: the number of examples, from the start, whose attention maps are
            compared.
        signature_size: cells along each side of the attention maps that are averaged by class.
        densities: of the random masks under which matrices are taken.
    """

    statistics: frozenset[str] = frozenset({"salience", "gauss_newton"})
    gradient_examples: int = 256
    sensitivity_examples: int = 2048
    divergence_examples: int = 64
    signature_size: int = 32
    densities: tuple[float, ...] = (1.0, 0.5)

    def __contains__(self, statistic: str) -> bool:
        return statistic in self.statistics or statistic in ANYWAY

    def of(self, statistics: Iterable[str]) -> Measuring:
        """The same numbers for other statistics."""
        return replace(self, statistics=frozenset(statistics))

    def any(self, statistics: Iterable[str]) -> bool:
        """Whether any of these statistics is measured."""
        return any(statistic in self for statistic in statistics)
