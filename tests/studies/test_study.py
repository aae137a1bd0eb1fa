"""Studies: rows, comparisons, the best, and round trips."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records_by_hand import SPACE
from scores_by_hand import scores_of

from cahp_opt import Check, Cost, HeadSpace, RecordError, Selection, Status
from cahp_opt.studies.differences import Verdict
from cahp_opt.studies.figures import Judging
from cahp_opt.studies.outcome import Arm, Cell, Outcome
from cahp_opt.studies.scores import Scores
from cahp_opt.studies.study import SeedMean, Study

N = 300
KEPT = np.array([True, False, True, True, False])


def scores(kl: float, seed: int) -> Scores:
    rng = np.random.default_rng(seed)
    label = np.arange(N) % 2
    predicted = np.where(rng.random(N) < 0.9 - kl, label, 1 - label)
    return scores_of(
        Judging.CLASSES,
        **{
            "kl": kl * rng.random(N),
            "agreement": predicted == 0,
            "predicted": predicted,
            "label": label,
        },
    )


def outcome(method: str, kl: float, seed: int, limit: str = "0.7") -> Outcome:
    return Outcome(
        Cell(method, limit, "refit", seed),
        (2, 1),
        KEPT,
        scores(kl, seed + 10 * len(method)),
        value=1.0,
        bound=1.1,
        status=Status.FEASIBLE,
        costs={"prefill": Cost(0.8, 0.9, "s")},
        times={
            "prefill": Check(
                predicted=0.7, measured=0.75 + seed / 20, dense_predicted=1.0, dense_measured=1.0
            )
        },
        seconds={"choose": 0.5},
        provenance={"device": "a CPU"},
        notes=("so it is.",),
    )


STUDY = Study(
    "model",
    "data",
    SPACE,
    scores(0.0, 9),
    (
        *(
            outcome(method, kl, seed)
            for method, kl in (("bad", 0.4), ("good", 0.1), ("as good", 0.1001))
            for seed in (0, 1, 2)
        ),
        outcome("good", 0.2, 0, limit="24 heads"),
    ),
    {Cell("slow", "0.7", "refit", 0): "it ran out of time."},
    {"torch": "2"},
    ("a note.",),
)


def replace_label(given: Scores) -> Scores:
    """The same with other labels."""
    return Scores(given.judging, {**given.arrays, "label": 1 - given.arrays["label"]})


def test_rows_are_means_over_seeds() -> None:
    bad, good, as_good, at_heads = STUDY.rows()
    assert bad.arm == Arm("bad", "0.7", "refit") and bad.seeds == (0, 1, 2)
    values = [scores(0.4, seed + 30).value("kl") for seed in range(3)]
    assert bad.figures["kl"] == pytest.approx(
        (np.mean(values), np.std(values, ddof=1) / math.sqrt(3))
    )
    assert good.times["prefill"] == pytest.approx((0.8, 0.05 / math.sqrt(3)))
    assert as_good.predicted["prefill"] == pytest.approx((0.7, 0))
    assert at_heads.figures["kl"].error is None and at_heads.seeds == (0,)
    assert list(bad.figures) == ["kl", "agreement", "accuracy", "f1"]


def test_names_are_in_the_order_of_the_cells() -> None:
    assert STUDY.methods == ("bad", "good", "as good", "slow")
    assert STUDY.limits == ("0.7", "24 heads") and STUDY.recoveries == ("refit",)


def test_the_best_and_what_ties_with_it() -> None:
    assert STUDY.best("0.7", "refit", "kl") == ("good", "as good")
    standings = STUDY.standings("0.7", "refit", "kl")
    assert [each.method for each in standings] == ["good", "as good", "bad"]
    assert standings[0].behind is None and standings[1].ties and not standings[2].ties
    assert set(STUDY.best("0.7", "refit")) == {"good", "as good"}  # by accuracy
    assert STUDY.best("24 heads", "refit") == ("good",)
    broken = replace(
        STUDY.outcomes[0],
        cell=Cell("broken", "0.7", "refit", 0),
        scores=scores_of(
            Judging.CLASSES,
            **{**scores(0.1, 0).arrays, "kl": np.full(N, np.nan)},
        ),
    )
    worse = replace(STUDY, outcomes=(broken, *STUDY.outcomes)).standings("0.7", "refit", "kl")
    assert worse[-1].method == "broken" and not worse[-1].ties


def test_two_arms_are_compared() -> None:
    good, bad = Arm("good", "0.7", "refit"), Arm("bad", "0.7", "refit")
    found = STUDY.compared(good, bad)
    assert found.figure == "accuracy" and found.verdict is Verdict.BETTER
    lower = STUDY.compared(good, bad, "kl")
    rows = {row.arm: row.figures["kl"].value for row in STUDY.rows()}
    assert lower.value == pytest.approx(rows[good] - rows[bad]) and lower.verdict is Verdict.BETTER
    with pytest.raises(ValueError, match="no outcome of Arm"):
        STUDY.compared(good, Arm("slow", "0.7", "refit"))
    with pytest.raises(ValueError, match="`figure` is 'perplexity'"):
        STUDY.compared(good, bad, "perplexity")
    with pytest.raises(
        ValueError, match=r"no method has an outcome at the limit '0\.3' .*0\.7, 24 heads"
    ):
        STUDY.best("0.3", "refit")


def same(one: Outcome, other: Outcome) -> bool:
    return (
        one.header() == other.header()
        and one.arrays().keys() == other.arrays().keys()
        and all(np.array_equal(a, other.arrays()[n]) for n, a in one.arrays().items())
    )


def test_records_survive_a_round_trip(tmp_path: Path) -> None:
    plain = replace(STUDY.outcomes[0], value=math.nan, bound=math.inf, times={})
    for one in (STUDY.outcomes[0], plain):
        one.save(tmp_path / "outcome.safetensors")
        assert same(one, Outcome.load(tmp_path / "outcome.safetensors"))
    assert math.isnan(plain.value) and math.isinf(plain.gap)
    STUDY.save(tmp_path / "study.safetensors")
    back = Study.load(tmp_path / "study.safetensors")
    assert all(same(one, other) for one, other in zip(STUDY.outcomes, back.outcomes, strict=True))
    assert back.unpruned.values() == STUDY.unpruned.values() and back.space == SPACE
    for name in ("model", "data", "missing", "provenance", "notes", "cells"):
        assert getattr(back, name) == getattr(STUDY, name)
    assert back.rows() == STUDY.rows()
    with pytest.raises(RecordError, match="'cahp-study', and 'cahp-outcome' was expected"):
        Outcome.load(tmp_path / "study.safetensors")


def test_a_record_is_no_larger_than_its_numbers_need(tmp_path: Path) -> None:
    """Classes take a byte, and what was rounded to half precision two."""
    STUDY.save(tmp_path / "study.safetensors")
    of_arrays = sum(len(o.arrays()) for o in STUDY.outcomes) * 300
    whole = (tmp_path / "study.safetensors").stat().st_size
    kls = [
        {**o.scores.arrays, "kl": o.scores.arrays["kl"].astype(np.float16).astype(np.float64)}
        for o in STUDY.outcomes
    ]
    rounded = tuple(
        replace(o, scores=Scores(Judging.CLASSES, arrays))
        for o, arrays in zip(STUDY.outcomes, kls, strict=True)
    )
    replace(STUDY, outcomes=rounded).save(tmp_path / "half.safetensors")
    half = (tmp_path / "half.safetensors").stat().st_size
    assert whole < 4 * of_arrays and whole - half == pytest.approx(10 * 300 * 6, rel=0.05)


def test_studies_are_joined() -> None:
    newer = replace(
        STUDY,
        outcomes=(outcome("good", 0.05, 0), outcome("slow", 0.3, 0)),
        missing={Cell("bad", "0.7", "refit", 0): "again", Cell("new", "0.7", "refit", 0): ""},
        provenance={"torch": "3"},
        notes=("another.",),
    )
    both = STUDY.joined(newer)
    assert len(both.outcomes) == len(STUDY.outcomes) + 1
    assert list(both.missing) == [Cell("new", "0.7", "refit", 0)]
    good = both.of(Arm("good", "0.7", "refit"))
    assert good[0] is newer.outcomes[0] and good[1] is STUDY.of(Arm("good", "0.7", "refit"))[1]
    assert both.joined(newer).provenance == both.provenance == {"torch": "2; 3"}
    assert both.notes == ("a note.", "another.")
    assert both.methods == ("bad", "good", "as good", "slow", "new")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "others"}, "another data: others, where this study has data;"),
        ({"provenance": {"texts of a draw": "9"}}, "another texts of a draw: 9"),
        ({"space": HeadSpace.uniform(1, 5), "outcomes": ()}, "chose among other blocks"),
        ({"unpruned": replace_label(STUDY.unpruned)}, "other labels"),
    ],
)
def test_studies_of_something_else_are_not_joined(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        STUDY.joined(replace(STUDY, **changes))


def test_an_outcome_takes_what_a_selection_says() -> None:
    selection = replace(
        Selection.from_kept(SPACE, KEPT), value=2.0, bound=3.0, provenance={"a": "b"}
    )
    found = Outcome.of(
        Cell("m", "0.7", "none", 1), selection, scores(0.1, 0), provenance={"c": "d"}
    )
    assert found.counts == (2, 1) and found.gap == selection.gap == 0.5
    assert found.provenance == {"a": "b", "c": "d"} and found.status is Status.GIVEN


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        ([outcome("a", 0.1, 0)] * 2, "one outcome per cell"),
        ([outcome("slow", 0.1, 0)], "one outcome per cell that is not missing"),
        ([replace(outcome("a", 0.1, 0), counts=(2,))], "of other blocks"),
        (
            [replace(outcome("a", 0.1, 0), scores=scores_of(Judging.CLASSES, kl=[1.0]))],
            "of 1 examples, and `unpruned` is of 300",
        ),
    ],
)
def test_outcomes_that_do_not_fit_are_refused(outcomes: list[Outcome], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(STUDY, outcomes=tuple(outcomes))


def test_a_mean_of_one_or_of_infinity_has_no_error() -> None:
    assert SeedMean.of([1.0, math.inf]) == (math.inf, None)
    assert SeedMean.of([2.0]) == SeedMean(2.0, None)
    assert tuple(SeedMean.of([1.0, 3.0])) == pytest.approx((2.0, 1.0))
