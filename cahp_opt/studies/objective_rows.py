"""Objectives side by side: how each ranks random keep-sets, and the damage of what it chooses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from cahp_opt.studies.correlations import Correlation
from cahp_opt.studies.outcome import Arm, Cell
from cahp_opt.studies.study import SeedMean, Study


class ObjectiveRow(NamedTuple):
    """What a study found out about an objective, with one recovery.

    Args:
        objective: its name, which is that of the method that maximises it too.
        correlation: how well it ranks random keep-sets by their damage.
        chosen: by limit, the damage of what it chooses, mean over seeds; limits without an outcome are left out.
        reasons: sentences on what is missing.
    """

    objective: str
    correlation: Correlation
    chosen: Mapping[str, SeedMean]
    reasons: tuple[str, ...]


def objective_rows(study: Study, recovery: str, figure: str | None = None) -> list[ObjectiveRow]:
    """The objectives of a study, those first that rank best.

    Args:
        study: the study.
        recovery: name of the recovery.
        figure: what damage is; None for the distance from the unpruned model.

    Raises:
        ValueError: without numbers for the figure.
    """
    name = study.unpruned.distance.name if figure is None else figure
    found = study.correlations(recovery, figure)
    rows = [_row(study, recovery, name, each, found[each]) for each in found]
    return sorted(rows, key=lambda row: _last_if_nan(-row.correlation.mean))


def _row(
    study: Study, recovery: str, figure: str, objective: str, correlation: Correlation
) -> ObjectiveRow:
    chosen = dict[str, SeedMean]()
    for limit in study.limits:
        own = study.of(Arm(objective, limit, recovery)).values()
        if own:
            chosen[limit] = SeedMean.of([outcome.scores.value(figure) for outcome in own])
    reasons = [s.unvalued[objective] for s in study.random_sets if objective in s.unvalued]
    cells = (
        Cell(objective, limit, recovery, sets.seed)
        for sets in study.random_sets
        for limit in study.limits
    )
    reasons += [study.missing[cell] for cell in cells if study.missing.get(cell)]
    return ObjectiveRow(objective, correlation, chosen, tuple(dict.fromkeys(reasons)))


def _last_if_nan(x: float) -> float:
    return math.inf if math.isnan(x) else x
