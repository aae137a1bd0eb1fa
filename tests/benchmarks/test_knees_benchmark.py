"""The benchmark of automatic sizes, on a tiny classifier, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import save_model, sentences

from benchmarks.knees import report, rules, run

FAST = ["--draws", "1", "--calibration", "12", "--refit", "10", "--held-out", "8", "--seeds", "2"]


def write(path: Path, texts: list[str]) -> str:
    """Labelled sentences as a table."""
    rows = [f"{len(text.split()) % 2}\t{text}" for text in texts]
    path.write_text("\n".join(["label\ttext", *rows]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(run, "SIGNATURE", 3)
    texts = sentences(60)
    model = save_model(tmp_path / "tiny", bare=False)
    data = ["--train", write(tmp_path / "train.tsv", texts[:48])]
    data += ["--dev", write(tmp_path / "dev.tsv", texts[48:])]
    return ["--model", str(model), *data, *FAST, "--step", "1", "--output", str(tmp_path / "out")]


@pytest.mark.documents(10)
def test_a_run_goes_on_and_has_a_page(arguments: list[str], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        run.main([*arguments, "--minutes", "0"])
        path = tmp_path / "out" / "tiny.json"
        begun: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        assert len(begun["draws"]) == 1 and not begun["judged"]
        run.main(arguments)
        with pytest.raises(SystemExit, match="choose another --output"):
            run.main([*arguments, "--held-out", "7"])
    finally:
        torch.set_num_threads(threads)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert [d["stops"] for d in found["draws"]] == [d["stops"] for d in begun["draws"]]
    for draw in found["draws"]:
        assert len(draw["stops"]) == len(rules.DEGREES) * 2
        passes = [(c["forward"], c["backward"]) for c in draw["costs"].values()]
        assert passes == [(2.25, 0.25), (1, 0)]
        assert np.all(np.diff(draw["frontier"]["values"]) >= 0)
    full = "1" * found["units"]
    measured = found["draws"][0]["measured"]
    assert list(measured) == ["sliced", "refitted"]
    for points in (m["points"] for m in measured.values()):
        assert points[-1] == {"kept": full, **found["dense"]["held out"]} and not points[-1]["kl"]
        assert all(point["kl"] > 0 for point in points[:-1])
    for draw in found["draws"]:
        assert all(s["kept"] in found["judged"] for s in draw["stops"] if s["seed"] == 0)
        assert set(rules.value_rules(draw["frontier"]).values()) <= set(found["judged"])
    lines = report.page([found]).splitlines()
    assert sum(line.startswith("| silhouette") for line in lines) == len(rules.DEGREES)
    assert not any("?" in line for line in lines if line.startswith("|"))


def test_rules_by_hand() -> None:
    kept = ["1" * n + "0" * (10 - n) for n in range(1, 11)]
    values = [min(n, 4) for n in range(1, 11)]
    found = rules.value_rules({"kept": kept, "values": values})
    assert report.units(found["explained variance", "points"]) == 4
    points = [
        {"kept": keep, "kl": 1 - n / 10, "accuracy": 0.4 + 0.02 * min(n, 7)}
        for n, keep in enumerate(kept, start=1)
    ]
    measured = rules.measured_rules(points)
    assert report.units(measured["accuracy", "points"]) == 7
    assert report.units(measured["accuracy", "tolerance"]) == 7
    assert report.units(measured["kl", "tolerance"]) == 10
