"""A study as tables for the terminal: one for every limit and recovery, and of its objectives one for every recovery."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cahp_opt.studies.correlations import Correlation
from cahp_opt.studies.differences import LEVEL
from cahp_opt.studies.objective_rows import objective_rows
from cahp_opt.studies.outcome import Arm
from cahp_opt.studies.study import SeedMean, Study, StudyRow

_TIE = "≈"


def study_tables(study: Study) -> list[RenderableType]:
    """For every limit and recovery the methods, the best first, with those that tie with it marked."""
    rows = {row.arm: row for row in study.rows()}
    there = dict.fromkeys((arm.limit, arm.recovery) for arm in rows)
    found = list[RenderableType]()
    found.extend(_compared(study, rows, limit, recovery) for limit, recovery in there)
    if study.objectives:
        found.extend(_objectives(study, recovery) for recovery in study.recoveries)
    if study.missing:
        found.append(_failed(study))
    return found


def _compared(study: Study, rows: Mapping[Arm, StudyRow], limit: str, recovery: str) -> Table:
    headline = study.unpruned.headline
    shown = [headline.name, *(name for name in study.unpruned.figures if name != headline.name)]
    own = [row for row in rows.values() if row.arm[1:] == (limit, recovery)]
    by_method = {row.arm.method: row for row in own}
    beside = (
        f" ({headline.name} of the unpruned model {study.unpruned.value():.4g})"
        if headline.of_one_model
        else ""
    )
    table = Table(
        title=f"limit {limit}, recovery {recovery}{beside}",
        header_style="bold",
        caption=f"{_TIE} does not differ from the best by more than chance explains; ± standard error over seeds",
    )
    table.add_column("method")
    timed = list(dict.fromkeys(name for row in own for name in row.times))
    for name in (*shown, *(f"{name}: time" for name in timed)):
        table.add_column(name, justify="right")
    table.add_column("seeds", justify="right")
    for standing in study.standings(limit, recovery):
        row = by_method[standing.method]
        mark = f" {_TIE}" if standing.behind is not None and standing.ties else ""
        figures = [_mean(row.figures[name]) if name in row.figures else "" for name in shown]
        figures[0] += mark
        times = [_mean(row.times[name], 3) if name in row.times else "" for name in timed]
        table.add_row(Text(standing.method), *figures, *times, str(len(row.seeds)))
    return table


def _objectives(study: Study, recovery: str) -> Table:
    name = study.unpruned.distance.name
    rows = objective_rows(study, recovery)
    sets = max((row.correlation.sets for row in rows), default=0)
    table = Table(
        title=f"objectives, recovery {recovery}: do they rank {sets} random keep-sets by {name}, and the {name} of what "
        "they choose",
        header_style="bold",
        caption=f"rank correlation [{LEVEL:.0%} of draws of the keep-sets]: 1 is the order of the damage, 0 is none",
    )
    table.add_column("objective")
    table.add_column("correlation", justify="right")
    for limit in study.limits:
        table.add_column(f"{limit}: {name}", justify="right")
    for row in rows:
        chosen = [_mean(row.chosen[limit]) if limit in row.chosen else "" for limit in study.limits]
        table.add_row(Text(row.objective), _correlation(row.correlation), *chosen)
    random = [_number(study.at_random(limit, recovery)) for limit in study.limits]
    table.add_section()
    table.add_row("random keep-sets", "", *random)
    return table


def _correlation(found: Correlation) -> str:
    if found.interval is None:
        return "none"
    return f"{found.mean:.2f} [{found.interval[0]:.2f}, {found.interval[1]:.2f}]"


def _number(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.4g}"


def _failed(study: Study) -> Table:
    table = Table(title="cells that failed", header_style="bold")
    for name in ("method", "limit", "recovery", "seed", "reason"):
        table.add_column(name)
    for cell, reason in study.missing.items():
        told = (cell.method, cell.limit, cell.recovery, str(cell.seed), reason or "not run yet")
        table.add_row(*map(Text, told))  # brackets in it are no markup
    return table


def _mean(mean: SeedMean, digits: int = 4) -> str:
    error = "" if mean.error is None else f" ± {mean.error:.2g}"
    return f"{mean.value:.{digits}g}{error}"
