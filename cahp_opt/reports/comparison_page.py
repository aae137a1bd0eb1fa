"""The page of a comparison of solvers: a section per problem."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from cahp_opt.reports.charts import (
    MISSING,
    chart,
    charts_missing,
    legend_below,
    legend_height,
    logarithmic,
    look,
)
from cahp_opt.reports.page import Entry, Page, Part, Prose, Table, Tile, sections_with
from cahp_opt.reports.wording import number, percent
from cahp_opt.rounding import rounding_slack
from cahp_opt.studies.comparison import Comparison, Row

_LEAST = 1e-4
"""The smallest gap that a chart shows, in percent: a proven optimum has no place on a logarithmic axis."""


def comparison_page(comparison: Comparison, title: str = "Solvers compared") -> Page:
    """The page of a comparison."""
    problems = list(dict.fromkeys(row.problem for row in comparison.rows))
    return Page(
        title,
        " ".join(f"{p}: {_verdict(comparison, p)}" for p in problems[:4]),
        tuple(_tiles(comparison, problems)),
        sections_with(
            *((p, _problem(comparison, p, n)) for n, p in enumerate(problems)),
            ("What to know", _reading()),
        ),
    )


def optimal(comparison: Comparison, row: Row) -> bool:
    """Whether a bound of the comparison proves that nothing is better than what a run found."""
    bound = comparison.bound(row.problem)
    known = math.isfinite(row.value) and math.isfinite(bound)
    return known and bound <= row.value + rounding_slack(row.value, bound)


def _runs(comparison: Comparison, problem: str) -> list[Row]:
    """The runs of a problem, best value first, then the fastest; without those that refused."""
    rows = [r for r in comparison.rows if r.problem == problem and not r.refusal]
    return sorted(rows, key=lambda r: (-r.value, r.seconds))


def _verdict(comparison: Comparison, problem: str) -> str:
    rows = _runs(comparison, problem)
    if not rows:
        return "no solver has an answer."
    best = _names([r for r in rows if optimal(comparison, r)])
    if best:
        return f"{_listed(best)} found an optimum, which is proved."
    gap = comparison.gap(rows[0])
    told = f"within {percent(gap, 3)} of the bound" if math.isfinite(gap) else "without a bound"
    return f"{rows[0].solver} is best, {told}; no optimum is proved."


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.solver for row in rows))


def _listed(names: Sequence[str], most: int = 3) -> str:
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _tiles(comparison: Comparison, problems: Sequence[str]) -> Iterator[Tile]:
    solved = sum(any(optimal(comparison, r) for r in _runs(comparison, p)) for p in problems)
    refused = sum(bool(row.refusal) for row in comparison.rows)
    yield Tile("problems", str(len(problems)), f"{solved} with a proved optimum")
    yield Tile("solvers", str(len(_names(comparison.rows))), f"{len(comparison.rows)} runs")
    yield Tile("seconds", number(sum(r.seconds for r in comparison.rows), 3), "all runs together")
    if refused:
        yield Tile("refused", str(refused), "runs without an answer")


def _problem(comparison: Comparison, problem: str, place: int) -> Iterator[Part]:
    rows, solvers = _runs(comparison, problem), _names(comparison.rows)
    yield Prose((_verdict(comparison, problem),))
    yield _answers(comparison, problem, rows)
    with_gap = [row for row in rows if math.isfinite(comparison.gap(row))]
    if with_gap and charts_missing():
        yield Prose((MISSING,))
    elif with_gap:

        def draw(figure: Any, axes: Any) -> None:
            for solver in _names(with_gap):
                own = [row for row in with_gap if row.solver == solver]
                seconds = [max(row.seconds, 1e-6) for row in own]
                gaps = [max(100 * comparison.gap(row), _LEAST) for row in own]
                axes.plot(seconds, gaps, ls="none", label=solver, **look(solvers.index(solver)))
            logarithmic(axes.xaxis)
            logarithmic(axes.yaxis)
            axes.set(xlabel="seconds", ylabel="gap to the tightest bound, %")
            axes.margins(0.08)
            legend_below(figure, axes)

        yield chart(
            f"gaps-{place}",
            f"Gap over time: lower is better, further left is faster. A gap below {_LEAST:g} % is drawn there.",
            f"The numbers are those of the columns seconds and gap of the table of {problem}.",
            draw,
            height=2.7 + legend_height(_names(with_gap)),
        )
    if rows:
        yield _kept(rows)
    told = dict.fromkeys(
        f"{row.solver} refused: {row.refusal}"
        for row in comparison.rows
        if row.problem == problem and row.refusal
    )
    told |= dict.fromkeys(
        f"The bound {row.bound:.6g} of {row.solver} is wrong: another run reached more. It does not count."
        for row in comparison.refuted
        if row.problem == problem
    )
    if told:
        yield Prose(tuple(told), listed=True)


def _label(row: Row, limits: int) -> str:
    told = row.solver if row.seed == 0 else f"{row.solver}, seed {row.seed}"
    if limits < 2:
        return told
    return (
        f"{told}, {'no limit' if math.isinf(row.time_limit) else f'at most {row.time_limit:g} s'}"
    )


def _answers(comparison: Comparison, problem: str, rows: Sequence[Row]) -> Table:
    bound = comparison.bound(problem)
    best = rows[0].value if rows else math.nan
    limits = len({row.time_limit for row in rows})
    entries = list[tuple[Entry | str, ...]]()
    for row in rows:
        gap = comparison.gap(row)
        entries.append(
            (
                _label(row, limits),
                Entry(
                    number(row.value, 6), strong=row.value >= best - rounding_slack(best, row.value)
                ),
                percent(gap, 3) if math.isfinite(gap) else "unknown",
                number(row.bound, 6) if math.isfinite(row.bound) else "none",
                number(row.seconds, 3),
                f"{row.evaluations:,}" if row.evaluations >= 0 else "-",
                Entry("optimal", tone="good") if optimal(comparison, row) else "not proved",
            )
        )
    told = f"the tightest bound is {bound:.6g}" if math.isfinite(bound) else "no bound is known"
    limit = rows[0].limit if rows else math.nan
    below = () if math.isnan(limit) else (f"The limit of the first cost is {limit:.6g}.",)
    return Table(
        f"Answers, best first; {told}",
        ("solver", "value", "gap", "own bound", "seconds", "evaluations", "proved"),
        tuple(entries),
        words=frozenset({6}),
        below=below,
    )


def _kept(rows: Sequence[Row]) -> Table:
    """How many units of every block the answers keep; equal answers in one row."""
    alike = dict[tuple[int, ...], list[Row]]()
    for row in rows:
        alike.setdefault(row.counts, []).append(row)
    blocks = max(map(len, alike))
    return Table(
        "Units kept per block; solvers that keep the same numbers share a row",
        ("solvers", "all", *(f"block {b}" for b in range(blocks))),
        tuple(
            (
                _listed(_names(own), 40),
                str(sum(counts)),
                *(str(k) for k in counts),
                *([""] * (blocks - len(counts))),
            )
            for counts, own in alike.items()
        ),
    )


def _reading() -> Iterator[Part]:
    yield Prose(
        (
            "Every solver had the same problems, limits and seeds. Values, costs and feasibility are computed from "
            "the keep-set and taken from no solver.",
            "The gap is the distance to the tightest bound that any of the runs proved for the problem, relative to "
            "the value.",
            "An answer is optimal if such a bound shows that nothing is better; this is about the objective alone.",
        ),
        listed=True,
    )
