"""The page of a study: its numbers are the record's, ties are ties, and what is missing is said."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pages
import pytest
from studies_by_hand import SPACE, study

from cahp_opt.reports.charts import MISSING, charts_missing
from cahp_opt.reports.page import Page, sections_with
from cahp_opt.reports.study_objectives import objectives_part
from cahp_opt.reports.study_page import mean_counts, standings_of, study_page
from cahp_opt.reports.wording import number
from cahp_opt.studies.figures import Judging
from cahp_opt.studies.objective_rows import objective_rows
from cahp_opt.studies.outcome import Arm, Cell
from cahp_opt.studies.scores import Scores
from cahp_opt.studies.study import Study

ODD = 'odd <b>&"'
SOURCE = "Kwon et al. 2022, with <care>"


@cache
def found() -> tuple[Study, str]:
    record = study()
    return record, study_page(record, {"kwon": SOURCE}).html()


def test_the_page_has_every_mean_and_every_source() -> None:
    record, html = found()
    words = pages.words_of(html)
    for row in record.rows():
        accuracy, share = row.figures["accuracy"], row.times["prefill"]
        assert f"{number(accuracy.value)} ± {number(accuracy.error, 2)}" in words
        assert f"{number(share.value)} ± {number(share.error, 2)}" in words
    for part in (
        number(record.unpruned.value("accuracy")),
        "46 of 48",
        "2 of 48 cells have no result",
        "out of memory at <layer 3>",
        "it has not run yet",
        SOURCE,
        "default not stated",
        "a note on the study",
        "kwon: a note",
        "a processor, 2 threads",
        "layer.0.attention, of 12",
        "3.5 (calibrate 2.0, refit 1.5)",  # cells that share a measurement do not count it again
    ):
        assert part in words, part
    assert "<b>&" not in html and html.count("<script>") == 1


def test_ties_are_ties_as_the_record_says() -> None:
    record, html = found()
    words = pages.words_of(html)
    standings = standings_of(record)
    ties = [each for place in standings.values() for each in place if each.ties]
    assert words.count("ties with the best") == len(ties) - len(standings) > 0
    assert "kwon (ties)" in words and "random (ties)" not in words
    for (limit, recovery), (best, *_) in standings.items():
        assert f"At {limit} with the recovery {recovery}, {best.method} is best" in words


def test_there_is_a_picture_for_every_recovery_and_none_without_points() -> None:
    pytest.importorskip("matplotlib")
    html = found()[1]
    names = Counter(re.findall(r'id="([a-z]+)-(?:\d+-)?title"', html))
    assert names == {"quality": 2, "differences": 4, "predictions": 1, "kept": names["kept"]}
    assert names["kept"] >= 2
    untimed = study_page(study(seeds=1, timed=False)).html()
    assert 'id="quality-' not in untimed and 'id="predictions-' not in untimed
    words = pages.words_of(untimed)
    assert "No times have been measured yet" in words and "±" not in words.partition("Notes")[0].replace(
        "Means over seeds ± standard errors", ""
    )  # fmt: skip


def test_objectives_are_shown_with_what_they_choose() -> None:
    charts = not charts_missing()
    assert "What objectives say" not in pages.words_of(found()[1])
    record = study(objectives=True)
    section = ("Objectives", objectives_part(record, charts))
    html = Page("Study", "", (), sections_with(section)).html()
    words = pages.words_of(html)
    for recovery in record.recoveries:
        for row in objective_rows(record, recovery):
            if row.correlation.interval is not None:
                low, high = row.correlation.interval
                assert f"{row.correlation.mean:.2f} [{low:.2f}, {high:.2f}]" in words
            for chosen in row.chosen.values():
                assert f"{number(chosen.value)} ± {number(chosen.error, 2)}" in words
        assert number(record.at_random("0.5", recovery)) in words
    best = record.correlations("none")
    assert best["kwon"].mean > 0.9 > abs(best[ODD].mean) and words.index(
        f"kwon {best['kwon'].mean:.2f}"
    ) < words.index(f"{ODD} {best[ODD].mean:.2f}")
    assert "never: the texts have no <labels>." in words
    for place in range(2):
        assert html.count(f'id="objectives-{place}-title"') == charts


def test_counts_are_means_over_seeds() -> None:
    record = found()[0]
    arm = Arm("random", "0.5", "refit")
    counts = [outcome.counts for outcome in record.of(arm).values()]
    assert len(counts) == 2
    assert mean_counts(record, arm) == pytest.approx(np.mean(counts, axis=0))


def test_a_study_that_has_only_begun() -> None:
    record = study(seeds=1)
    cells = [outcome.cell for outcome in record.outcomes]
    empty = replace(record, outcomes=(), missing=dict.fromkeys(cells, ""))
    words = pages.words_of(study_page(empty).html())
    assert "No cell of the study has a result yet." in words and "0 of 14" in words
    one = replace(record, outcomes=record.outcomes[:1], missing={})
    words = pages.words_of(study_page(one).html())
    assert "only default has a result" in words and "Differences from the best" not in words
    assert SPACE.blocks[0].name in words


def by_perplexity(damage: Mapping[str, float]) -> Study:
    """Methods whose models lose these nats per token, beside an unpruned model of one nat."""

    def scores(nats: float) -> Scores:
        each = np.full(20, 10.0)
        arrays = {"kl": nats * each, "tokens": each, "nll": (1 + nats) * each, "targets": each}
        return Scores(Judging.NEXT_TOKENS, arrays)

    base = study(seeds=1)
    outcomes = [
        replace(base.outcomes[0], cell=Cell(name, "0.7", "none", 0), scores=scores(nats))
        for name, nats in damage.items()
    ]
    return replace(base, unpruned=scores(0.0), outcomes=tuple(outcomes), missing={})


def test_infinite_figures_are_said_and_not_drawn() -> None:
    pytest.importorskip("matplotlib")
    html = study_page(by_perplexity({"good $_x$": 0.1, "bad": 1e4, "worse": math.nan})).html()
    assert html.count("Not drawn, because not finite: bad at 0.7, worse at 0.7.") == 2
    assert 'id="differences-0' not in html and "good $_x$" in pages.words_of(html)
    assert ">100<" not in html  # a plain axis


def test_perplexities_far_apart_have_a_logarithmic_axis() -> None:
    pytest.importorskip("matplotlib")
    html = study_page(by_perplexity({"good": 0.1, "bad": 9.0})).html()
    assert ">100<" in html and ">10,000<" in html


def test_what_the_page_says_of_one_and_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cahp_opt.reports.study_page.charts_missing", lambda: True)
    words = pages.words_of(study_page(by_perplexity({"good": 0.1})).html())
    assert "1 limit, 1 recovery" in words
    record = by_perplexity({f"m{i}": 0.1 for i in range(6)})
    missing = {Cell("m6", "0.7", "none", 0): ""}
    words = pages.words_of(study_page(replace(record, missing=missing)).html())
    assert "and 5 others tie with it. 1 of 7 cells have no result." in words
    again = [replace(o, cell=o.cell._replace(limit="0.5")) for o in record.outcomes]
    words = pages.words_of(study_page(replace(record, outcomes=(*record.outcomes, *again))).html())
    assert "6 methods are best or tied with the best in 2 of 2 combinations" in words
    kl = Scores(Judging.CLASSES, {"kl": np.full(20, 0.5)})
    judged = tuple(replace(outcome, scores=kl) for outcome in record.outcomes[:1])
    words = pages.words_of(study_page(replace(record, unpruned=kl, outcomes=judged)).html())
    assert "only m0 has a result (KL divergence 0.5)" in words


def test_without_matplotlib_the_tables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cahp_opt.reports.study_page.charts_missing", lambda: True)
    words = pages.words_of(study_page(study(seeds=1)).html())
    assert MISSING in words and "probability by chance" in words and ODD in words
