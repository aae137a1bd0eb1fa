"""Figures are what scikit-learn and scipy say they are, also where examples are drawn several times."""

from __future__ import annotations

import copy
import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scores_by_hand import scores_of

from cahp_opt import RecordError
from cahp_opt.arrays import Floats, Ints
from cahp_opt.studies.figures import FIGURES, HEADLINES, Judging
from cahp_opt.studies.scores import Scores

METRICS: Any = import_module("sklearn.metrics")  # neither has types
STATS: Any = import_module("scipy.stats")
RNG = np.random.default_rng(0)
N = 60
LABELS = RNG.integers(0, 4, N).astype(float)
PREDICTED = np.where(RNG.random(N) < 0.6, LABELS, RNG.integers(0, 5, N))
CLASSES = scores_of(
    Judging.CLASSES,
    kl=RNG.random(N),
    agreement=RNG.random(N) < 0.5,
    predicted=PREDICTED,
    label=LABELS,
)
PAIRS = scores_of(
    Judging.EMBEDDINGS,
    cosine_distance=RNG.random(N),
    similarity=RNG.integers(0, 9, N) / 9,
    label=RNG.integers(0, 5, N),
)
TOKENS = scores_of(
    Judging.NEXT_TOKENS,
    kl=[1.0, 2.0],
    tokens=[3, 5],
    agreement=[2, 5],
    nll=[4.0, 5.0],
    targets=[2, 4],
)


def drawn(index: Ints) -> Floats:
    return np.bincount(index, minlength=N).astype(float)[None]


@pytest.mark.parametrize("resampled", [False, True])
def test_figures_are_those_of_other_libraries(resampled: bool) -> None:
    index = RNG.integers(0, N, N) if resampled else np.arange(N)

    def found(scores: Scores, name: str) -> float:
        return float(scores.figure(name).values(scores.arrays, drawn(index))[0])

    one, other = LABELS[index], PREDICTED[index]
    assert found(CLASSES, "accuracy") == pytest.approx(METRICS.accuracy_score(one, other))
    assert found(CLASSES, "f1") == pytest.approx(METRICS.f1_score(one, other, average="macro"))
    assert found(CLASSES, "kl") == pytest.approx(CLASSES.arrays["kl"][index].mean())
    one, other = (PAIRS.arrays[name][index] for name in ("similarity", "label"))
    assert found(PAIRS, "spearman") == pytest.approx(STATS.spearmanr(one, other).statistic)


def test_sums_over_tokens_are_divided_by_tokens() -> None:
    expected = {"kl_per_token": 3 / 8, "agreement": 7 / 8, "perplexity": np.exp(9 / 6)}
    assert TOKENS.values() == pytest.approx(expected)


def test_examples_without_a_label_do_not_count() -> None:
    scores = scores_of(Judging.CLASSES, predicted=[0, 1, 1, 0], label=[0, 1, 0, np.nan])
    values = scores.values()
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["f1"] == pytest.approx(METRICS.f1_score([0, 1, 0], [0, 1, 1], average="macro"))
    none = scores_of(Judging.CLASSES, predicted=[0.0], label=[np.nan])
    assert all(np.isnan(value) for value in none.values().values())


def test_the_headline_is_the_best_known_figure() -> None:
    assert [s.headline.name for s in (CLASSES, PAIRS, TOKENS)] == [
        "accuracy",
        "spearman",
        "perplexity",
    ]
    apart = scores_of(Judging.EMBEDDINGS, cosine_distance=[0.1, 0.3])
    assert apart.headline.name == "cosine_distance" and not apart.headline.higher_is_better
    assert apart.value() == pytest.approx(0.2)
    for judging, names in HEADLINES.items():
        assert set(names) <= {figure.name for figure in FIGURES[judging]}


@pytest.mark.parametrize("scores", [CLASSES, PAIRS, TOKENS])
def test_scores_survive_a_round_trip(scores: Scores, tmp_path: Path) -> None:
    scores.save(tmp_path / "scores")
    for same in (
        Scores.load(tmp_path / "scores"),
        copy.deepcopy(scores),
        pickle.loads(pickle.dumps(scores)),
    ):
        assert same.judging is scores.judging
        assert {n: a.tolist() for n, a in same.arrays.items()} == {
            n: a.tolist() for n, a in scores.arrays.items()
        }


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no scores")
    with pytest.raises(
        RecordError, match="not a readable safetensors file .*judge the model again"
    ):
        Scores.load(tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        Scores.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "at least one array"),
        ({"kl": []}, r"one number per example, got the shapes \[\[0\]\]"),
        ({"kl": [1.0], "agreement": [1.0, 0.0]}, r"\[\[1\], \[2\]\]"),
        ({"kl": [[1.0]]}, r"\[\[1, 1\]\]"),
        ({"nll": [1.0]}, "'nll', which no figure of classes reads; they read agreement, kl,"),
    ],
)
def test_bad_arrays_are_refused(arrays: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        scores_of(Judging.CLASSES, **arrays)


def test_a_figure_without_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="`figure` is 'f1', and these scores have kl_per_token,"):
        TOKENS.value("f1")
    with pytest.raises(ValueError, match="have no accuracy or kl, by which models are ranked"):
        scores_of(Judging.CLASSES, agreement=[1.0]).value()
