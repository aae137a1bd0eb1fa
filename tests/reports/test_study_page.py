"""The page of a study: its numbers are the record's, ties are ties, and what is missing is said."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pages
import pytest
from studies_by_hand import SPACE, study

from cahp_opt.reports.charts import MISSING
from cahp_opt.reports.study_page import mean_counts, standings_of, study_page
from cahp_opt.reports.wording import number
from cahp_opt.studies.outcome import Arm
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
        "161.0",  # 46 cells of 2 and 1.5 seconds
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


def test_without_matplotlib_the_tables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cahp_opt.reports.study_page.charts_missing", lambda: True)
    words = pages.words_of(study_page(study(seeds=1)).html())
    assert MISSING in words and "probability by chance" in words and ODD in words
