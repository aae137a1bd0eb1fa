"""What the accuracy benchmark says of all tasks together."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.accuracy.tasks import OverTasks, ties
from benchmarks.accuracy.tasks_picture import drawn


def method(*shares: float, kl: float = 0.1, seed: int = 0) -> OverTasks:
    """One that is right on these shares of 400 examples of every task, drawn at random."""
    rng = np.random.default_rng(seed)
    right = tuple((rng.random(400) < share).astype(np.float64) for share in shares)
    return OverTasks(right, tuple(kl for _ in shares), tuple(1.0 for _ in shares))


def test_the_mean_is_over_tasks_and_the_error_over_their_paired_examples() -> None:
    good, bad = method(0.9, 0.5), method(0.8, 0.5, seed=1)
    means = [[float(task.mean()) for task in each.right] for each in (good, bad)]
    assert good.accuracy == pytest.approx(sum(means[0]) / 2)
    assert good.lost == pytest.approx(1 - sum(means[0]) / 2)
    less, error = bad.behind(good)
    assert less == pytest.approx(good.accuracy - bad.accuracy)
    draws = np.random.default_rng(2)
    again = list[float]()
    for _ in range(400):
        parts = list[float]()
        for a, b in zip(bad.right, good.right, strict=True):
            drawn = draws.integers(400, size=400)
            parts.append(float((b - a)[drawn].mean()))
        again.append(sum(parts) / 2)
    assert error == pytest.approx(float(np.std(again)), rel=0.15)
    assert good.behind(good) == (0, 0)


def test_what_examples_do_not_tell_from_the_best_is_a_tie() -> None:
    best, close, far = method(0.9, 0.9), method(0.89, 0.9, seed=1), method(0.7, 0.8, seed=2)
    assert ties({"best": best, "close": close, "far": far}) == {"best", "close"}
    assert ties({}) == set()


def test_the_picture_marks_ties_and_tells_what_is_off_its_axis() -> None:
    best, close, far = method(0.99, 0.98), method(0.97, 0.98, seed=1), method(0.7, 0.8, seed=2)
    made = drawn({("0.5", "refit"): {"best": best, "close": close, "far": far}}, "All")
    assert made.count("<circle") == 2 and ">0.5, refit<" in made
    assert f">{-100 * far.lost:.1f}<" in made
    tied = ties({"best": best, "close": close, "far": far})
    assert made.count('fill="white" stroke=') == 2 - len(tied)
