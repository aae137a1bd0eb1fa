"""The statistics that calibration measures, and on how many examples."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from cahp_opt.runs.options import option

ANYWAY = frozenset({"moments"})
"""Statistics that every calibration measures without the sensitivity, which says all that they do of the order of
neurons, and more: they cost no pass of their own."""


@dataclass(frozen=True)
class MeasuringOptions:
    """How much of what calibration measures, where it is measured."""

    topic: ClassVar[str] = "Statistics"

    gradient_examples: int = field(
        default=256,
        metadata=option(
            "--gradient-examples",
            min=0,
            help="Texts to take gate gradients on, for salience and gauss-newton.",
        ),
    )
    sensitivity_examples: int = field(
        default=2048,
        metadata=option(
            "--sensitivity-examples",
            min=0,
            help="Texts to weigh tokens by the output's sensitivity on, for explained-output.",
        ),
    )
    divergence_examples: int = field(
        default=64,
        metadata=option(
            "--divergence-examples",
            min=0,
            help="Texts to compare attention maps on, for facility-location.",
        ),
    )
    signature_size: int = field(
        default=32,
        metadata=option(
            "--signature-size",
            min=0,
            help="Cells per side of attention maps by class, for complementarity; needs --data with labels.",
        ),
    )

    statistics_memory: float | None = field(
        default=None,
        repr=False,  # results do not depend on it
        metadata=option(
            "--statistics-memory",
            min=0,
            metavar="GIB",
            help="Memory for the statistics of blocks, in GiB. Those that take more are measured in several passes over "
            "the texts, and lie on a disk beside the output until it is written. Default: half of what is free.",
        ),
    )

    @property
    def statistics_bytes(self) -> float | None:
        """The bytes of memory for the statistics of blocks; None for half of what is free."""
        return None if self.statistics_memory is None else self.statistics_memory * 2**30

    def check(self, objective: str, needs: Collection[str]) -> None:
        """Refuse to measure nothing of what an objective of this name needs.

        Raises:
            ValueError: naming the amount.
        """
        for amount, statistics in DECIDED.items():
            if not getattr(self, amount) and statistics.intersection(needs):
                raise ValueError(
                    f"`{amount}` is 0, and {objective} is made from what it is about; give 1 or more."
                )

    def of(self, statistics: Iterable[str]) -> Measuring:
        """This much of some statistics, by name."""
        return Measuring(frozenset(statistics), self)


@dataclass(frozen=True)
class Measuring:
    """Which statistics calibration measures, and how much of them.

    Args:
        statistics: their names, as :data:`cahp_opt.stats.registry.STATISTICS` has them; an objective states
            those it needs (:attr:`cahp_opt.runs.names.ObjectiveName.needs`).
        amounts: the numbers of examples and the like.
        densities: of the random masks under which matrices are taken.
        refitted: whether what is left will be refitted, which decides the order of neurons: by what a refit on
            the others cannot replace, or by what is lost where nothing is refitted
            (:func:`cahp_opt.stats.neuron_order.in_order_of_price`).
    """

    statistics: frozenset[str]
    amounts: MeasuringOptions = MeasuringOptions()
    densities: tuple[float, ...] = (1.0, 0.5)
    refitted: bool = True

    def __contains__(self, statistic: str) -> bool:
        weighted = "sensitivity" in self.statistics and self.amounts.sensitivity_examples != 0
        return statistic in self.statistics or (statistic in ANYWAY and not weighted)

    def ordering_neurons(self) -> Measuring:
        """The same, with the sensitivity where nothing is refitted: it tells what the output loses with a neuron."""
        if self.refitted:
            return self
        return replace(self, statistics=self.statistics | {"sensitivity"})

    def any(self, statistics: Iterable[str]) -> bool:
        """Whether any of these statistics is measured."""
        return any(statistic in self for statistic in statistics)


DECIDED: Mapping[str, frozenset[str]] = {
    "gradient_examples": frozenset({"salience", "gauss_newton", "fisher"}),
    "sensitivity_examples": frozenset({"sensitivity"}),
    "divergence_examples": frozenset({"divergence"}),
    "signature_size": frozenset({"signatures"}),
}
"""The statistics that each amount is about."""
