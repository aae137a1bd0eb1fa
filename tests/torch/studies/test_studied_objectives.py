"""Objectives in a study: what they say of random keep-sets, what they choose, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from test_running_studies import log as log
from test_running_studies import run

from cahp_opt import HeadStats, Objective
from cahp_opt.arrays import Bools
from cahp_opt.methods import GaussNewton, Random
from cahp_opt.objectives import Modular, Quadratic
from cahp_opt.runs.names import ObjectiveName
from cahp_opt.runs.recovery import Recovery
from cahp_opt.stats.needs import needs
from cahp_opt.studies.outcome import Arm
from cahp_opt.studies.study import Study
from cahp_opt.torch.studies import ranking
from cahp_opt.torch.studies.judging import judged

pytestmark = pytest.mark.usefixtures("threads")


class Known(Objective):
    """Knows the damage of some keep-sets, and takes all others for harmful."""

    damage: Mapping[bytes, float] = {}
    sign = -1.0

    def __init__(self, n: int) -> None:
        self._n = n

    @classmethod
    def from_stats(cls, stats: HeadStats) -> Objective:
        return cls(stats.space.n)

    @property
    def n(self) -> int:
        return self._n

    def value(self, kept: Bools) -> float:
        return self.sign * self.damage.get(kept.tobytes(), 9.0)


class Opposite(Known):
    """Says the opposite."""

    sign = 1.0


class Salience(Modular):
    """Declares what it reads."""

    @staticmethod
    @needs("salience")
    def from_stats(stats: HeadStats) -> Modular:
        return Modular(stats.salience.mean)


class Undeclared(Modular):
    """Does not."""

    @staticmethod
    def from_stats(stats: HeadStats) -> Modular:
        return Modular(stats.salience.mean)


class Breaks(Modular):
    """Cannot be made."""

    @staticmethod
    def from_stats(stats: HeadStats) -> Modular:
        raise RuntimeError("it broke")


class NotOne(Modular):
    """Makes something else."""

    @staticmethod
    def from_stats(stats: HeadStats) -> Any:
        return 7


class Undefined(Modular):
    """Has no value."""

    @staticmethod
    def from_stats(stats: HeadStats) -> Modular:
        return Undefined(stats.salience.mean)

    def value(self, kept: Bools) -> float:
        return float("nan")


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny classifier."""
    return tiny_models.BERT.build()


FEW: dict[str, Any] = {"methods": (), "recoveries": [Recovery.NONE]}
SMALL: dict[str, Any] = {**FEW, "seeds": 1, "keep_sets": 5}
TWICE: dict[str, Any] = {**FEW, "seeds": 2}


def test_what_knows_the_damage_ranks_best_and_chooses_best_and_costs_only_its_own(
    model: Any,
    tmp_path: Path,
    log: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = run(model, tmp_path, **SMALL, objectives=[Salience])
    (drawn,) = first.random_sets
    assert drawn.kept.sum(axis=1).tolist() == [8] * 5 and list(drawn.values) == ["salience"]
    damage = drawn.figures["none"]["kl"]
    assert (damage > 0).all() and log.count("slice_found") <= 6
    names = [kept.tobytes() for kept in drawn.kept]
    monkeypatch.setattr(Known, "damage", dict(zip(names, damage, strict=True)))
    log.clear()
    objectives = [Salience, Known, Opposite]
    found = run(model, tmp_path, **SMALL, objectives=objectives)
    assert log.count("calibrate_kinds") <= 1  # for what those need that do not declare it
    assert log.count("chooser_of") == 2 and log.count("slice_found") <= 1
    ranks = found.correlations("none")
    assert ranks["known"].mean == pytest.approx(1) and ranks["opposite"].mean == pytest.approx(-1)
    assert ranks["salience"] == first.correlations("none")["salience"]
    chosen = found.of(Arm("known", "8 heads", "none"))[0]
    assert chosen.scores.value("kl") == pytest.approx(damage.min())
    assert found.at_random("8 heads", "none") == pytest.approx(damage.mean())
    log.clear()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "values").iterdir()}
    again = run(model, tmp_path, **SMALL, objectives=objectives)
    assert not log and again.correlations("none") == ranks
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "values").iterdir()} == times
    loaded = Study.load(tmp_path / "study.safetensors")
    assert loaded.correlations("none") == ranks and loaded.objectives == tuple(ranks)


