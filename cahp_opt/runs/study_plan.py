"""What a study runs: every method at every limit with every recovery, for several seeds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from cahp_opt.costs.workloads import Workload
from cahp_opt.runs.limits import Limit
from cahp_opt.runs.maximising import Maximising
from cahp_opt.runs.measuring import MeasuringOptions
from cahp_opt.runs.method import Method
from cahp_opt.runs.plan import Reading, RecoveryOptions
from cahp_opt.runs.recovery import Recovery
from cahp_opt.studies.outcome import Cell

KEEP_SETS = 20
"""Random keep-sets where no number is given."""


class Job(NamedTuple):
    """The cells of a study that differ in their recovery alone, which often share one choice.

    Args:
        method: name of the method.
        limit: text of the limit.
        seed: of the texts and of every random choice.
    """

    method: str
    limit: str
    seed: int


class Stratum(NamedTuple):
    """Where the random keep-sets of a study are drawn.

    Args:
        limit: text of the limit.
        seed: of the texts and of every random choice.
    """

    limit: str
    seed: int


@dataclass(frozen=True)
class StudyPlan:
    """The options of a study, beside the model and the texts.

    Args:
        methods: the methods by name.
        limits: the limits; each is tried alone.
        recoveries: the recoveries.
        seeds: each draws texts of its own, and is the seed of every random choice.
        recovering: how the recoveries work; its own choice of one is not looked at.
        workloads: what the models are timed on, at least one.
        reading: how texts become batches.
        measuring: the number of examples for the statistics that the methods need.
        time_limit: seconds that a solver may take; None for no limit.
        objectives: the names of the methods whose objectives are judged by themselves too.
        keep_sets: random keep-sets at every limit for every seed, by which they are judged.

    Raises:
        ValueError: if there is nothing to do, or something twice; or for objectives that cannot be judged.
    """

    methods: Mapping[str, Method]
    limits: tuple[Limit, ...]
    recoveries: tuple[Recovery, ...] = (Recovery.REFIT,)
    seeds: tuple[int, ...] = (0, 1, 2)
    recovering: RecoveryOptions = field(default_factory=RecoveryOptions)
    workloads: tuple[Workload, ...] = (Workload(),)
    reading: Reading = field(default_factory=Reading)
    measuring: MeasuringOptions = field(default_factory=MeasuringOptions)
    time_limit: float | None = None
    objectives: tuple[str, ...] = ()
    keep_sets: int = KEEP_SETS

    def __post_init__(self) -> None:
        lists: Mapping[str, Sequence[object]] = {
            "methods": tuple(self.methods),
            "limits": tuple(limit.text for limit in self.limits),
            "recoveries": self.recoveries,
            "seeds": self.seeds,
        }
        for name, given in lists.items():
            twice = [each for i, each in enumerate(given) if each in given[:i]]
            if not given or twice:
                what = f"holds {twice[0]!r} twice" if twice else "is empty"
                raise ValueError(f"`{name}` {what}; give at least one, and each once.")
        for name in self.objectives:
            self.objective(name)
        if self.keep_sets < 2:
            raise ValueError(
                f"`keep_sets` must be at least 2, for one has no order, got {self.keep_sets}."
            )

    def objective(self, name: str) -> Maximising:
        """The method that maximises an objective.

        Raises:
            ValueError: if there is none of this name, or it maximises nothing.
        """
        found = self.methods.get(name)
        if not isinstance(found, Maximising):
            raise ValueError(
                f"`objectives` holds {name!r}, which is not among the `methods` that maximise an objective."
            )
        return found

    def without(self, names: Collection[str]) -> StudyPlan:
        """The plan without some methods, and without objectives of these names."""
        methods = {name: each for name, each in self.methods.items() if name not in names}
        objectives = tuple(name for name in self.objectives if name not in names)
        return replace(self, methods=methods, objectives=objectives)

    @property
    def strata(self) -> list[Stratum]:
        """Where random keep-sets are drawn: seed by seed, at every limit; nowhere without objectives."""
        if not self.objectives:
            return []
        return [Stratum(limit.text, seed) for seed in self.seeds for limit in self.limits]

    @property
    def refits(self) -> bool:
        """Whether a recovery includes a refit."""
        return any(recovery.refits for recovery in self.recoveries)

    @property
    def timed(self) -> bool:
        """Whether any limit is about a measured time."""
        return any(limit.target.latencies for limit in self.limits)

    def limit(self, text: str) -> Limit:
        """The limit of this text."""
        return next(limit for limit in self.limits if limit.text == text)

    def recovered(self, recovery: Recovery) -> RecoveryOptions:
        """The options of one recovery; those that are about another one are the usual ones."""
        found, own = RecoveryOptions(recovery), self.recovering
        if recovery.refits:
            found = replace(found, weighting=own.weighting, feed_forward=own.feed_forward)
        if recovery is Recovery.FINETUNE:
            found = replace(found, epochs=own.epochs, learning_rate=own.learning_rate)
        return found

    def in_words(self, texts: int, held_out: int) -> str:
        """How much there is to do, for people.

        Args:
            texts: texts of a draw.
            held_out: texts to judge by.
        """
        numbers = {
            "method": len(self.methods),
            "limit": len(self.limits),
            "recovery": len(self.recoveries),
            "seed": len(self.seeds),
        }
        product = " x ".join(_several(number, name) for name, number in numbers.items())
        chosen = numbers["method"] * numbers["limit"] * numbers["seed"]
        repaired = chosen * sum(recovery.repairs for recovery in self.recoveries)
        return (
            f"{product}: {_several(len(self.cells()), 'cell')}, for {_several(len(self.seeds), 'calibration')} on "
            f"{texts} texts, {_several(repaired, 'recovery')} on these texts, and as many models as cells to judge on "
            f"{held_out} held-out texts{self._random_in_words()}"
        )

    def _random_in_words(self) -> str:
        if not self.objectives:
            return ""
        models = len(self.strata) * self.keep_sets * len(self.recoveries)
        return (
            f"; {_several(len(self.objectives), 'objective')}, by {self.keep_sets} random keep-sets at every limit: "
            f"{models} more models to judge"
        )

    def jobs(self) -> Iterator[Job]:
        """All jobs, seed by seed, so that what stops early has compared all methods."""
        for seed in self.seeds:
            for limit in self.limits:
                yield from (Job(method, limit.text, seed) for method in self.methods)

    def cells_of(self, job: Job) -> list[Cell]:
        """The cells of a job, those without a recovery first: they are the quickest."""
        order = sorted(self.recoveries, key=lambda recovery: recovery.repairs)
        return [Cell(job.method, job.limit, recovery.value, job.seed) for recovery in order]

    def cells(self) -> list[Cell]:
        """All cells, in the order of tables."""
        return [
            Cell(method, limit.text, recovery.value, seed)
            for limit in self.limits
            for recovery in self.recoveries
            for method in self.methods
            for seed in self.seeds
        ]


def _several(number: int, name: str) -> str:
    plural = f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"
    return f"{number} {name if number == 1 else plural}"
