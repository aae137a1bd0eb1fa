"""``cahp export``: what it says, and what it refuses before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import transformers
from command_line import make_tokenizer
from records_by_hand import make_stats
from tiny_models import sliced

from cahp_opt import Selection
from cahp_opt.cli import main
from cahp_opt.torch import find_prunable, save_pretrained, slice_heads


def told(capsys: pytest.CaptureFixture[str], status: int, *arguments: str | Path) -> str:
    assert main(["export", *map(str, arguments)]) == status
    shown = capsys.readouterr()
    return shown.err if status else shown.out


def test_a_stock_folder_opens_without_this_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prunable = find_prunable(tiny.LLAMA_GQA.build().half())
    kept = [unit % 2 == 0 for block in prunable for unit in range(block.units)]
    save_pretrained(slice_heads(prunable, kept), tmp_path / "pruned", tokenizer=make_tokenizer())
    given = [str(tmp_path / "pruned"), "--to", "stock", "--output", str(tmp_path / "stock")]
    out = told(capsys, 0, *given)
    assert "same outputs, bit for bit" in out and f"written: {tmp_path / 'stock'}" in out
    auto: Any = transformers.AutoModelForCausalLM
    opened = auto.from_pretrained(tmp_path / "stock")
    assert opened.config.num_attention_heads == 4 and str(opened.dtype) == "torch.float16"
    assert f"`--output` {tmp_path / 'stock'} is not empty" in told(capsys, 2, *given)
    assert "written" in told(capsys, 0, *given, "--overwrite")


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is loaded, where that can be seen from outside."""
    save_pretrained(sliced(tiny.LLAMA_GQA), tmp_path / "pruned", tokenizer=make_tokenizer())
    (tmp_path / "there").write_text("mine")
    for options, words in (
        (["nowhere", "--to", "stock", "--output", "x"], "FOLDER must be the folder of a model"),
        (["pruned", "--to", "gguf", "--output", "there"], "there is there already"),
        (["pruned", "--to", "gguf", "--output", "there", "--overwrite"], "is no GGUF file"),
        (["pruned", "--to", "gguf", "--output", "pruned"], "is a folder; name a file"),
        (["pruned", "--to", "onnx", "--output", "pruned"], "is the folder of the model itself"),
        (["pruned", "--to", "stock", "--output", "x"], "kept nothing"),
        (["pruned", "--to", "gguf", "--output", "x"], "it is a WordLevel tokenizer"),
    ):
        places = [
            str(tmp_path / o) if o in ("nowhere", "pruned", "there", "x") else o for o in options
        ]
        assert words in told(capsys, 2, *places), options
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pruned", "there"]


def test_even_selections_from_records(tmp_path: Path) -> None:
    make_stats(model="Model/1/2").save(tmp_path / "stats.safetensors")
    counts: dict[bool, list[int]] = {}
    for even in (False, True):
        output = tmp_path / f"{even}.json"
        given = ["select", "--stats", str(tmp_path / "stats.safetensors"), "--heads", "5"]
        options = ["--objective", "explained-variance", *(["--even"] if even else [])]
        assert main([*given, *options, "--output", str(output)]) == 0
        counts[even] = Selection.load(output).counts.tolist()
    assert len(set(counts[True])) == 1 < len(set(counts[False]))
