"""The charts of a study."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cahp_opt.reports.charts import (
    INK,
    LINE,
    MUTED,
    SERIES,
    chart,
    few_ticks,
    legend_below,
    legend_height,
    logarithmic,
    look,
)
from cahp_opt.reports.page import Picture
from cahp_opt.reports.wording import figure_meaning
from cahp_opt.studies.outcome import Arm
from cahp_opt.studies.study import Standing, Study, StudyRow

_APART = 20.0  # times the smallest value; beyond it axes are logarithmic


def quality_chart(study: Study, recovery: str, rows: Sequence[StudyRow]) -> Picture:
    """The headline figure against the measured share of time, a line per method, one recovery."""
    headline = study.unpruned.headline
    meaning, workload = figure_meaning(headline.name), _workload(rows)
    finite = {r.arm: math.isfinite(r.figures[headline.name].value) for r in rows}
    methods = [m for m in study.methods if any(a.method == m and finite[a] for a in finite)]
    left_out = [f"{arm.method} at {arm.limit}" for arm, drawn in finite.items() if not drawn]
    told = f" Not drawn, because not finite: {', '.join(left_out)}." if left_out else ""

    def draw(figure: Any, axes: Any) -> None:
        if _spreads(study, rows):
            logarithmic(axes.yaxis, (1.0, 3.0))
        axes.axhline(study.unpruned.value(), color=INK, lw=1, ls="--", label="unpruned")
        for method in methods:
            own = [
                r for r in rows if r.arm.method == method and workload in r.times and finite[r.arm]
            ]
            own = sorted(own, key=lambda r: r.times[workload].value)
            quality = [r.figures[headline.name] for r in own]
            axes.errorbar(
                [r.times[workload].value for r in own],
                [m.value for m in quality],
                xerr=[r.times[workload].error or 0.0 for r in own],
                yerr=[m.error or 0.0 for m in quality],
                lw=1.2,
                elinewidth=1,
                capsize=2,
                label=method,
                **look(study.methods.index(method)),
            )
        better = "higher" if headline.higher_is_better else "lower"
        few_ticks(axes)
        axes.set_xlabel(f"measured share of the unpruned time, {workload}")
        axes.set_ylabel(f"{meaning.name} ({better} is better)")
        legend_below(figure, axes)

    return chart(
        f"quality-{study.recoveries.index(recovery)}",
        f"{meaning.name.capitalize()} against measured time with the recovery {recovery}; bars are standard errors over "
        f"seeds, and points without them have one seed.{told}",
        "The numbers are those of the table below.",
        draw,
        height=3.3 + legend_height([*methods, "unpruned"]),
    )


def predictions_chart(study: Study, rows: Sequence[StudyRow]) -> Picture:
    """The measured share of time against the predicted one, a point per arm and workload."""
    methods = [m for m in study.methods if any(r.arm.method == m for r in rows)]

    def draw(figure: Any, axes: Any) -> None:
        drawn = list[float]()
        for method in methods:
            pairs = [
                (r.predicted[name].value, taken.value)
                for r in rows
                if r.arm.method == method
                for name, taken in r.times.items()
                if name in r.predicted
            ]
            drawn += [x for pair in pairs for x in pair]
            axes.plot(
                *zip(*pairs, strict=True),
                ls="none",
                label=method,
                **look(study.methods.index(method)),
            )
        ends = [min(drawn), max(drawn)]
        axes.plot(ends, ends, color=MUTED, lw=1, ls="--", label="as predicted")
        few_ticks(axes)
        axes.set(xlabel="predicted share of the unpruned time", ylabel="measured share")
        legend_below(figure, axes)

    return chart(
        "predictions",
        "Predicted and measured time: points on the line took what was predicted, points above it longer.",
        "The numbers are those of the table below.",
        draw,
        height=3.1 + legend_height([*methods, "as predicted"]),
    )


def differences_chart(
    study: Study, limit: str, recovery: str, standings: Sequence[Standing], place: int
) -> Picture:
    """Every method's difference from the best, with its interval."""
    headline = study.unpruned.headline
    shown = [(s.method, s.behind, s.ties) for s in standings if s.behind is not None]
    finite = [each for each in shown if math.isfinite(each[1].value)]

    def draw(figure: Any, axes: Any) -> None:
        del figure
        axes.axvline(0, color=INK, lw=1)
        for row, (method, behind, ties) in enumerate(finite):
            seen = look(study.methods.index(method))
            ends = [x for x in (behind.low, behind.high) if math.isfinite(x)]
            axes.plot(ends, [row] * len(ends), color=seen["color"], lw=2)
            face = "none" if ties else seen["color"]
            axes.plot([behind.value], [row], markerfacecolor=face, ls="none", **seen)
        names = [f"{method} (ties)" if ties else method for method, _, ties in finite]
        axes.set_yticks(range(len(finite)), names)
        axes.set_ylim(len(finite) - 0.5, -0.5)
        few_ticks(axes)
        axes.set_xlabel(f"{figure_meaning(headline.name).name} less that of {standings[0].method}")

    left_out = [method for method, behind, _ in shown if not math.isfinite(behind.value)]
    told = f" Not drawn, because not finite: {', '.join(left_out)}." if left_out else ""
    return chart(
        f"differences-{place}",
        f"At {limit} with the recovery {recovery}: differences from {standings[0].method}, with intervals; hollow marks "
        f"tie with it.{told}",
        "The numbers are those of the table below.",
        draw,
        height=0.75 + 0.27 * max(1, len(finite)),
    )


