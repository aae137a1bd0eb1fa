"""The objectives of a study: random keep-sets, how their models do, and what objectives say of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.files.store import Busy, Row, digest
from cahp_opt.objectives import Modular
from cahp_opt.progress import Stages
from cahp_opt.runs.method import Needs
from cahp_opt.runs.study_plan import Stratum
from cahp_opt.selection import Selection, chooser
from cahp_opt.solvers import RandomSubset
from cahp_opt.studies.random_sets import RandomSets
from cahp_opt.torch.studies.bench import bench_of
from cahp_opt.torch.studies.choosing import told
from cahp_opt.torch.studies.draws import Draw, draw_of
from cahp_opt.torch.studies.failures import reason_of
from cahp_opt.torch.studies.judging import judged
from cahp_opt.torch.studies.recipe import Recipe
from cahp_opt.torch.studies.working import Done


class Turn(NamedTuple):
    """One random keep-set.

    Args:
        stratum: where it is drawn.
        number: which of the keep-sets there it is.
    """

    stratum: Stratum
    number: int


class Spread(Protocol):
    """Does pieces of work, here or elsewhere."""

    def __call__(self, todo: Sequence[Callable[[], Done]], /) -> Iterable[Done]:
        """What comes of pieces of work, as it comes."""
        ...


@dataclass(frozen=True, eq=False)
class JudgedSet:
    """How the models do that keep one random keep-set.

    Args:
        turn: which keep-set it is.
        kept: its units, bool ``[n]``; None if it could not be drawn.
        figures: by recovery and by name of the figure, how the model does.
        failed: by recovery whose model could not be judged, a sentence with the reason.
        busy: whether another process is doing a part of it, so that it has to be asked for again.
    """

    turn: Turn
    kept: Bools | None = None
    figures: Mapping[str, Mapping[str, float]] = field(
        default_factory=lambda: dict[str, Mapping[str, float]]()
    )
    failed: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    busy: bool = False


@dataclass(frozen=True, eq=False)
class Valued:
    """What an objective says of the random keep-sets of one stratum.

    Args:
        stratum: where they were drawn.
        objective: its name.
        values: its values, ``[sets]``; None if there are none.
        failed: a sentence with the reason, where there are none.
        busy: whether another process is doing a part of it, so that it has to be asked for again.
    """

    stratum: Stratum
    objective: str
    values: Floats | None = None
    failed: str = ""
    busy: bool = False


def ranked_sets(
    recipe: Recipe,
    needs: Needs,
    refused: Mapping[str, str],
    seeds: Collection[int],
    spread: Spread,
    stages: Stages,
) -> tuple[RandomSets, ...]:
    """The random keep-sets of all strata, judged once for all objectives, and the values of every objective.

    Args:
        recipe: the study.
        needs: what all methods need together.
        refused: by objective that does not apply, a sentence with the reason.
        seeds: those that could be calibrated for.
        spread: does pieces of work, and gives what comes of them as it comes.
        stages: shows the stages.
    """
    plan = recipe.plan
    strata = [stratum for stratum in plan.strata if stratum.seed in seeds]
    if not strata:
        return ()
    judged_sets, valued = list[JudgedSet](), list[Valued]()
    # In turns, so that what is there after an interruption holds as many of every limit.
    turns = [
        Turn(Stratum(limit.text, seed), number)
        for seed in dict.fromkeys(stratum.seed for stratum in strata)
        for number in range(plan.keep_sets)
        for limit in plan.limits
    ]
    with stages.stage("random keep-sets") as progress:
        todo = [partial(judge_set, recipe, turn, needs) for turn in turns]
        for done in spread(todo):
            judged_sets.append(done)
            progress("random keep-sets", len(judged_sets), len(todo))
    with stages.stage("objectives") as progress:
        asked = [
            partial(evaluate_objective, recipe, stratum, name, needs)
            for stratum in strata
            for name in plan.objectives
        ]
        for value in spread(asked):
            valued.append(value)
            progress("objectives", len(valued), len(asked))
    found = (_gathered(recipe, stratum, judged_sets, valued, refused) for stratum in strata)
    return tuple(sets for sets in found if sets is not None)


def _gathered(
    recipe: Recipe,
    stratum: Stratum,
    judged_sets: Sequence[JudgedSet],
    valued: Sequence[Valued],
    refused: Mapping[str, str],
) -> RandomSets | None:
    """What came of one stratum; None if nothing could be drawn there."""
    own = sorted(
        (each for each in judged_sets if each.turn.stratum == stratum),
        key=lambda each: each.turn.number,
    )
    kept = [each.kept for each in own if each.kept is not None]
    if len(kept) < len(own):
        return None
    figures, unjudged = dict[str, dict[str, Floats]](), dict[str, str]()
    for recovery in (each.value for each in recipe.plan.recoveries):
        names = dict.fromkeys(name for each in own for name in each.figures.get(recovery, {}))
        figures[recovery] = {
            name: np.array([each.figures.get(recovery, {}).get(name, np.nan) for each in own])
            for name in names
        }
        for each in own:
            if recovery in each.failed:
                unjudged.setdefault(recovery, each.failed[recovery])
    here = {each.objective: each for each in valued if each.stratum == stratum}
    every = [here[name] for name in recipe.plan.objectives]
    return RandomSets(
        stratum.limit,
        stratum.seed,
        np.array(kept),
        {each.objective: each.values for each in every if each.values is not None},
        figures,
        {**{each.objective: each.failed for each in every if each.failed}, **refused},
        unjudged,
    )


def judge_set(recipe: Recipe, turn: Turn, needs: Needs) -> JudgedSet:
    """Slice, recover and judge the models that keep a random keep-set, unless that is there."""
    bench = bench_of(recipe)
    figures, failed = dict[str, Mapping[str, float]](), dict[str, str]()
    kept: Bools | None = None
    with bench.alone:
        draw = draw_of(bench, turn.stratum.seed, needs)
        for recovery in sorted(recipe.plan.recoveries, key=lambda each: each.repairs):
            try:
                draw.measure()
                selection = drawn(draw, turn)
                kept = selection.kept
                figures[recovery.value] = judged(draw, selection, recovery).scores.values()
            except Busy:
                return JudgedSet(turn, busy=True)
            except Exception as error:  # whatever it is, the others may go well
                what = f"{turn}, {recovery.value}"
                failed[recovery.value] = reason_of(bench.store, what, error)
    return JudgedSet(turn, kept, figures, failed)


def evaluate_objective(recipe: Recipe, stratum: Stratum, objective: str, needs: Needs) -> Valued:
    """Make an objective and ask it for its values at the random keep-sets, unless they are there."""
    bench = bench_of(recipe)
    with bench.alone:
        draw = draw_of(bench, stratum.seed, needs)
        try:
            draw.measure()
            return Valued(stratum, objective, _values(draw, stratum, objective))
        except Busy:
            return Valued(stratum, objective, busy=True)
        except Exception as error:  # the other objectives may go well
            what = f"values of {objective} at {stratum}"
            return Valued(stratum, objective, failed=reason_of(bench.store, what, error))


def drawn(draw: Draw, turn: Turn) -> Selection:
    """A random keep-set: units in a random order as long as the limit holds.

    Those of larger numbers do not change it, so that more keep-sets begin with the same ones.
    """
    bench, space = draw.bench, draw.calibrated.stats.space
    limit = bench.plan.limit(turn.stratum.limit)
    task = bench.task(limit, bench.plan.recoveries[0], draw.seed, space)
    seed = int(np.random.SeedSequence([draw.seed, turn.number]).generate_state(1)[0])
    return chooser(Modular(np.ones(space.n)), RandomSubset(), seed=seed)(task.budget)


def _values(draw: Draw, stratum: Stratum, objective: str) -> Floats:
    bench, space = draw.bench, draw.calibrated.stats.space
    method, limit = bench.plan.objective(objective), bench.plan.limit(stratum.limit)
    task = bench.task(limit, bench.plan.recoveries[0], stratum.seed, space)
    needs, numbers = method.needs(task), range(bench.plan.keep_sets)
    every = [drawn(draw, Turn(stratum, number)).kept for number in numbers]

    def make() -> Row:
        made = method.maximised(needs.of(draw.calibrated.stats), task)
        values = [repr(float(made.value(kept))) for kept in every]
        return {"values": values}  # which may be infinite

    bits = [np.packbits(kept).tobytes() for kept in every]
    key = draw.grouped_key(needs), told(method), bench.limit_key(limit), digest(bits)
    values = np.array(
        [float(value) for value in bench.store.row("values", key, make, wait=False)["values"]]
    )
    undefined = int(np.isnan(values).sum())
    if undefined:
        raise ValueError(
            f"the objective is not a number (NaN) at {undefined} of {len(values)} random keep-sets."
        )
    return values
