"""A study: every method at every limit with every recovery, over seeds, on the same examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cahp_opt.files.array_records import narrowed, read_arrays, write_arrays
from cahp_opt.files.records import PathLike, reading
from cahp_opt.space import HeadSpace
from cahp_opt.studies.correlations import Correlation, correlations
from cahp_opt.studies.differences import (
    RESAMPLES,
    Difference,
    Draws,
    Verdict,
    check_same_examples,
)
from cahp_opt.studies.figures import Figure
from cahp_opt.studies.outcome import Arm, Cell, Outcome, cell_of
from cahp_opt.studies.random_sets import RandomSets, joined_sets
from cahp_opt.studies.scores import Scores

_KIND, _VERSION = "cahp-study", 1


class SeedMean(NamedTuple):
    """A mean over seeds.

    Args:
        value: the mean.
        error: its standard error; None for one seed, and where a number is not finite.
    """

    value: float
    error: float | None

    @staticmethod
    def of(values: Sequence[float]) -> SeedMean:
        """The mean of at least one number."""
        array = np.array(values, dtype=np.float64)
        if len(array) < 2 or not np.isfinite(array).all():
            return SeedMean(float(array.mean()), None)
        return SeedMean(float(array.mean()), float(array.std(ddof=1)) / math.sqrt(len(array)))


@dataclass(frozen=True)
class StudyRow:
    """Means over the seeds of one arm.

    Args:
        arm: method, limit and recovery.
        seeds: the seeds.
        figures: by name, how well the models did.
        times: by name of the workload, the measured share of the unpruned time.
        predicted: by name of the workload, the predicted share.
    """

    arm: Arm
    seeds: tuple[int, ...]
    figures: Mapping[str, SeedMean]
    times: Mapping[str, SeedMean]
    predicted: Mapping[str, SeedMean]


class Standing(NamedTuple):
    """Where a method stands among others.

    Args:
        method: name of the method.
        mean: its figure.
        behind: its figure less that of the best method, with the probability that allows for all of them; None for
            the best.
    """

    method: str
    mean: SeedMean
    behind: Difference | None

    @property
    def ties(self) -> bool:
        """Whether it is the best, or does not differ from it by more than chance explains."""
        return self.behind is None or self.behind.verdict is Verdict.TIE


@dataclass(frozen=True, eq=False)
class Study:
    """The outcomes of a study.

    Args:
        model: name of the model.
        data: what the models were judged on.
        space: the blocks and units that were chosen among.
        unpruned: how the unpruned model does on the held-out examples.
        outcomes: what came out, one per cell, in the order of tables.
        missing: by cell without an outcome, a sentence with the reason; empty if it has not run yet.
        provenance: of the whole study, by name: versions, device, number of texts.
        notes: sentences that the user should read.
        random_sets: by limit and seed, random keep-sets, what objectives say of them and how their models do; empty
            if no objective was studied.

    Raises:
        ValueError: for two outcomes of one cell, one that is said to be missing, or one of other blocks or
            examples.
    """

    model: str
    data: str
    space: HeadSpace
    unpruned: Scores
    outcomes: tuple[Outcome, ...] = ()
    missing: Mapping[Cell, str] = field(default_factory=lambda: dict[Cell, str]())
    provenance: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    notes: tuple[str, ...] = ()
    random_sets: tuple[RandomSets, ...] = ()

    def __post_init__(self) -> None:
        for sets in self.random_sets:
            if sets.kept.shape[1] != self.space.n:
                raise ValueError(
                    f"`random_sets` at {sets.limit} are of {sets.kept.shape[1]} units, and `space` has {self.space.n}."
                )
        seen = set(self.missing)
        for found in self.outcomes:
            if found.cell in seen:
                raise ValueError(
                    f"`outcomes` must hold one outcome per cell that is not missing, got another for {found.cell}."
                )
            seen.add(found.cell)
            if found.kept.shape != (self.space.n,) or len(found.counts) != len(self.space.blocks):
                raise ValueError(
                    f"the outcome of {found.cell} is of other blocks than those of `space`."
                )
            if found.scores.examples != self.unpruned.examples:
                raise ValueError(
                    f"the outcome of {found.cell} is of {found.scores.examples} examples, and `unpruned` is of "
                    f"{self.unpruned.examples}; judge all models on the same."
                )

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, those with an outcome first."""
        return (*(found.cell for found in self.outcomes), *self.missing)

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of all methods, in the order of the cells."""
        return tuple(dict.fromkeys(cell.method for cell in self.cells))

    @property
    def limits(self) -> tuple[str, ...]:
        """All limits, in the order of the cells."""
        return tuple(dict.fromkeys(cell.limit for cell in self.cells))

    @property
    def recoveries(self) -> tuple[str, ...]:
        """The names of all recoveries, in the order of the cells."""
        return tuple(dict.fromkeys(cell.recovery for cell in self.cells))

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names of the objectives that were studied, each of which is a method too."""
        return tuple(dict.fromkeys(name for sets in self.random_sets for name in sets.objectives))

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All methods at limits with recoveries that have an outcome, in the order of the outcomes."""
        return tuple(dict.fromkeys(found.cell.arm for found in self.outcomes))

    def of(self, arm: Arm) -> dict[int, Outcome]:
        """The outcomes of an arm by seed."""
        return {found.cell.seed: found for found in self.outcomes if found.cell.arm == arm}

    def rows(self) -> tuple[StudyRow, ...]:
        """Means and standard errors over seeds of every arm, in the order of the outcomes."""
        return tuple(_row(arm, self.of(arm)) for arm in self.arms)

    def joined(self, newer: Study) -> Study:
        """The cells of two studies of one model, judged on the same examples: of those that are in both, the
        outcome of the newer one.

        Args:
            newer: the other study.

        Raises:
            ValueError: if it is of another model, of other blocks or examples, or drew other numbers of texts.
        """
        ours, theirs = ({**each.provenance, "data": each.data} for each in (self, newer))
        for name in ("data", "model", "texts of a draw"):
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"`newer` has another {name}: {theirs.get(name)}, where this study has {ours.get(name)}; only "
                    "studies of the same can be joined."
                )
        if self.space != newer.space:
            raise ValueError(
                "`newer` chose among other blocks than this study; only studies of the same can be joined."
            )
        check_same_examples([self.unpruned, newer.unpruned])
        found = {outcome.cell: outcome for outcome in (*self.outcomes, *newer.outcomes)}
        missing = {**self.missing, **newer.missing}
        told = dict[str, list[str]]()
        for name, fact in (*self.provenance.items(), *newer.provenance.items()):
            told.setdefault(name, []).extend(fact.split("; "))
        return Study(
            newer.model,
            newer.data,
            newer.space,
            newer.unpruned,
            tuple(found.values()),
            {cell: why for cell, why in missing.items() if cell not in found},
            {name: "; ".join(dict.fromkeys(each)) for name, each in told.items()},
            tuple(dict.fromkeys((*self.notes, *newer.notes))),
            joined_sets(self.random_sets, newer.random_sets),
        )

    def compared(
        self,
        one: Arm,
        other: Arm,
        figure: str | None = None,
        *,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> Difference:
        """A figure of one arm less that of another, with its interval; see
        :class:`~cahp_opt.studies.differences.Draws` for how.

        Args:
            one: an arm.
            other: another.
            figure: name of the figure; None for the headline figure.
            resamples: how often the examples are drawn again.
            seed: of the draws.

        Raises:
            ValueError: for an arm without outcomes, or without numbers for the figure.
        """
        draws, places = self._draws([one, other], self.unpruned.figure(figure), resamples, seed)
        return draws.difference(places[0], places[1])

    def standings(
        self,
        limit: str,
        recovery: str,
        figure: str | None = None,
        *,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> tuple[Standing, ...]:
        """All methods at a limit with a recovery, the best first, each compared with the best.

        The probabilities of chance allow for the number of methods, and for the best being picked among them; see
        :meth:`~cahp_opt.studies.differences.Draws.from_picked`.

        Args:
            limit: the limit, as in the cells.
            recovery: the recovery.
            figure: name of the figure; None for the headline figure.
            resamples: how often the examples are drawn again.
            seed: of the draws.

        Raises:
            ValueError: if no method has an outcome there, or without numbers for the figure.
        """
        arms = [arm for arm in self.arms if (arm.limit, arm.recovery) == (limit, recovery)]
        if not arms:
            raise ValueError(
                f"no method has an outcome at the limit {limit!r} with the recovery {recovery!r}; there are the "
                f"limits {', '.join(self.limits)} and the recoveries {', '.join(self.recoveries)}."
            )
        wanted = self.unpruned.figure(figure)
        means = [
            SeedMean.of([o.scores.value(wanted.name) for o in self.of(a).values()]) for a in arms
        ]
        order = sorted(range(len(arms)), key=lambda i: _rank(means[i].value, wanted))
        draws, places = self._draws(arms, wanted, resamples, seed)
        best, *others = order
        behind = draws.from_picked(0, [places[i] for i in order])
        return (
            Standing(arms[best].method, means[best], None),
            *(
                Standing(arms[i].method, means[i], found)
                for i, found in zip(others, behind, strict=True)
            ),
        )

    def best(self, limit: str, recovery: str, figure: str | None = None) -> tuple[str, ...]:
        """The best method at a limit with a recovery, and all that tie with it; see :meth:`standings`."""
        return tuple(each.method for each in self.standings(limit, recovery, figure) if each.ties)

    def correlations(
        self,
        recovery: str,
        figure: str | None = None,
        *,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> dict[str, Correlation]:
        """By objective, how well it ranks random keep-sets by the damage that they do.

        The interval is a bootstrap over the keep-sets of every limit and seed.

        Args:
            recovery: after which they were judged.
            figure: name of the figure that they were judged by; None for the distance from the unpruned model.
            resamples: how often the keep-sets are drawn again.
            seed: of the draws.

        Raises:
            ValueError: without numbers for the figure.
        """
        wanted = self.unpruned.distance if figure is None else self.unpruned.figure(figure)
        return correlations(self.random_sets, recovery, wanted, resamples=resamples, seed=seed)

    def at_random(self, limit: str, recovery: str, figure: str | None = None) -> float:
        """The mean of a figure over all random keep-sets at a limit; NaN without any.

        Args:
            limit: the limit.
            recovery: the recovery.
            figure: its name; None for the distance from the unpruned model.
        """
        name = self.unpruned.distance.name if figure is None else figure
        found = [
            sets.figures[recovery][name]
            for sets in self.random_sets
            if sets.limit == limit and name in sets.figures.get(recovery, {})
        ]
        known = [x for array in found for x in array if not math.isnan(x)]
        return float(np.mean(known)) if known else math.nan

    def _draws(
        self, arms: Sequence[Arm], figure: Figure, resamples: int, seed: int
    ) -> tuple[Draws, list[dict[int, int]]]:
        """The draws of all outcomes of some arms, and by arm and seed where they are in it."""
        scores, places = list[Scores](), list[dict[int, int]]()
        for arm in arms:
            found = self.of(arm)
            if not found:
                raise ValueError(f"there is no outcome of {arm}; `arms` has those that there are.")
            places.append({s: len(scores) + i for i, s in enumerate(found)})
            scores.extend(outcome.scores for outcome in found.values())
        return Draws(scores, figure, resamples=resamples, seed=seed), places

    def save(self, path: PathLike) -> None:
        """Write the study as one safetensors file, every array in the smallest type that holds it exactly."""
        header = {
            "model": self.model,
            "data": self.data,
            "blocks": self.space.to_json(),
            "unpruned": self.unpruned.header(),
            "outcomes": [found.header() for found in self.outcomes],
            "missing": [[list(cell), reason] for cell, reason in self.missing.items()],
            "provenance": dict(self.provenance),
            "notes": list(self.notes),
            "random_sets": [sets.header() for sets in self.random_sets],
        }
        arrays: dict[str, Any] = {f"unpruned/{n}": a for n, a in self.unpruned.arrays.items()}
        for i, found in enumerate(self.outcomes):
            arrays |= {f"{i}/{name}": array for name, array in found.arrays().items()}
        arrays = {name: narrowed(array) for name, array in arrays.items()}
        for i, sets in enumerate(self.random_sets):
            arrays |= {f"random {i}/{name}": array for name, array in sets.arrays().items()}
        write_arrays(path, _KIND, _VERSION, header, arrays)

    @staticmethod
    def load(path: PathLike) -> Study:
        """Read a study.

        Raises:
            RecordError: if the file is not a usable study.
            OSError: if it cannot be read.
        """
        found = read_arrays(path, _KIND, _VERSION, again="run the study again")
        with reading(path):
            header = found.header
            by_part: dict[str, dict[str, np.ndarray]] = {}
            for name, array in found.arrays.items():
                part, _, inner = name.partition("/")
                by_part.setdefault(part, {})[inner] = array
            return Study(
                header["model"],
                header["data"],
                HeadSpace.from_json(header["blocks"]),
                Scores.of(header["unpruned"], by_part["unpruned"]),
                tuple(
                    Outcome.from_record(told, by_part[str(i)])
                    for i, told in enumerate(header["outcomes"])
                ),
                {cell_of(cell): why for cell, why in header["missing"]},
                header["provenance"],
                tuple(header["notes"]),
                tuple(
                    RandomSets.from_record(told, by_part[f"random {i}"])
                    for i, told in enumerate(header.get("random_sets", []))
                ),
            )


def _row(arm: Arm, found: Mapping[int, Outcome]) -> StudyRow:
    outcomes = list(found.values())
    figures = [outcome.scores.values() for outcome in outcomes]
    measured, predicted = dict[str, list[float]](), dict[str, list[float]]()
    for outcome in outcomes:
        for name, check in outcome.times.items():
            measured.setdefault(name, []).append(check.ratio)
            if check.predicted_ratio is not None:
                predicted.setdefault(name, []).append(check.predicted_ratio)
    return StudyRow(
        arm,
        tuple(found),
        {name: SeedMean.of([each[name] for each in figures]) for name in figures[0]},
        {name: SeedMean.of(values) for name, values in measured.items()},
        {name: SeedMean.of(values) for name, values in predicted.items()},
    )


def _rank(value: float, figure: Figure) -> float:
    """What to sort by, the best first; figures that are not numbers last."""
    if math.isnan(value):
        return math.inf
    return -value if figure.higher_is_better else value
