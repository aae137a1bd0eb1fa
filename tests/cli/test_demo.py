"""The demonstration: its model and texts, and the whole of it (slow)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cahp_opt import Budget, Problem, Selection, select
from cahp_opt.demo import PACKAGE, DemoError, check_weights, demo_model, demo_texts, random_words
from cahp_opt.objectives import ExplainedVariance, Modular
from cahp_opt.runs.report import Report
from cahp_opt.runs.texts import split
from cahp_opt.solvers import DynamicProgram, RandomSubset, TopK

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def folder() -> Path:
    pytest.importorskip(PACKAGE, reason="the demo extra is not installed")
    return demo_model()


def test_texts_are_distinct_and_long_enough_to_calibrate_on() -> None:
    texts = demo_texts()
    assert len(texts) > 2256
    assert len(set(texts)) == len(texts)
    assert all(len(e.text) >= 20 and e.text == " ".join(e.text.split()) for e in texts)
    halves = split(texts, most=2000, held_out=256, seed=0)
    assert len(halves.calibration) == 2000 and len(halves.held_out) == 256
    assert not set(halves.calibration) & set(halves.held_out)
    assert halves == split(texts, most=2000, held_out=256, seed=0)
    assert halves != split(texts, most=2000, held_out=256, seed=1)


def test_random_words_are_of_the_whole_vocabulary_and_the_frequent_ones_come_more_often() -> None:
    names = [
        "[PAD]",
        "a",
        "the",
        "##s",
        *(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(400)),
    ]
    vocabulary = {name: number for number, name in enumerate(names)}
    texts = random_words(dict(sorted(vocabulary.items(), reverse=True)), 500, seed=1)
    assert len(texts) == 500 and texts == random_words(vocabulary, 500, seed=1)
    assert texts != random_words(vocabulary, 500, seed=2)
    words = [text.text.split() for text in texts]
    assert {len(some) for some in words} == set(range(6, 24))
    found = [word for some in words for word in some]
    assert not {*found} & {"[PAD]", "a", "##s"} and len({*found}) > 380
    # Of 401 ranks the first has ln 2 of ln 401 of the draws.
    assert abs(found.count("the") / len(found) - np.log(2) / np.log(401)) < 0.01
    with pytest.raises(DemoError, match="no token that is a word"):
        random_words({"[PAD]": 0, "a": 1}, 3)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"other weights")
    with pytest.raises(DemoError, match="SHA-256"):
        check_weights(file)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cahp_opt.demo.PACKAGE", "no_such_package_here")
    with pytest.raises(DemoError, match=r"pip install 'cahp-opt\[demo\]'"):
        demo_model()


@slow
def test_the_whole_demonstration(folder: Path, tmp_path: Path) -> None:
    from cahp_opt.cli import main

    output = tmp_path / "pruned-minilm"
    assert main(["demo", "--output-dir", str(output)]) == 0
    report = Report.read(output / "report.json")
    goal, fidelity = report["goals"]["latency"], report["fidelity"]
    assert report["reloaded"] is True
    assert report["selection"]["gap"] < 1e-3  # as a share of the value
    assert goal["over"] < 0.1
    assert fidelity["after"]["cosine_distance"] < fidelity["before"]["cosine_distance"] / 2


@slow
def test_explained_variance_beats_the_baselines_after_the_refit(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of all units kept, every keep-set refitted on the same texts, judged on others."""
    from cahp_opt.torch import calibrate, refit, slice_heads
    from cahp_opt.torch.checkpoints.model_loading import load_model, load_tokenizer
    from cahp_opt.torch.evaluation.evaluation import evaluate
    from cahp_opt.torch.texts.encoding import encode

    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    texts = split(demo_texts(), most=1500, held_out=512, seed=0)
    fitted, kept_back = (
        encode(part, tokenizer, model, batch_size=32, max_length=64)
        for part in (texts.calibration, texts.held_out)
    )
    stats = calibrate(model, fitted, densities=(), gradient_examples=256)

    def distance(selection: Selection) -> float:
        small = slice_heads(model, selection)
        refit(small, model, fitted)
        return evaluate(model, small, kept_back).figures["cosine_distance"]

    budget = Budget.heads(stats.space, stats.space.n // 2)
    informed = Problem(ExplainedVariance.from_stats(stats), budget)
    salience = Problem(Modular.from_stats(stats), budget)
    found = {
        "ExplainedVariance + DynamicProgram": distance(select(informed, DynamicProgram())),
        "salience + TopK": distance(select(salience, TopK())),
    }
    random = [distance(select(salience, RandomSubset(), seed=seed)) for seed in range(5)]
    found["mean of 5 RandomSubset"] = float(np.mean(random))
    with capsys.disabled():
        print("\ncosine distance to the dense model after the refit, 36 of 72 units kept:")
        for name, value in found.items():
            print(f"  {name:<36}{value:.5f}")
    best, *others = found.values()
    assert best < min(others)
