"""Limits of a study, and its texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cahp_opt.costs.target import Target
from cahp_opt.methods import Michel
from cahp_opt.runs.limits import Limit
from cahp_opt.runs.plan import RecoveryOptions, TextOptions
from cahp_opt.runs.recovery import Recovery, Weighting
from cahp_opt.runs.study_plan import StudyPlan
from cahp_opt.runs.study_texts import StudyTexts
from cahp_opt.runs.texts import Example, TextError

TEXTS = [f"text number {i}" for i in range(50)]


def test_limits_as_they_are_typed() -> None:
    assert Limit.parse("24 heads", Target(minimum=0)).target == Target(heads=24, minimum=0)
    assert Limit.parse("0.5 neurons").target == Target(neurons=0.5)
    (goal,) = Limit.parse("decode=12ms").target.goals
    assert str(goal) == "decode=0.012s"
    for text in ("", "24", "heads", "2 heads 3", "-1 heads", "0 ms"):
        if text == "24":  # a ratio
            continue
        with pytest.raises(ValueError, match="`limits` holds"):
            Limit.parse(text)


def test_a_recovery_depends_on_its_own_options_alone() -> None:
    given = RecoveryOptions(epochs=3, weighting=Weighting.EQUAL)
    plan = StudyPlan({"michel": Michel()}, (Limit.parse("8 heads"),), recovering=given)
    tuning, refit, finetune = Recovery.MASK_TUNING, Recovery.REFIT, Recovery.FINETUNE
    assert plan.recovered(tuning) == RecoveryOptions(tuning)
    assert plan.recovered(refit) == RecoveryOptions(refit, weighting=Weighting.EQUAL)
    assert plan.recovered(finetune) == replace(given, recovery=finetune)


def test_draws_differ_by_seed_and_held_out_texts_do_not() -> None:
    texts = StudyTexts.of(TEXTS, 10, most=20)
    assert len(texts.held_out) == 10 and len(texts.pool) == 40 and texts.drawn == 20
    drawn = [set(texts.draw(seed)) for seed in (0, 1)]
    assert drawn[0] != drawn[1] and not (drawn[0] | drawn[1]) & set(texts.held_out)
    assert texts.draw(3) == StudyTexts.of(TEXTS, 10, most=20).draw(3)
    assert not texts.notes
    (note,) = StudyTexts.of(TEXTS, 10, most=40).notes
    assert "all 40 texts are drawn for every seed" in note


def test_test_texts_are_all_taken_and_never_drawn(tmp_path: Path) -> None:
    for name, rows in (("train.tsv", TEXTS), ("test.tsv", ["other", *TEXTS[:3]])):
        lines = ["text\tlabel", *(f"{text}\t1" for text in rows)]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = TextOptions(data=str(tmp_path / "train.tsv"), max_texts=10)
    texts = StudyTexts.read(options, str(tmp_path / "test.tsv"))
    assert len(texts.held_out) == 4 and len(texts.pool) == 47
    assert any("3 of 50 texts are among those to judge by" in note for note in texts.notes)
    assert len(StudyTexts.read(options).held_out) == 10


def test_held_out_texts_in_memory_are_never_drawn() -> None:
    spaced: list[str | Example] = [
        Example(TEXTS[0].replace(" ", "  "), label="1"),
        TEXTS[1],
        "another",
    ]
    texts = StudyTexts.of(TEXTS, spaced, most=20)
    assert len(texts.pool) == len(TEXTS) - 2 and len(texts.held_out) == 3
    (note,) = texts.notes
    assert note.startswith(f"2 of {len(TEXTS)} texts are among those to judge by")
    with pytest.raises(TextError, match="all texts to calibrate on are among those to judge by"):
        StudyTexts.of(TEXTS, TEXTS)