def kept_charts(study: Study) -> Iterator[Picture]:
    """Small multiples of the share that every layer keeps, a panel per method; a recovery for which all methods
    keep what they keep for an earlier one has no picture of its own."""
    place = 0
    for limit in study.limits:
        seen = list[dict[str, list[float]]]()
        for recovery in study.recoveries:
            arms = [a for a in study.arms if (a.limit, a.recovery) == (limit, recovery)]
            shares = {arm.method: _shares(study, arm) for arm in arms}
            if shares and shares not in seen:
                seen.append(shares)
                yield _kept_chart(study, limit, recovery, shares, place)
                place += 1


def _shares(study: Study, arm: Arm) -> list[float]:
    found = [outcome.counts for outcome in study.of(arm).values()]
    means = np.mean(np.array(found, dtype=np.float64), axis=0) / study.space.units
    return [float(x) for x in means]


def _kept_chart(
    study: Study, limit: str, recovery: str, shares: dict[str, list[float]], place: int
) -> Picture:
    columns = min(3, len(shares))
    rows = -(-len(shares) // columns)
    kinds = [(True, "attention", SERIES[0]), (False, "feed-forward", SERIES[1])]
    there = [kind for kind in kinds if (study.space.of_attention == kind[0]).any()]

    def draw(figure: Any, axes: Any) -> None:
        panels = np.atleast_1d(axes).ravel()
        width = 0.8 / len(there)
        for panel in panels[len(shares) :]:
            panel.set_visible(False)
        for number, (panel, (method, kept)) in enumerate(zip(panels, shares.items(), strict=False)):
            for shift, (kind, name, colour) in enumerate(there):
                own = [
                    x
                    for x, mine in zip(kept, study.space.of_attention, strict=True)
                    if mine == kind
                ]
                where = np.arange(len(own)) + (shift - (len(there) - 1) / 2) * width
                panel.bar(where, own, width, color=colour, label=name)
            panel.set_title(method, loc="left")
            panel.set_ylim(0, 1.02)
            panel.set_yticks([0, 0.5, 1], ["0", "½", "1"])
            most = max(int((study.space.of_attention == kind).sum()) for kind, _, _ in there)
            step = max(1, -(-most // 6))
            panel.set_xticks(range(0, most, step))
            panel.grid(axis="x", visible=False)
            panel.grid(axis="y", color=LINE)
            if number + columns >= len(shares):
                panel.set_xlabel("layer")
        legend_below(figure, panels[0])

    return chart(
        f"kept-{place}",
        f"The share that every layer keeps at {limit}, with the recovery {recovery}; means over seeds.",
        "The numbers are those of the table below.",
        draw,
        height=0.6 + 1.15 * rows,
        grid=(rows, columns),
    )


def _spreads(study: Study, rows: Sequence[StudyRow]) -> bool:
    """Whether values lie so far apart, such as perplexities, that a plain axis shows the worst one alone."""
    name = study.unpruned.headline.name
    values = [study.unpruned.value(), *(r.figures[name].value for r in rows)]
    seen = [x for x in values if math.isfinite(x)]
    return bool(seen) and 0 < _APART * min(seen) < max(seen)


def _workload(rows: Sequence[StudyRow]) -> str:
    """The workload that most rows are timed on, the first of them."""
    names = [name for row in rows for name in row.times]
    return max(dict.fromkeys(names), key=names.count)
