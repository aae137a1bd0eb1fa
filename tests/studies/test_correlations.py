"""How well objectives rank keep-sets: correlations, their intervals, and the record that holds what they are made of."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies_by_hand import SPACE, study

from cahp_opt.studies.correlations import correlations
from cahp_opt.studies.figures import FIGURES, Judging
from cahp_opt.studies.random_sets import RandomSets, joined_sets
from cahp_opt.studies.study import Study

STATS: Any = import_module("scipy.stats")
KL, _, ACCURACY, _ = FIGURES[Judging.CLASSES]


def sets(
    damage: list[float], limit: str = "0.7", seed: int = 0, **values: list[float]
) -> RandomSets:
    """Keep-sets that do some damage, and what objectives say of them."""
    kept = np.random.default_rng(seed).random((len(damage), SPACE.n)) < 0.5
    return RandomSets(
        limit,
        seed,
        kept,
        {name: np.array(each) for name, each in values.items()},
        {"none": {"kl": np.array(damage), "accuracy": 1 - np.array(damage)}},
    )


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=9))
def test_it_is_spearmans_correlation_with_ties(pairs: list[tuple[int, int]]) -> None:
    damage, lost = (list(map(float, each)) for each in zip(*pairs, strict=True))
    found = correlations([sets(damage, one=[-x for x in lost])], "none", KL, resamples=20)["one"]
    if len(set(damage)) < 2 or len(set(lost)) < 2:  # no order, and no number in its place
        assert math.isnan(found.mean) and found.interval is None
        return
    assert found.mean == pytest.approx(STATS.spearmanr(lost, damage).statistic)
    assert found.by_limit == {"0.7": pytest.approx(found.mean)}


def test_what_knows_the_damage_has_one_and_its_opposite_minus_one() -> None:
    damage = [0.3, 0.1, 0.2, 0.6, 0.5]
    own = sets(damage, knows=[-(x**3) for x in damage], opposite=damage, flat=[1.0] * 5)
    found = correlations([own], "none", KL)
    assert found["knows"].mean == pytest.approx(1) and found["opposite"].mean == pytest.approx(-1)
    assert found["knows"].interval is not None
    assert found["knows"].interval[0] == pytest.approx(1)
    assert math.isnan(found["flat"].mean) and found["flat"].interval is None
    by_accuracy = correlations([own], "none", ACCURACY)  # less of which is damage too
    assert by_accuracy["knows"].mean == pytest.approx(1)


def test_limits_and_seeds_count_alike_and_a_missing_one_leaves_no_mean() -> None:
    up, down = [0.1, 0.2, 0.3, 0.4], [-0.1, -0.2, -0.3, -0.4]
    several = [
        sets(up, "0.7", 0, one=down, other=down),
        sets(up, "0.7", 1, one=down, other=down),
        sets(up, "0.5", 0, one=up, other=down),
        replace(sets(up, "0.5", 1, one=down), unvalued={"other": "it has no values."}),
    ]
    found = correlations(several, "none", KL)
    assert found["one"].by_limit == {"0.7": pytest.approx(1), "0.5": pytest.approx(0)}
    assert found["one"].mean == pytest.approx(0.5) and found["one"].sets == 16
    assert math.isnan(found["other"].mean) and found["other"].by_limit["0.7"] == pytest.approx(1)


def test_intervals_are_wider_with_fewer_keep_sets_and_hold_the_mean() -> None:
    rng = np.random.default_rng(0)
    widths = list[float]()
    for number in (8, 64):
        damage = rng.random(number)
        own = sets(damage.tolist(), one=(-damage + rng.normal(0, 0.2, number)).tolist())
        found = correlations([own], "none", KL)["one"]
        assert found.interval is not None
        low, high = found.interval
        assert low < found.mean < high
        widths.append(high - low)
    assert widths[0] > 1.5 * widths[1]


def test_models_that_could_not_be_judged_do_not_count() -> None:
    own = sets([0.1, 0.2, math.nan, 0.3], one=[-1.0, -2.0, 5.0, -3.0])
    found = correlations([own], "none", KL)["one"]
    assert found.mean == pytest.approx(1)


def test_a_study_holds_what_they_are_made_of(tmp_path: Path) -> None:
    values = {"a/b": np.array([-0.1, -0.3, -math.inf])}
    own = replace(sets([0.1, 0.3, 0.2]), values=values, unvalued={"odd": "no."})
    record = replace(study(seeds=1), random_sets=(own,))
    record.save(tmp_path / "study.safetensors")
    again = Study.load(tmp_path / "study.safetensors")
    assert again.objectives == ("a/b", "odd") and again.random_sets[0].unvalued == {"odd": "no."}
    np.testing.assert_array_equal(again.random_sets[0].kept, own.kept)
    assert again.correlations("none")["a/b"] == record.correlations("none")["a/b"]
    assert again.correlations("none")["a/b"].mean == pytest.approx(0.5)
    assert again.at_random("0.7", "none") == pytest.approx(0.2)
    assert (
        math.isnan(again.at_random("0.5", "none"))
        and not again.correlations("none")["odd"].mean > 0
    )
    np.testing.assert_array_equal(again.random_sets[0].values["a/b"], own.values["a/b"])


def test_of_the_same_keep_sets_two_studies_know_more() -> None:
    damage = [0.1, 0.3, 0.2]
    old = replace(sets(damage, one=damage), unvalued={"two": "not yet."})
    (both,) = joined_sets([old], [sets(damage, two=damage)])
    assert list(both.values) == ["one", "two"] and not both.unvalued
    other = replace(sets(damage, two=damage), kept=~old.kept)
    assert joined_sets([old], [other]) == (other,)
    assert len(joined_sets([old], [sets(damage, "0.5")])) == 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kept": np.ones((0, 3), bool)}, r"`kept` must have the shape \[sets, n\]"),
        ({"values": {"one": np.ones(2)}}, "`values` of one must hold a number for each of 3"),
        ({"figures": {"refit": {"kl": np.ones(4)}}}, "`figures` of refit, kl must hold"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changed: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(sets([0.1, 0.3, 0.2]), **changed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`random_sets` at 0.7 are of 3 units"):
        replace(study(seeds=1), random_sets=(replace(sets([0.1]), kept=np.ones((1, 3), bool)),))
