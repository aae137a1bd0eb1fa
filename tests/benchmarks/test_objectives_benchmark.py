"""The benchmark of objectives: keep-sets that can be drawn again, correlations, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from batches_by_hand import collate, texts
from hypothesis import given
from hypothesis import strategies as st
from records_by_hand import make_stats

from benchmarks.objectives import report, run, scoring
from benchmarks.objectives.catalogue import OBJECTIVES, reconstruction
from cahp_opt.objectives import ExplainedVariance, Modular
from cahp_opt.runs.recovery import Recovery
from cahp_opt.space import HeadSpace
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.totals import Total
from cahp_opt.torch import refit, slice_heads
from cahp_opt.torch.evaluation.evaluation import evaluate


@given(st.integers(1, 70), st.data())
def test_keep_sets_have_names_and_more_of_them_begin_alike(n: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, n))
    few, many = run.random_sets(n, kept, 3, seed=4), run.random_sets(n, kept, 5, seed=4)
    for one, other in zip(few, many, strict=False):
        assert one.sum() == kept and np.array_equal(one, other)
        assert np.array_equal(run.kept_of(run.name_of(one), n), one)


@given(st.integers(0, 2**32 - 1))
def test_correlation_by_ranks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.permuted(np.tile(np.arange(9.0), (3, 1)), axis=1) for _ in range(2))
    expected = 1 - 6 * ((a - b) ** 2).sum(axis=1) / (9 * 80)  # Spearman's formula without ties
    np.testing.assert_allclose(scoring.spearman(a, b), expected, atol=1e-12)
    np.testing.assert_allclose(scoring.spearman(np.exp(a), b**3), expected, atol=1e-12)
    assert np.isnan(scoring.spearman(np.ones((1, 9)), b[:1])[0])


def test_equal_values_share_their_ranks() -> None:
    found = scoring.ranks(np.array([[3.0, 1.0, 3.0, 2.0]]))
    np.testing.assert_array_equal(found - found.min(), [[2.5, 0, 2.5, 1]])


@pytest.fixture
def record() -> dict[str, Any]:
    """Eight sets of two sizes, of which one is not judged yet; the worse, the larger the number."""
    names = {size: [f"{size}{i}" for i in range(8)] for size in ("3", "2")}
    judged = {
        name: {"kl": float(i), "accuracy": 0.5, "seconds": 2.0}
        for own in names.values()
        for i, name in enumerate(own)
    }
    del judged["27"]
    judged["best"] = {"kl": 0.25, "accuracy": 0.625, "seconds": 2.0}
    right, wrong, flat = [-float(i) for i in range(8)], list(map(float, range(8))), [1.0] * 8
    return {
        "settings": {
            "data": "films",
            "model": "",
            "recovery": "refit",
            "calibration": 64,
            "gradients": 32,
            "held_out": 100,
            "seed": 0,
        },
        "provenance": {
            "device": "a processor",
            "threads": 1,
            "versions": {"torch": "2.0", "transformers": "5.0"},
            "date": "2000-01-01",
            "judged on": "an accelerator",
        },
        "blocks": [["a", 4, "head"]],
        "dense": {"kl": 0.0, "accuracy": 0.75},
        "random": names,
        "values": {
            "right": {"3": right, "2": right},
            "turned": {"3": right, "2": wrong},
            "flat": {"3": flat, "2": right},
        },
        "chosen": {
            name: {"3": {"kept": "best"}, "2": {"kept": kept}}
            for name, kept in (("right", "best"), ("turned", "26"), ("flat", "nobody"))
        },
        "judged": judged,
    }


def test_correlations_use_as_many_sets_of_every_size(record: dict[str, Any]) -> None:
    found = scoring.correlations(record)
    assert {c.sets for c in found.values()} == {7}
    assert found["right"].by_size == {3: pytest.approx(1), 2: pytest.approx(1)}
    assert found["right"].interval is not None
    assert found["right"].interval[0] == pytest.approx(1)
    assert found["turned"].by_size[2] == pytest.approx(-1)
    assert found["turned"].mean == pytest.approx(0)
    assert found["flat"].by_size[3] is None and found["flat"].mean is None


def test_what_was_chosen_stands_beside_random_sets(record: dict[str, Any]) -> None:
    found = scoring.chosen(record, "kl")
    assert found["random"] == {3: 3.5, 2: 3.0}
    assert found["right"] == {3: 0.25, 2: 0.25} and found["flat"] == {3: 0.25, 2: None}


def test_the_page_puts_the_best_first(record: dict[str, Any]) -> None:
    text = report.page([record])
    assert "## films" in text and "### After a refit" in text
    ranks, losses, _ = text.split("| objective |")[1:]
    assert ranks.index("| right | 1.00 | 1.00 | 1.00 [1.00, 1.00] |") < ranks.index("| turned |")
    assert "| flat |  | 1.00 |  |" in ranks
    order = [line.split(" | ")[0] for line in losses.splitlines()[2:6]]
    assert order == ["| right", "| turned", "| random", "| flat"]
    assert "| right | 62.5 | 62.5 |" in text and "(unpruned: 75.0; standard error 4.3" in text


def test_a_record_goes_on_where_it_was_left(tmp_path: Path) -> None:
    settings = run.Settings("films", "", "none", 64, 32, 100, 0)
    path = tmp_path / "films-none.json"
    space = HeadSpace.uniform(1, 4)
    record = run.started(settings, space, path)
    calls: list[int] = []

    def judge(kept: np.ndarray) -> dict[str, Any]:
        calls.append(int(kept.sum()))
        return {"kl": 1.0, "accuracy": 0.5, "seconds": 0.0}

    for kept in ([True, False, True, False], [True, True, True, False]):
        run.judged(record, judge, np.array(kept), path)  # type: ignore[arg-type]
    again = run.started(settings, space, path)
    run.judged(again, judge, np.array([True, True, True, False]), path)  # type: ignore[arg-type]
    assert calls == [2, 3] and len(again["judged"]) == 2
    other = run.Settings("films", "", "none", 64, 32, 100, 1)
    assert not run.started(other, space, path)["judged"]


def test_the_judge_refits_as_the_library_does() -> None:
    model = tiny_models.BERT.build()
    batches = [{**collate(texts(n)), "labels": torch.arange(n) % 3} for n in (6, 9)]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    judge = run.Judge(model, Recovery.REFIT, batches, batches[1:])
    assert judge(None)["kl"] == pytest.approx(0, abs=1e-7)
    for seed in range(2):
        kept = run.random_sets(12, 6, 1, seed)[0]
        small = slice_heads(model, kept)
        refit(small, model, batches)
        expected = evaluate(model, small, batches[1:]).figures
        found = judge(kept)
        assert found["kl"] == pytest.approx(expected["kl"], rel=1e-3) and found["kl"] > 1e-6
        assert found["accuracy"] == pytest.approx(expected["accuracy"])
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    masked = run.Judge(model, Recovery.NONE, batches, batches[1:])(kept)
    expected = evaluate(model, slice_heads(model, kept), batches[1:]).figures
    assert masked["kl"] == pytest.approx(expected["kl"], rel=1e-3)


def test_every_objective_has_a_value() -> None:
    stats, kept = make_stats(), np.array([True, False, True, True, False])
    densities = {3 / 5: stats.gauss_newton[0.5]}
    measured = HeadStats(
        stats.space,
        stats.model,
        stats.examples,
        stats.tokens,
        gauss_newton={**stats.gauss_newton, **densities},
        fisher={**stats.fisher, **densities},
        divergence=Total(0.1 * (np.ones((5, 5)) - np.eye(5)), 1),
        statistics=stats.statistics,
    )
    for name, build in OBJECTIVES.items():
        made = build(measured, 3)
        assert made.n == 5 and np.isfinite(made.value(kept)), name


def test_reconstruction_is_the_variance_that_stays() -> None:
    """Of one unit per block it is the energy of the kept ones; of all units, everything."""
    stats = make_stats()
    objective = reconstruction(stats, 3)
    total = ExplainedVariance.from_stats(stats, ridge=1e-9)
    everything = np.ones(5, dtype=bool)
    assert objective.value(everything) == pytest.approx(total.value(everything), rel=1e-5)
    energy = Modular.from_energy(stats).weights
    all_but_one = np.arange(5) != 4
    lost = objective.value(everything) - objective.value(all_but_one)
    assert lost == pytest.approx(energy[4])
