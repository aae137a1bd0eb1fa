"""The benchmark of latency tables, on tiny models, and the script that runs everything on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.latency import models, run
from cahp_opt.space import Block, HeadSpace
from cahp_opt.torch import time_models

ROOT = Path(__file__).parents[2]
FAST = ["--sets", "3", "--repeats", "1", "--examples", "2", "--tokens", "8", "--context", "16"]


def results(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def bench(folder: Path, names: str, *more: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what was written."""
    code = run.main(["--device", "cpu", "--models", names, "--output", str(folder), *FAST, *more])
    return code, results(folder)


def test_predictions_of_whole_models(tmp_path: Path) -> None:
    code, found = bench(tmp_path, "tiny-encoder,tiny-decoder", "--group", "2")
    cases = {(case["model"], case["phase"]): case for case in found["cases"]}
    assert code == 0 and found["left_out"] == [] and torch.get_num_threads()
    assert list(cases) == [
        ("tiny-encoder", "prefill"),
        ("tiny-decoder", "prefill"),
        ("tiny-decoder", "decode"),
    ]
    for case in cases.values():
        table = case["table"]
        (curve,) = table["kinds"]
        units = len(curve["seconds"]) - 1
        assert case["outcome"] == "measured" and case["execution"] == "eager"
        assert curve["blocks"] == 2 and units == {"head": 4, "kv_group": 2}[case["unit"]]
        errors = []
        for row in case["sets"]:
            told = table["fixed"] + sum(curve["seconds"][k] for k in row["counts"])
            predicted = max(table["least"], told)
            error = (predicted / table["dense"]) / (row["measured"] / row["dense"]) - 1
            assert row["predicted"] == pytest.approx(predicted, rel=1e-3)
            assert row["error"] == pytest.approx(predicted / row["measured"] - 1, abs=1e-3)
            assert row["relative_error"] == pytest.approx(error, abs=2e-3)
            errors.append(abs(row["relative_error"]))
        assert len(errors) == case["summary"]["sets"] == 3
        assert case["summary"]["relative_error"]["median"] == pytest.approx(np.median(errors))
        assert len({row["dense"] for row in case["sets"]}) == 2  # one in each group
    assert (cases["tiny-decoder", "decode"]["batch"], case["length"]) == (8, 16)
    assert found["provenance"]["threads"] == 1 and found["provenance"]["device"]


def test_both_kinds_of_blocks(tmp_path: Path) -> None:
    code, found = bench(tmp_path, "tiny-both")
    (case,) = found["cases"]
    assert code == 0 and [kind["blocks"] for kind in case["table"]["kinds"]] == [2, 2]
    assert all(len(row["counts"]) == 4 for row in case["sets"])


def test_keep_sets_are_uneven_and_range_widely() -> None:
    space = HeadSpace(tuple(Block(f"{i}", 12) for i in range(12)))
    sets = run.keep_sets(space, "bert", 30)
    sizes = np.array([kept.sum() for kept in sets]) / space.n
    assert sizes.min() < 0.25 and sizes.max() > 0.75 and len({s.tobytes() for s in sets}) == 30
    assert np.mean([np.ptp(space.counts(kept)) >= 4 for kept in sets]) > 0.9
    others = run.keep_sets(space, "gpt2", 30)
    assert not any((a == b).all() for a, b in zip(sets, others, strict=True))


def test_a_case_that_fails_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = time_models

    def broken(found: Any, batch: Any, **more: Any) -> Any:
        if more["phase"].value == "prefill":
            raise RuntimeError("the device\nis gone")
        return plain(found, batch, **more)

    monkeypatch.setattr("benchmarks.latency.run.time_models", broken)
    code, found = bench(tmp_path, "tiny-decoder")
    prefill, decode = found["cases"]
    assert code == 1 and decode["outcome"] == "measured"
    assert prefill["outcome"] == "failed" and prefill["why"] == "RuntimeError: the device is gone"
    assert prefill["table"]["dense"] > 0  # what was measured is kept


def test_a_run_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "answers", lambda device: False)
    code, found = bench(tmp_path, "tiny-decoder")
    assert code == run.LOST_DEVICE and len(found["cases"]) == 1
    monkeypatch.undo()
    (path,) = tmp_path.glob("*.json")
    found["cases"][0]["outcome"] = "started"  # a crash
    path.write_text(json.dumps(found), encoding="utf-8")
    code, found = bench(tmp_path, "tiny-decoder")
    first, second = found["cases"]
    assert code == 1 and first["why"] == "the process ended in the middle"
    assert second["phase"] == "decode" and second["outcome"] == "measured"
    found["provenance"]["versions"]["torch"] = "0.1"
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(SystemExit, match="of another machine or other software"):
        bench(tmp_path, "tiny-decoder")


def test_no_case_is_started_that_would_end_too_late(tmp_path: Path) -> None:
    code, found = bench(tmp_path, "tiny-decoder", "--minutes", "0")
    assert code == 0 and not found["cases"]
    assert [key["phase"] for key in found["left_out"]] == ["prefill", "decode"]


def test_shapes_are_those_of_their_models() -> None:
    sizes = models.SIZES["cuda"]
    heads = {
        name: (config.num_hidden_layers, config.num_attention_heads, config.hidden_size)
        for name, shape in models.SHAPES.items()
        if (config := shape.config(sizes)) is not None
    }
    assert heads["bert-base"] == heads["gpt2"] == heads["vit-base"] == (12, 12, 768)
    assert heads["bert-large"] == (24, 16, 1024) and heads["minilm"] == (6, 12, 384)
    assert heads["llama-8b-layers"] == heads["llama-8b-slots"] == (4, 32, 4096)


def script(folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A run of the script without a GPU."""
    environment = {**os.environ, "DEVICE": "cpu", **more}
    command = ["bash", str(ROOT / "benchmarks" / "gpu" / "run.sh"), str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.documents(12)
def test_one_command_runs_everything(tmp_path: Path) -> None:
    done = script(
        tmp_path,
        PYTHON=sys.executable,
        LATENCY=" ".join(["--models", "tiny-encoder", *FAST]),
        ARCHITECTURES="--builds torch-encoder",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [case["outcome"] for case in results(tmp_path / "latency")["cases"]] == ["measured"]
    assert results(tmp_path / "architectures")["complete"]


def test_a_lost_device_is_tried_again_and_time_is_kept(tmp_path: Path) -> None:
    """With an interpreter that only takes down how it was called."""
    stub = tmp_path / "python"
    stub.write_text(
        f'#!/usr/bin/env bash\necho "$@" >>"{tmp_path}/calls"\n[[ $1 != *run.py ]] || exit 3\n'
    )
    stub.chmod(0o755)
    done = script(tmp_path / "out", PYTHON=str(stub), LIMIT="545")
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert done.returncode == 3 and len(calls) == 4, done.stdout + done.stderr
    assert [Path(call[0]).name for call in calls] == 3 * ["run.py"] + ["architectures.py"]
    minutes = float(calls[0][calls[0].index("--minutes") + 1])
    assert minutes == pytest.approx((545 - 545 // 5 - 545 // 20) / 60, abs=0.05)
