"""The part of a study's page on objectives: how they rank random keep-sets, and the damage of what they choose."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from cahp_opt.reports.charts import (
    INK,
    MISSING,
    SERIES,
    chart,
    few_ticks,
    legend_below,
    legend_height,
    look,
)
from cahp_opt.reports.page import Entry, Part, Picture, Prose, Table
from cahp_opt.reports.wording import figure_meaning, number
from cahp_opt.studies.correlations import Correlation
from cahp_opt.studies.differences import LEVEL
from cahp_opt.studies.objective_rows import ObjectiveRow, objective_rows
from cahp_opt.studies.study import Study


def objectives_part(study: Study, charts: bool) -> Iterator[Part]:
    """A chart and a table for every recovery; nothing for a study without objectives.

    Args:
        study: the study.
        charts: whether charts can be drawn.
    """
    if not study.objectives:
        return
    damage = figure_meaning(study.unpruned.distance.name).name
    yield Prose(
        (
            f"Two questions about every objective. Does it rank? Random keep-sets at every limit, the same for all "
            f"objectives, are judged by their distance from the unpruned model ({damage}); shown is Spearman's rank correlation between that "
            f"and what the objective says is lost: 1 is the same order, 0 is none. Its interval ({LEVEL:.0%}) is of a "
            "bootstrap over the keep-sets. Does it choose well? What maximises it is judged in the same way. A search "
            "for the best value is also one for the errors of an objective, so one that ranks well may choose badly.",
        )
    )
    if not charts:
        yield Prose((MISSING,))
    reasons = dict[str, None]()
    for recovery in study.recoveries:
        rows = objective_rows(study, recovery)
        if not rows:
            continue
        if charts and any(row.chosen or row.correlation.interval for row in rows):
            yield objectives_chart(study, recovery, rows)
        yield _table(study, recovery, rows, damage)
        reasons |= {f"{row.objective}: {why}": None for row in rows for why in row.reasons}
    for sets in study.random_sets:
        for recovery, why in sets.unjudged.items():
            reasons[f"a random keep-set at {sets.limit} with the recovery {recovery}: {why}"] = None
    if reasons:
        yield Prose(tuple(reasons), listed=True)


def _table(study: Study, recovery: str, rows: Sequence[ObjectiveRow], damage: str) -> Table:
    entries = list[tuple[Entry | str, ...]]()
    least = {
        limit: min(
            (row.chosen[limit].value for row in rows if limit in row.chosen), default=math.nan
        )
        for limit in study.limits
    }
    several = len(study.limits) > 1
    for row in rows:
        chosen = [
            Entry(_damage(row, limit), strong=row.chosen[limit].value == least[limit])
            if limit in row.chosen
            else Entry("-")
            for limit in study.limits
        ]
        by_limit = [_ranked(row.correlation.by_limit.get(limit)) for limit in study.limits]
        entries.append(
            (row.objective, _correlation(row.correlation), *(by_limit if several else ()), *chosen)
        )
    random = [number(study.at_random(limit, recovery)) for limit in study.limits]
    blank = [""] * (1 + (len(study.limits) if several else 0))
    entries.append(("random keep-sets, mean", *blank, *random))
    sets = max(row.correlation.sets for row in rows)
    return Table(
        f"With the recovery {recovery}: rank correlation with the {damage} of {sets} random keep-sets, and the {damage} of "
        "what every objective chooses",
        (
            "objective",
            f"correlation [{LEVEL:.0%}]",
            *(f"correlation at {limit}" for limit in study.limits if several),
            *(f"{damage}, chosen at {limit}" for limit in study.limits),
        ),
        tuple(entries),
    )


def _damage(row: ObjectiveRow, limit: str) -> str:
    mean = row.chosen[limit]
    error = "" if mean.error is None else f" ± {number(mean.error, 2)}"
    return number(mean.value) + error


def _ranked(x: float | None) -> str:
    return "-" if x is None or math.isnan(x) else f"{x:.2f}"


def _correlation(found: Correlation) -> str:
    if found.interval is None:
        return "-"
    return f"{found.mean:.2f} [{found.interval[0]:.2f}, {found.interval[1]:.2f}]"


def objectives_chart(study: Study, recovery: str, rows: Sequence[ObjectiveRow]) -> Picture:
    """Correlations with their intervals, and beside them the damage of what is chosen as a share of random."""
    random = {limit: study.at_random(limit, recovery) for limit in study.limits}
    damage = figure_meaning(study.unpruned.distance.name).name.partition(",")[0]

    def draw(figure: Any, axes: Any) -> None:
        ranks, chosen = axes
        for place, row in enumerate(rows):
            found = row.correlation
            if found.interval is not None:
                ranks.plot(found.interval, [place] * 2, color=SERIES[0], lw=2)
                ranks.plot([found.mean], [place], ls="none", **look(0))
        for series, limit in enumerate(study.limits):
            points = [
                (row.chosen[limit].value / random[limit], place)
                for place, row in enumerate(rows)
                if limit in row.chosen and 0 < random[limit] < math.inf
            ]
            if points:
                x, y = zip(*points, strict=True)
                chosen.plot(x, y, ls="none", label=limit, **look(series + 1))
        ranks.axvline(0, color=INK, lw=1)
        chosen.axvline(1, color=INK, lw=1)
        ranks.set_yticks(range(len(rows)), [row.objective for row in rows])
        chosen.set_yticks(range(len(rows)), [""] * len(rows))
        for panel in axes:
            panel.set_ylim(len(rows) - 0.5, -0.5)
        ranks.set_xlim(-1.05, 1.05)
        ranks.set_xticks([-1, -0.5, 0, 0.5, 1], ["-1", "", "0", "", "1"])
        chosen.set_xlim(left=0)
        few_ticks(chosen)
        ranks.set_xlabel("rank correlation")
        chosen.set_xlabel("damage of the choice,\nas a share of random's")
        legend_below(figure, chosen)

    return chart(
        f"objectives-{study.recoveries.index(recovery)}",
        f"With the recovery {recovery}: how well every objective ranks random keep-sets by {damage}, with intervals, and the "
        f"{damage} of what it chooses, by limit, as a share of the mean of random keep-sets.",
        "The numbers are those of the table below.",
        draw,
        height=1.0 + 0.25 * len(rows) + legend_height(study.limits),
        grid=(1, 2),
    )
