"""Terminals that are not UTF-8, and names that they cannot show."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from records_by_hand import make_stats, make_table

from cahp_opt import Selection
from cahp_opt.cli import main

NAMES = ["modèle", "模型", "a\udce8b"]
"""The last one is a name that is not of the system's encoding."""


def streams(monkeypatch: pytest.MonkeyPatch, encoding: str) -> list[io.BytesIO]:
    """Standard output and error, as bytes, written strictly in an encoding."""
    raw = [io.BytesIO(), io.BytesIO()]
    for name, errors, buffer in zip(("stdout", "stderr"), ("strict", "strict"), raw, strict=True):
        stream = io.TextIOWrapper(buffer, encoding=encoding, errors=errors, write_through=True)
        monkeypatch.setattr(sys, name, stream)
    return raw


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        *(("ascii", name) for name in NAMES),
        ("latin-1", NAMES[1]),
        ("cp1252", NAMES[0]),
        ("utf-8", NAMES[2]),
    ],
)
def test_every_table_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    make_stats(model="Model/1/2").save(folder / "s.safetensors")
    make_table().save(folder / "l.json")
    records = ["--stats", str(folder / "s.safetensors"), "--latency-table", str(folder / "l.json")]
    chosen = folder / "selection.json"
    out, err = streams(monkeypatch, encoding)
    errors = sys.stdout.errors, sys.stderr.errors
    assert main(["select", *records, "--output", str(chosen), "--latency", "0.9"]) == 0
    assert Selection.load(chosen).kept.any()
    compare = ["compare", *records, "--solver", "top-k", "--output-dir", str(folder / "out")]
    compare += ["--latency", "0.9"]
    assert main(compare) == 0
    missing = str(folder / "missing")
    assert main(["select", "--stats", missing, "--heads", "2"]) == 2
    assert main(["select", "--no-such-option", name]) == 2
    assert main(["--help"]) == main(["prune", "--help"]) == 0
    assert (sys.stdout.errors, sys.stderr.errors) == errors
    shown, told = (b.getvalue().decode(encoding) for b in (out, err))
    assert "upper bound" in shown and "written" in shown and "missing" in told
    assert ("│" in shown) == (encoding == "utf-8")


def test_a_real_process(tmp_path: Path) -> None:
    folder = tmp_path / "模型"
    folder.mkdir()
    make_stats(model="Model/1/2").save(folder / "s.safetensors")
    path = os.pathsep.join(p for p in sys.path if p)
    command = [
        sys.executable,
        "-c",
        "import sys; from cahp_opt.cli import main; sys.exit(main())",
    ]
    given = ["select", "--stats", str(folder / "s.safetensors"), "--heads", "3"]
    done = subprocess.run(
        [*command, *given, "--output", str(folder / "selection.json")],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr and b"written: " in done.stdout
    assert Selection.load(folder / "selection.json").kept.sum() == 3
