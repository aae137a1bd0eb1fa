"""The benchmark that a machine with a GPU runs, on the CPU and two builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.gpu import architectures as gpu
from cahp_opt.torch import find_attention, slice_heads


def rows(builds: str, target: Path) -> tuple[int, dict[str, Any]]:
    """The exit code, and what was written."""
    code = gpu.main(["--device", "cpu", "--builds", builds, "--output", str(target)])
    return code, json.loads(target.read_text(encoding="utf-8"))


@pytest.mark.documents(8)
def test_every_build_and_dtype_has_a_row(tmp_path: Path) -> None:
    code, record = rows("torch-encoder,llama-gqa", tmp_path / "cpu.json")
    made = {(row["build"], row["dtype"]): row for row in record["rows"]}
    assert code == 0 and record["complete"] and len(made) == len(record["rows"]) == 4
    assert {row["outcome"] for row in made.values()} == {"passed"}
    for (build, dtype), row in made.items():
        stock = build == "llama-gqa"
        some = {"reload"} if stock else set()
        some |= {"generate"} if stock and dtype == "float32" else set()
        assert row["attention"] == ("sdpa" if stock else None)
        assert row["checks"].keys() == {"slice", "calibrate", "bypass", "latency"} | some
        assert 0 < row["kept"] < row["units"] and row["empty_block"] == 0
        assert row["checks"]["slice"]["padded_effect"] > 0.1
        assert row["checks"]["bypass"]["skipped"] == 1
        assert ("salience_difference" in row["checks"]["calibrate"]) == (dtype == "float32")
    assert made["llama-gqa", "float32"]["checks"]["generate"]["tokens"] == 3 * (7 + gpu.TOKENS)
    told = record["provenance"]
    assert told["device"] and told["date"] and told["versions"]["torch"] == torch.__version__
    assert told["tf32"] is False and told["driver"] is None


def test_failures_are_recorded_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: nn.Module, kept: Any, **options: Any) -> nn.Module:
        """Keeps other units than it was told to, but as many."""
        small = slice_heads(model, find_attention(model).space.check(kept)[::-1], **options)
        return small

    monkeypatch.setattr(gpu, "slice_heads", wrong)
    monkeypatch.setattr(gpu, "DTYPES", (torch.float32,))
    code, record = rows("llama-gqa", tmp_path / "cpu.json")
    (row,) = record["rows"]
    assert code == 1 and record["complete"] and row["outcome"] == "failed"
    failed = {name: found["why"] for name, found in row["checks"].items() if "why" in found}
    assert failed.keys() >= {"slice", "generate"}
    assert "masked and sliced" in failed["slice"] and "is allowed" in failed["slice"]
    assert row["checks"]["calibrate"]["outcome"] == "passed"
