"""The page of a study: methods against each other, with what chance explains and what it does not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from cahp_opt.reports.charts import MISSING, charts_missing
from cahp_opt.reports.page import Entry, Page, Part, Prose, Table, Tile, sections_with
from cahp_opt.reports.study_charts import (
    differences_chart,
    kept_charts,
    predictions_chart,
    quality_chart,
)
from cahp_opt.reports.study_objectives import objectives_part
from cahp_opt.reports.wording import figure_meaning, number, percent
from cahp_opt.studies.differences import LEVEL, Difference
from cahp_opt.studies.outcome import Arm
from cahp_opt.studies.study import SeedMean, Standing, Study, StudyRow

LIMIT = (
    "limit: what a method may choose within; a number alone is a share of the unpruned time, as predicted from "
    "measured tables, so that the measured share can be larger."
)
"""What a limit is."""

Standings = Mapping[tuple[str, str], tuple[Standing, ...]]
"""By limit and recovery, the methods there, the best first."""


def study_page(study: Study, sources: Mapping[str, str] | None = None) -> Page:
    """The page of a study.

    Args:
        study: the outcomes.
        sources: by name of the method, where it was published; None for what the outcomes state.
    """
    standings = standings_of(study)
    charts = not charts_missing()
    figure = study.unpruned.headline.name
    return Page(
        f"Study: {study.model} on {study.data}",
        " ".join(_verdict(study, standings)),
        tuple(_tiles(study)),
        sections_with(
            *(
                (f"Recovery: {recovery}", _recovery(study, recovery, standings, charts))
                for recovery in study.recoveries
            ),
            ("What objectives say, and what they choose", objectives_part(study, charts)),
            ("Differences from the best", _differences(study, standings, charts)),
            ("Predicted and measured times", _predictions(study, charts)),
            ("What every layer keeps", _kept(study, charts)),
            ("Cells without a result", _missing(study)),
            ("Methods and where they come from", _methods(study, sources or {})),
            ("Notes", _notes(study)),
            ("Where the numbers come from", _provenance(study, figure)),
        ),
    )


def standings_of(study: Study) -> Standings:
    """Where the methods stand at every limit with every recovery that has an outcome."""
    places = dict.fromkeys((arm.limit, arm.recovery) for arm in study.arms)
    return {place: study.standings(*place) for place in places}


def _verdict(study: Study, standings: Standings) -> Iterator[str]:
    """Who is best where, and what is missing."""
    if not standings:
        yield "No cell of the study has a result yet."
        return
    yield from _places(study, standings) if len(standings) == 1 else _most_often(study, standings)
    if study.missing:
        yield f"{len(study.missing)} of {len(study.cells)} cells have no result."


def _most_often(study: Study, standings: Standings) -> Iterator[str]:
    """Who is best in most places."""
    first = dict[str, int]()
    for found in standings.values():
        for each in found:
            first[each.method] = first.get(each.method, 0) + each.ties
    most = max(first.values())
    names = [method for method, times in first.items() if times == most]
    yield (
        f"By {_ranked_by(study)}, {_named(names, 'methods')} "
        f"{'is' if len(names) == 1 else 'are'} best or tied with the best in {most} of {len(standings)} "
        "combinations of a limit and a recovery."
    )


def _places(study: Study, standings: Standings) -> Iterator[str]:
    """For every limit and recovery, the best method and those that tie with it."""
    name = _ranked_by(study)
    for (limit, recovery), (best, *others) in standings.items():
        where = f"At {limit} with the recovery {recovery}"
        if not others:
            yield f"{where}, only {best.method} has a result ({name} {_mean(best.mean)})."
            continue
        ties = [each.method for each in others if each.ties]
        tied = (
            f", and {_named(ties, 'others')} {'tie' if len(ties) > 1 else 'ties'} with it"
            if ties
            else ""
        )
        yield f"{where}, {best.method} is best ({name} {_mean(best.mean)}){tied}."


def _ranked_by(study: Study) -> str:
    """The figure that methods are ranked by, for a sentence: without its unit."""
    return figure_meaning(study.unpruned.headline.name).name.partition(",")[0]


def _named(names: list[str], several: str) -> str:
    if len(names) > 4:
        return f"{len(names)} {several}"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _tiles(study: Study) -> Iterator[Tile]:
    done, cells = len(study.outcomes), len(study.cells)
    seeds = {found.cell.seed for found in study.outcomes}
    figure, limits, recoveries = study.unpruned.headline, len(study.limits), len(study.recoveries)
    if figure.of_one_model:
        yield Tile("unpruned", number(study.unpruned.value()), figure_meaning(figure.name).name)
    yield Tile(
        "methods",
        str(len(study.methods)),
        f"{limits} limit{'s' * (limits != 1)}, {recoveries} recover{'y' if recoveries == 1 else 'ies'}",
    )
    yield Tile("cells with a result", str(done), f"of {cells}")
    yield Tile("seeds", str(len(seeds)), f"{study.unpruned.examples:,} held-out examples")


def _mean(mean: SeedMean) -> str:
    told = number(mean.value)
    return told if mean.error is None else f"{told} ± {number(mean.error, 2)}"


# -- quality against time --------------------------------------------------------------------------


def _recovery(study: Study, recovery: str, standings: Standings, charts: bool) -> Iterator[Part]:
    rows = [row for row in study.rows() if row.arm.recovery == recovery]
    if not rows:
        yield Prose(
            ("No cell with this recovery has a result; the section on these cells says why.",)
        )
        return
    yield Prose(tuple(_places(study, {p: s for p, s in standings.items() if p[1] == recovery})))
    timed = [row for row in rows if row.times]
    if not timed:
        yield Prose(
            ("No times have been measured yet, so quality stands beside the limits alone.",)
        )
    elif charts:
        yield quality_chart(study, recovery, timed)
        if len(timed) < len(rows):
            yield Prose(
                (
                    f"{len(rows) - len(timed)} of {len(rows)} results are not timed yet, and not drawn.",
                )
            )
    else:
        yield Prose((MISSING,))
    yield _table(study, recovery, rows, standings)


def _table(study: Study, recovery: str, rows: list[StudyRow], standings: Standings) -> Table:
    figures, headline = list(study.unpruned.figures), study.unpruned.headline.name
    figures = [headline, *(name for name in figures if name != headline)]
    workloads = list(dict.fromkeys(name for row in rows for name in row.times))
    entries = list[tuple[Entry | str, ...]]()
    for limit in study.limits:
        by_method = {row.arm.method: row for row in rows if row.arm.limit == limit}
        for standing in standings.get((limit, recovery), ()):
            row = by_method[standing.method]
            entries.append(
                (
                    standing.method,
                    limit,
                    Entry(_mean(row.figures[headline]), strong=standing.ties),
                    _standing(standing),
                    *(
                        _mean(row.times[name]) if name in row.times else "not yet"
                        for name in workloads
                    ),
                    *(
                        _mean(row.figures[name]) if name in row.figures else "-"
                        for name in figures[1:]
                    ),
                    str(len(row.seeds)),
                )
            )
    unpruned = [number(study.unpruned.value(name)) for name in figures]
    entries.append(("unpruned", "", unpruned[0], "", *(["1"] * len(workloads)), *unpruned[1:], ""))
    names = [
        f"{figure_meaning(name).name}{'' if _higher(study, name) else ' (lower is better)'}"
        for name in figures
    ]
    return Table(
        f"Means over seeds ± standard errors, and the measured share of the unpruned time; what ties is no further from the best than chance explains ({LEVEL:.0%})",
        (
            "method",
            "limit",
            names[0],
            "against the best",
            *(f"share of time, {name}" for name in workloads),
            *names[1:],
            "seeds",
        ),
        tuple(entries),
        words=frozenset({1, 3}),
        below=(
            *(
                f"{figure_meaning(name).name}: {figure_meaning(name).sentence}."
                for name in figures
                if figure_meaning(name).sentence
            ),
            LIMIT,
        ),
    )


def _higher(study: Study, name: str) -> bool:
    return study.unpruned.figures[name].higher_is_better


def _standing(standing: Standing) -> Entry:
    if standing.behind is None:
        return Entry("best", tone="good")
    if standing.ties:
        return Entry("ties with the best", tone="good")
    return Entry(f"behind, {signed(standing.behind.value)}")


def signed(x: float) -> str:
    """A difference with its sign."""
    return f"{'+' if x > 0 else ''}{number(x, 3)}" if math.isfinite(x) else "unlimited"


# -- differences -----------------------------------------------------------------------------------


def _differences(study: Study, standings: Standings, charts: bool) -> Iterator[Part]:
    several = {place: found for place, found in standings.items() if len(found) > 1}
    if not several:
        return
    figure = study.unpruned.headline.name
    yield Prose(
        (
            f"Every method's {figure_meaning(figure).name} less that of the best at the same limit with the same recovery. "
            f"The intervals ({LEVEL:.0%}) are of a paired bootstrap over the held-out examples, and over seeds where there "
            "are several; probabilities are corrected for the number of comparisons (Holm 1979), and for the best being "
            "picked among the methods (Westfall and Young 1993).",
        )
    )
    if not charts:
        yield Prose((MISSING,))
    for place, ((limit, recovery), found) in enumerate(several.items()):
        if charts and any(each.behind and math.isfinite(each.behind.value) for each in found):
            yield differences_chart(study, limit, recovery, found, place)
        yield Table(
            f"At {limit} with the recovery {recovery}: each less {found[0].method}",
            ("method", "difference", "from", "to", "probability by chance", ""),
            tuple(
                _difference(each.method, each.behind) for each in found if each.behind is not None
            ),
            words=frozenset({5}),
            folded=charts,
        )


def _difference(method: str, behind: Difference) -> tuple[Entry | str, ...]:
    return (
        method,
        signed(behind.value),
        signed(behind.low),
        signed(behind.high),
        number(behind.p, 2),
        Entry(behind.verdict.value, tone="good" if behind.verdict.value == "tie" else ""),
    )


# -- times, units, cells, methods ------------------------------------------------------------------


def _predictions(study: Study, charts: bool) -> Iterator[Part]:
    rows = [row for row in study.rows() if set(row.times) & set(row.predicted)]
    if not rows:
        return
    yield predictions_chart(study, rows) if charts else Prose((MISSING,))
    entries = [
        (
            row.arm.method,
            row.arm.limit,
            row.arm.recovery,
            name,
            _mean(row.predicted[name]),
            _mean(measured),
            percent(measured.value / row.predicted[name].value - 1, sign=True),
        )
        for row in rows
        for name, measured in row.times.items()
        if name in row.predicted
    ]
    yield Table(
        "Shares of the unpruned time",
        ("method", "limit", "recovery", "workload", "predicted", "measured", "off the prediction"),
        tuple(entries),
        words=frozenset({1, 2, 3}),
        folded=charts,
    )


def _kept(study: Study, charts: bool) -> Iterator[Part]:
    if not study.outcomes:
        return
    if charts:
        yield from kept_charts(study)
    else:
        yield Prose((MISSING,))
    blocks = study.space.blocks
    entries = list[tuple[Entry | str, ...]]()
    for arm in study.arms:
        counts = mean_counts(study, arm)
        entries.append((arm.method, arm.limit, arm.recovery, *(number(k, 3) for k in counts)))
    yield Table(
        "Units kept per block, means over seeds",
        ("method", "limit", "recovery", *(f"{block.name}, of {block.units}" for block in blocks)),
        tuple(entries),
        words=frozenset({1, 2}),
        folded=True,
    )


def mean_counts(study: Study, arm: Arm) -> list[float]:
    """The units that an arm keeps per block, ``[blocks]``, mean over its seeds."""
    found = [outcome.counts for outcome in study.of(arm).values()]
    return [sum(of_block) / len(found) for of_block in zip(*found, strict=True)]


def _missing(study: Study) -> Iterator[Part]:
    if study.missing:
        yield Prose(
            (
                f"{len(study.missing)} of {len(study.cells)} cells have no result, and count in no mean above.",
            )
        )
        yield Table(
            "Cells without a result",
            ("method", "limit", "recovery", "seed", "why"),
            tuple(
                (
                    cell.method,
                    cell.limit,
                    cell.recovery,
                    str(cell.seed),
                    why or "it has not run yet",
                )
                for cell, why in study.missing.items()
            ),
            words=frozenset({1, 2, 4}),
        )


def _methods(study: Study, sources: Mapping[str, str]) -> Iterator[Part]:
    told = {o.cell.method: o.provenance.get("source", "") for o in study.outcomes}
    told |= {method: source for method, source in sources.items() if method in study.methods}
    yield Table(
        "Where every method was published",
        ("method", "source"),
        tuple((method, told.get(method) or "not stated") for method in study.methods),
        words=frozenset({1}),
    )


def _notes(study: Study) -> Iterator[Part]:
    notes = dict.fromkeys(study.notes)
    for outcome in study.outcomes:
        notes |= dict.fromkeys(f"{outcome.cell.method}: {note}" for note in outcome.notes)
    if notes:
        yield Prose(tuple(notes), listed=True)


def _provenance(study: Study, figure: str) -> Iterator[Part]:
    rows: list[tuple[Entry | str, ...]] = [
        ("model", study.model),
        ("data", study.data),
        ("held-out examples", f"{study.unpruned.examples:,}"),
        ("a cell", "one run: a method at a limit with a recovery on one seed"),
        ("methods are ranked by", figure_meaning(figure).name),
        ("seeds", ", ".join(map(str, sorted({o.cell.seed for o in study.outcomes}))) or "none yet"),
    ]
    rows += list(study.provenance.items())
    # Cells share calibrations, choices and scores: what took exactly as long is one measurement.
    measured = dict.fromkeys(each for o in study.outcomes for each in o.seconds.items())
    seconds = dict[str, float]()
    for stage, taken in measured:
        seconds[stage] = seconds.get(stage, 0.0) + taken
    if seconds:
        stages = ", ".join(f"{name} {taken:.1f}" for name, taken in seconds.items())
        rows.append(("seconds in all", f"{sum(seconds.values()):.1f} ({stages})"))
    yield Table("How this was made", ("", ""), tuple(rows), words=frozenset({1}))
