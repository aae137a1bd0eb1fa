"""The comparison with other libraries: what both sides are given is the same problem, and the page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.peers import knapsack, regression, report


def test_a_knapsack_is_the_problem_that_the_library_solves() -> None:
    given = knapsack.instance(144)
    kept, told = knapsack.ours(given, 5.0, "BackwardGreedy")
    assert given.fits(kept) and not given.fits(list(range(144)))
    assert 0 < given.value(kept) < given.value(list(range(144)))
    assert given.value(kept) <= told["bound"] * (1 + 1e-9)


def test_groups_explain_what_the_objective_says() -> None:
    given = regression.instance(5, 3)
    best, told = regression.ours(given, 2, "Auto")
    pairs = [[a, b] for a in range(5) for b in range(a)]
    assert given.explained(best) == pytest.approx(max(map(given.explained, pairs)), rel=1e-12)
    assert told["bound"] == pytest.approx(given.explained(best), rel=1e-6)
    assert given.explained(list(range(5))) == pytest.approx(1, rel=1e-12)


def test_gaps_and_ratios_of_the_page_come_from_the_results() -> None:
    facts: dict[str, Any] = {
        "device": "a device",
        "threads": 1,
        "load_average_at_start": 0.5,
        "versions": {"numpy": "2"},
        "date": "2026-01-01",
        "note": "",
    }
    size = {"objective": "graph cut", "n": 10, "keep": 5}
    run = {"value": 8.0, "peak_bytes": 2**30}
    cells = [
        {**size, "library": "cahp_opt", **run, "processor_seconds": 2.0},
        {**size, "library": "apricot", **run, "processor_seconds": 9.0, "compiling_seconds": 1.0},
        {**size, "library": "submodlib", "error": "Traceback\nno memory"},
    ]
    ours = {"value": 90.0, "fits": True, "processor_seconds": 3.0, "bound": 100.0}
    other = {"value": 99.0, "fits": False, "processor_seconds": 4.0}
    limits = {"units": 144, "limit": 10.0}
    found = {
        "coverage": {"provenance": facts, "results": cells},
        "knapsack": {
            "provenance": facts,
            "results": [{**limits, "solver": "a", **ours}, {**limits, "solver": "b", **other}],
        },
    }
    page = report.page(found)
    assert "| apricot | 8 | 9.00 | 4.5 (4.0 without compiling) | 1.00 |" in page
    assert "| submodlib | no memory |" in page
    assert "| 144 | a | 90.000 | 10.00 % | 3.0 |" in page
    assert "| 144 | b | 99.000 | too dear | 4.0 |" in page
    assert "Best subsets" not in page


def test_instances_are_the_same_every_time() -> None:
    assert all(
        np.array_equal(a, b)
        for a, b in zip(regression.instance(4, 2), regression.instance(4, 2), strict=True)
    )
