"""Texts that tell no unit from another: the choice on them is arbitrary, and a note says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tokenizers
import torch
import transformers
from batches_by_hand import collate, texts
from command_line import QUICK, save_model, sentences

from cahp_opt.cli import main
from cahp_opt.runs.names import ObjectiveName
from cahp_opt.runs.report import Report
from cahp_opt.torch import calibrate

WORDS = "every token gave the same head outputs, so all keep-sets have the same explained-variance"
SAME = [[5], [5], [5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bare", [True, False], ids=["embedder", "language model"])
def test_equal_tokens_are_told_from_texts(bare: bool, dtype: torch.dtype) -> None:
    model = tiny_models.LLAMA_GQA.build(bare=bare).to(dtype)
    same = calibrate(model, [collate(SAME)] * 20)
    for rows in (texts(2), [[5], [6]]):
        stats = calibrate(model, [collate(rows)])
        assert not any(objective.remarks(stats) for objective in ObjectiveName)
    told = [name for name in ObjectiveName if name.remarks(same)]
    assert told == [ObjectiveName.EXPLAINED_VARIANCE, ObjectiveName.EXPLAINED_OUTPUT]


def test_a_mean_that_is_large_against_the_spread_is_no_constant() -> None:
    model = tiny_models.BERT.build(bare=True)
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.attention.self.value.bias.fill_(10.0)
    stats = calibrate(model, [collate(texts(4))])
    assert not any(moments.constant for moments in stats.moments)


def test_the_commands_note_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text = save_model(tmp_path / "model"), tmp_path / "texts.txt"
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 5, "?": 1}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    make: Any = transformers.PreTrainedTokenizerFast
    make(tokenizer_object=words, pad_token="?", unk_token="?").save_pretrained(
        model
    )  # adds no token of its own, so that all texts can be one and the same
    text.write_text("".join(f"a {line}\n" for line in sentences(60)), encoding="utf-8")
    stats, output = tmp_path / "stats", tmp_path / "small"
    for length, noted in (("1", True), ("8", False)):
        read = ["--text", str(text), "--held-out", "20", "--max-length", length]
        assert main(["calibrate", str(model), *read, "--output", str(stats)]) == 0
        assert (f"note: {WORDS}" in capsys.readouterr().err) is noted
        call = [
            "select",
            "--stats",
            str(stats),
            "--heads",
            "6",
            "--output",
            str(tmp_path / "chosen"),
        ]
        assert main(call) == 0
        assert (f"note: {WORDS}" in capsys.readouterr().err) is noted
        assert main([*call, "--objective", "salience"]) == 0
        assert WORDS not in capsys.readouterr().err
        quick = [*QUICK, "--max-length", length, "--overwrite", "--heads", "6"]
        assert (
            main(["prune", str(model), "--text", str(text), *quick, "--output-dir", str(output)])
            == 0
        )
        notes = Report.read(output / "report.json")["notes"]
        assert any(note.startswith(WORDS) for note in notes) is noted
