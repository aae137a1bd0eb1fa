"""The benchmark of objectives: its catalogue, what it keeps of a study, and its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from records_by_hand import make_stats
from studies_by_hand import study

from benchmarks.objectives import report, run
from benchmarks.objectives.catalogue import OBJECTIVES, Listed, reconstruction
from cahp_opt import Budget, Task
from cahp_opt.objectives import ExplainedVariance, Modular
from cahp_opt.runs.studied_objectives import as_method
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.totals import Total

SETTINGS = {"data": "films", "texts": 64, "held_out": 100, "seed": 0}


def record(**changed: Any) -> dict[str, Any]:
    """What is kept of a study made by hand."""
    names = {"0.7": "54 heads", "0.5": "6 heads"}
    found = study(seeds=1, objectives=True)
    found = replace(
        found,
        outcomes=tuple(
            replace(each, cell=each.cell._replace(limit=names[each.cell.limit]))
            for each in found.outcomes
        ),
        missing={},
        random_sets=tuple(replace(each, limit=names[each.limit]) for each in found.random_sets),
    )
    return {**run.record(found, SETTINGS), **changed}


def test_the_page_has_the_correlations_of_the_study_and_puts_the_best_first() -> None:
    found, own = study(seeds=1, objectives=True).correlations("none"), record()
    assert report.ranks(own, "none")["kwon"].mean == found["kwon"].mean
    text = report.page([own])
    assert "## films" in text and "### After a refit" in text and "64 calibration texts" in text
    ranks, losses = text.split("| objective |")[1:3]
    assert ranks.index("| kwon | 0.9") < ranks.index('| odd <b>&" |') < ranks.index("| never |  |")
    order = [line.split(" | ")[0] for line in losses.splitlines()[2:7]]
    assert order[0] == "| default" and order[-1] == "| kwon"  # for which a cell is missing
    assert "| random, mean of 12" in order
    kl, accuracy = (
        own["chosen"]["none"]["default"]["6 heads"][name] for name in ("kl", "accuracy")
    )
    assert f" {kl:.3f} ({100 * accuracy:.1f}) |" in losses


def test_what_was_measured_before_is_compared_and_stands_below() -> None:
    text = report.page([record(earlier="measured long ago"), record()])
    assert text.index("## films\n") < text.index("## films, measured long ago")
    assert (
        "without recovery: the KL divergences of what the same objectives choose are in the same order with a rank "
        "correlation of 1.00 and 1.00 at 54 heads and 6 heads, and the objectives' mean correlations with one of 1.00."
    ) in text


def test_every_objective_has_a_value() -> None:
    stats, kept = make_stats(), np.array([True, False, True, True, False])
    task = Task(Budget.heads(stats.space, 3))
    assert task.density == 0.6

    def at_more(matrix: Mapping[float, Total]) -> dict[float, Total]:
        some = next(iter(matrix.values()))
        return dict.fromkeys((0.5, 0.6, 1.0), some)

    measured = HeadStats(
        stats.space,
        stats.model,
        stats.examples,
        stats.tokens,
        gauss_newton=at_more(stats.gauss_newton),
        fisher=at_more(stats.fisher),
        divergence=Total(0.1 * (np.ones((5, 5)) - np.eye(5)), 1),
        statistics=stats.statistics,
    )
    for name, objective in OBJECTIVES.items():
        method = as_method(objective)
        made = method.maximised(method.needs(task).of(measured), task)
        assert made.n == 5 and np.isfinite(made.value(kept)), name


def test_a_matrix_is_taken_at_its_density() -> None:
    task = Task(Budget.heads(make_stats().space, 3))
    assert Listed("Fisher, density matched").needs(task).densities == (0.6,)
    assert Listed("Gauss-Newton, density 1").needs(task).densities == (1.0,)
    assert Listed("head energy").needs(task).densities == ()


def test_reconstruction_is_the_variance_that_stays() -> None:
    """Of one unit per block it is the energy of the kept ones; of all units, everything."""
    stats = make_stats()
    objective = reconstruction(stats, 0.6)
    total = ExplainedVariance.from_stats(stats, ridge=1e-9)
    everything = np.ones(5, dtype=bool)
    assert objective.value(everything) == pytest.approx(total.value(everything), rel=1e-5)
    energy = Modular.from_energy(stats).weights
    all_but_one = np.arange(5) != 4
    lost = objective.value(everything) - objective.value(all_but_one)
    assert lost == pytest.approx(energy[4])
