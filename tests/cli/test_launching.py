"""Commands in the processes of a launcher, and models spread over devices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import QUICK, prune, refused, save_model, sentences

from cahp_opt.cli import main
from cahp_opt.selection import Selection
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.torch.checkpoints.model_loading import ModelError, load_model

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(sentences(60)))
    return path


@pytest.mark.slow
def test_two_processes_choose_as_one(model: Path, text: Path, tmp_path: Path) -> None:
    options = ["--text", str(text), "--heads", "6", "--neurons", "0.5", *QUICK]
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert prune(model, alone, *options) == 0
    script = tmp_path / "cahp.py"
    script.write_text("import sys; from cahp_opt.cli import main; sys.exit(main())")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, str(script), "prune", str(model), "--output-dir", str(both), *options]
    before = {path.name for path in tmp_path.iterdir()}
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} - before == {"both"}
    assert done.stdout.count("written") == 1  # by the first process alone
    first, second = (Selection.load(f / "cahp_selection.json") for f in (alone, both))
    assert np.array_equal(first.kept, second.kept) and first.value == pytest.approx(second.value)
    stats = [HeadStats.load(folder / "stats.safetensors") for folder in (alone, both)]
    assert stats[0].tokens == stats[1].tokens
    for name, statistic in stats[0].statistics.items():
        for part, array in statistic.arrays().items():
            theirs = stats[1].statistics[name].arrays()[part]
            np.testing.assert_allclose(theirs, array, rtol=1e-4, atol=1e-6 * np.abs(array).max())


def test_a_command_that_runs_in_one_process_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    parts = ("2 processes", "`cahp hardware` runs in one")
    refused(capsys, 2, *parts, run=lambda: main(["hardware"]))


@pytest.mark.parametrize("place", ["auto", "cpu"])
def test_a_model_is_spread_over_devices(place: str, model: Path) -> None:
    pytest.importorskip("accelerate")
    whole, spread = load_model(str(model), device="cpu"), load_model(str(model), device_map=place)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, spread.state_dict()[name])


def test_maps_that_cannot_be_are_refused(model: Path) -> None:
    pytest.importorskip("accelerate")
    with pytest.raises(ModelError, match="both say where the model goes"):
        load_model(str(model), device="cpu", device_map="auto")
    with pytest.raises(ModelError, match="`--device-map` must be a device"):
        load_model(str(model), device_map="everywhere")
