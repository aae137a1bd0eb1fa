"""The page of a comparison: every run, what is proved of it, and what refused."""

from __future__ import annotations

import math

import pages
import pytest

from cahp_opt import Comparison
from cahp_opt.reports import charts
from cahp_opt.reports.comparison_page import comparison_page, optimal
from cahp_opt.studies.comparison import Row

ODD = 'latency <b>&"'
ROWS = (
    Row(ODD, "exact", 0.5, math.inf, 0, 12.5, 12.5, 0.123, 77, (3, 4), "OPTIMAL"),
    Row(ODD, "greedy", 0.5, math.inf, 0, 12.5, math.inf, 0.0456, 9, (3, 4), "FEASIBLE"),
    Row(ODD, "random", 0.5, math.inf, 1, 10.0, math.inf, 0.00789, -1, (7, 0), "FEASIBLE"),
    Row(ODD, "picky", 0.5, math.inf, 0, refusal="`picky` needs <something>."),
    Row("open", "greedy", math.nan, 2.0, 0, 3.0, 4.0, 0.5, 1, (1, 1), "FEASIBLE"),
    Row("open", "greedy", math.nan, 9.0, 0, 3.5, 4.0, 0.5, 1, (2, 1), "FEASIBLE"),
    Row("unbounded", "greedy", math.nan, 2.0, 0, 3.0, math.inf, 0.5, 1, (1, 1), "FEASIBLE"),
    Row("none", "picky", math.nan, 2.0, 0, refusal="no."),
)  # fmt: skip
FOUND = Comparison(ROWS)


def test_what_is_optimal_is_proved_by_any_run() -> None:
    assert [optimal(FOUND, row) for row in ROWS] == [True, True, *[False] * 6]


def test_the_page_has_every_run() -> None:
    html = comparison_page(FOUND).html()
    words = pages.words_of(html)
    for part in (
        f"{ODD}: greedy and exact found an optimum, which is proved.",
        "open: greedy is best, within 14.286 % of the bound; no optimum is proved.",
        "unbounded: greedy is best, without a bound; no optimum is proved.",
        "none: no solver has an answer.",
        "tightest bound is 12.5",
        "random, seed 1",
        "25.000 %",
        "0.00789",
        "greedy, at most 9 s",
        "picky refused: `picky` needs <something>.",
        "8 runs",
    ):
        assert part in words, part
    assert "<b>&" not in html
    assert html.count("<svg") == 2  # two problems have a bound
    assert "mathdefault" not in html  # plain numbers at the axes


def test_charts_use_the_colours_of_the_page_and_say_what_they_show() -> None:
    pytest.importorskip("matplotlib")
    html = comparison_page(FOUND).html()
    svg = html[html.index("<svg") : html.index("</svg>")]
    assert "var(--series-0)" in svg and "var(--ink)" in svg
    assert "#0a0" not in svg and "font-family" not in svg and "DejaVu" not in svg
    assert "seconds</text>" in svg and "<title" in svg and "<desc" in svg
    assert comparison_page(FOUND).html() == html  # nothing in it changes by itself


def test_without_matplotlib_the_tables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cahp_opt.reports.comparison_page.charts_missing", lambda: True)
    html = comparison_page(FOUND).html()
    assert "<svg" not in html and "12.5" in pages.words_of(html)
    assert charts.MISSING.replace("'", "&#39;") in html


def test_a_bound_that_another_run_refutes_is_named() -> None:
    wrong = Row("open", "liar", math.nan, 2.0, 0, 1.0, 2.0, 0.5, 1, (1, 1), "FEASIBLE")
    words = pages.words_of(comparison_page(Comparison((*ROWS, wrong))).html())
    assert "The bound 2 of liar is wrong" in words
