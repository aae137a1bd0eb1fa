"""``cahp prune --dry-run``: the table of what would be done, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import prune, refused, save_model, sentences

from cahp_opt.cli.forecast_table import in_bytes, in_seconds

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def test_the_stages_are_shown_and_nothing_is_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = tmp_path / "texts.txt"
    text.write_text("\n".join(sentences(40)))
    before = sorted(tmp_path.rglob("*"))
    options = ("--text", text, "--heads", "6", "--dry-run")
    assert prune(model, tmp_path / "new" / "pruned", *options) == 0
    assert sorted(tmp_path.rglob("*")) == before
    shown = capsys.readouterr().out
    for told in ("calibrate", "evaluate again", "refit", "backward", "nothing was written"):
        assert told in shown
    assert "40 texts" in shown and "moments of attention 48.8 KiB" in shown


def test_what_a_run_would_refuse_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "texts.txt", tmp_path / "pruned"
    text.write_text("\n".join(sentences(40)))
    few = ("--text", text, "--heads", "6", "--minimum", "3", "--dry-run")
    refused(capsys, 2, "6", "9", run=lambda: prune(model, out, *few))


def test_amounts_in_words() -> None:
    assert [in_bytes(n) for n in (0, 999, 1024, 1.5 * 2**30)] == [
        "0 B",
        "999 B",
        "1 KiB",
        "1.5 GiB",
    ]
    assert [in_seconds(s) for s in (0.012, 99, 150, 7200)] == [
        "0.012 s",
        "99 s",
        "2 min",
        "2 h 0 min",
    ]
