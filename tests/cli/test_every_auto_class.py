"""Every class that transformers' ``AutoModelFor...`` make is pruned whole, or refused by a sentence."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="models need PyTorch")
pytest.importorskip("PIL", reason="images need Pillow")

from auto_classes import PRUNED, auto_classes, checkpoints, save
from command_line import sentences
from media_files import pictures, recordings
from safetensors.torch import load_file

from cahp_opt.cli import main
from cahp_opt.runs.media import Medium
from cahp_opt.torch.running.main_input import medium_of
from cahp_opt.torch.running.unfit_inputs import chooses

pytestmark = pytest.mark.slow

SMALL = ["--heads", "7", "--held-out", "4", "--batch-size", "8", "--threads", "1", "--repeats", "1"]
PLAIN = ["--recovery", "none", "--objective", "explained-variance", "--latency-batch-size", "2"]


def folder_of(model: Any, place: Path) -> list[str]:
    """The option with examples that the model reads."""
    medium = medium_of(model)
    if medium is Medium.IMAGE:
        return ["--images", str(pictures(place / "images", each=4))]
    if medium is Medium.SOUND:
        settings = json.loads((place / "model" / "preprocessor_config.json").read_text())
        rate = settings["sampling_rate"]
        return ["--audio", str(recordings(place / "sounds", each=4, rate=rate, ticks=4000))]
    if chooses(model):
        texts = sentences(48)
        rows = ["\t".join(texts[i : i + 4]) for i in range(0, 48, 4)]
        (place / "t.tsv").write_text("\n".join(["text\tchoice0\tchoice1\tchoice2", *rows]))
        return ["--data", str(place / "t.tsv")]
    (place / "t.txt").write_text("\n".join(sentences(16)))
    return ["--text", str(place / "t.txt")]


_OTHER_TYPE = ("cannot be run on these", "cannot be met", "cannot be loaded")
"""Parts of sentences about a tiny configuration rather than about its class: another model type is tried."""


@pytest.mark.parametrize("name", auto_classes())
def test_it_is_pruned_whole_or_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = list(islice(checkpoints(name), 3))
    if not built:
        pytest.skip("no tiny model of any of its types can be built here")
    sentence = ""
    for model_type, model in built:
        place, out = save(model, tmp_path / model_type / "model"), tmp_path / model_type / "out"
        given = folder_of(model, tmp_path / model_type)
        capsys.readouterr()
        code = main(["prune", str(place), *given, *SMALL, *PLAIN, "--output-dir", str(out)])
        lines = capsys.readouterr().err.splitlines()
        if code == 0:
            _check_whole(place, out)
            sentence = "pruned"
            break
        (sentence,) = (line for line in lines if line.startswith("cahp: "))
        assert code == 2 and sentence.endswith(".") and not out.exists()
        assert ";" in sentence or "cannot be loaded" in sentence  # which tells the way out
        if not any(part in sentence for part in _OTHER_TYPE):
            break
    with capsys.disabled():
        print(f"| {name} | {type(model).__name__} | {sentence} |")
    assert sentence == "pruned" or name.removeprefix("AutoModelFor") not in PRUNED


def _check_whole(before: Path, after: Path) -> None:
    """Every key of the checkpoint is in what was saved, under the same class."""
    weights = load_file(before / "model.safetensors")
    assert not weights.keys() - load_file(after / "cahp_weights.safetensors").keys()
    named = [json.loads((folder / "config.json").read_text()) for folder in (before, after)]
    assert named[0]["architectures"] == named[1]["architectures"]
    missing = {path.name for path in before.iterdir()} - {path.name for path in after.iterdir()}
    assert missing <= {"model.safetensors"}