def test_more_keep_sets_begin_with_the_same_ones(
    model: Any,
    tmp_path: Path,
    log: list[str],
) -> None:
    few = run(model, tmp_path, **TWICE, keep_sets=2, objectives=[Salience])
    log.clear()
    more = run(model, tmp_path, **TWICE, keep_sets=4, objectives=[Salience])
    assert len(more.random_sets) == 2 and log == ["slice_found"] * 4
    for one, other in zip(few.random_sets, more.random_sets, strict=True):
        np.testing.assert_array_equal(one.kept, other.kept[:2])
        np.testing.assert_array_equal(one.values["salience"], other.values["salience"][:2])
    assert not np.array_equal(more.random_sets[0].kept, more.random_sets[1].kept)


def test_objectives_that_fail_or_do_not_apply_are_told_and_stop_nothing(
    model: Any, tmp_path: Path
) -> None:
    objectives = [Undeclared, ObjectiveName.COMPLEMENTARITY, Breaks, NotOne, Undefined]
    found = run(model, tmp_path, **SMALL, objectives=objectives)
    (drawn,) = found.random_sets
    assert list(drawn.values) == ["undeclared"]
    assert drawn.unvalued["breaks"] == "RuntimeError: it broke."
    assert "the texts have no labels" in drawn.unvalued["complementarity"]
    assert "`NotOne.from_stats` must return a cahp_opt.Objective" in drawn.unvalued["not-one"]
    assert "not a number (NaN) at 5 of 5" in drawn.unvalued["undefined"]
    assert {cell.method for cell in found.missing} >= {"breaks", "complementarity", "not-one"}
    assert len(found.of(Arm("undeclared", "8 heads", "none"))) == 1
    assert np.isnan(found.correlations("none")["breaks"].mean)


def test_a_keep_set_that_cannot_be_judged_stops_nothing(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[int]()

    def sometimes(*args: Any) -> Any:
        calls.append(0)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        return judged(*args)

    monkeypatch.setattr(ranking, "judged", sometimes)
    (drawn,) = run(model, tmp_path, **SMALL, objectives=[Salience]).random_sets
    assert np.isnan(drawn.figures["none"]["kl"]).tolist() == [False, True, False, False, False]
    assert drawn.unjudged == {"none": "RuntimeError: no memory."}


def test_a_choice_depends_on_nothing_that_others_need(model: Any, tmp_path: Path) -> None:
    """Of a matrix whose density is not named, the smallest that was measured is taken."""
    own: dict[str, Any] = {"objectives": [ObjectiveName.GAUSS_NEWTON], "limits": ["4 heads"]}
    arm = Arm("gauss-newton", "4 heads", "none")
    own = {**SMALL, **own}
    alone = run(model, tmp_path / "alone", **own).of(arm)[0]
    beside = {**own, "methods": {"at a third": GaussNewton()}}
    together = run(model, tmp_path / "together", **beside).of(arm)[0]
    assert together.value == alone.value and (together.kept == alone.kept).all()


def test_an_objective_of_a_methods_name_is_told_apart(model: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {**SMALL, "methods": {"salience": Random()}}
    found = run(model, tmp_path, **options, objectives=[Salience])
    assert found.methods == ("salience", "salience (objective)")
    assert found.objectives == ("salience (objective)",)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objectives": [Quadratic.example]}, "give an ObjectiveName, or a class"),
        ({"objectives": [Salience, Salience]}, "two objectives of one name"),
        ({"objectives": [Salience], "keep_sets": 1}, "`keep_sets` must be at least 2"),
        ({"objectives": [ObjectiveName.COMPLEMENTARITY]}, "the texts have no labels"),
    ],
)
def test_objectives_that_cannot_be_studied_are_refused(
    model: Any, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        run(model, tmp_path / "study", **{**SMALL, **options})
    assert not (tmp_path / "study" / "statistics").exists()
