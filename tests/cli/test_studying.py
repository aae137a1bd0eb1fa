"""`cahp study`, whole: tables, files, what resumes, and what is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import QUICK, refused, save_model, sentences

from cahp_opt.cli import main
from cahp_opt.studies.study import Study

pytestmark = pytest.mark.usefixtures("threads")

OWN = '''
from dataclasses import dataclass
from typing import ClassVar

from cahp_opt import Method


@dataclass(frozen=True)
class Never(Method):
    """Refuses every choice."""

    source: ClassVar[str] = "these tests"

    def chooser(self, stats, task):
        raise ValueError("nothing suits.")
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier with its tokenizer."""
    return save_model(tmp_path_factory.mktemp("model"), bare=False)


@pytest.fixture
def command(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A quick study, without its methods."""
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("\n".join(sentences(60)), encoding="utf-8")
    Path("own_module_for_study.py").write_text(OWN, encoding="utf-8")
    return [
        "study", str(model), "--text", "texts.txt", *QUICK, "--max-texts", "24", "--heads", "8",
        "--recovery", "none",
    ]  # fmt: skip


def test_a_study_is_shown_and_resumes(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["--method", "random", "--method", "own_module_for_study:Never"]
    assert main([*command, *methods]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0].startswith("pruned: attention heads, because")
    assert lines[1].startswith("study: 2 methods x 1 limit x 1 recovery x 1 seed: 2 cells")
    assert "limit 8 heads, recovery none" in told.out and "nothing suits." in told.out
    assert "1 of 2 cells failed" in told.err
    page = Path("study/report.html").read_text(encoding="utf-8")
    assert told.out.endswith("written to study: report.html, study.safetensors\n")
    assert "nothing suits." in page and "these tests" in page  # the failure, and the source
    found = Study.load("study/study.safetensors")
    assert found.best("8 heads", "none") == ("random",) and len(found.missing) == 1
    judged = {path: path.stat().st_mtime_ns for path in Path("study/judged").iterdir()}
    assert main([*command, "--method", "random"]) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("study/judged").iterdir()} == judged
    assert "failed" not in capsys.readouterr().out


def test_pages_of_somebody_else_stay(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path("study/report.html")
    page.parent.mkdir()
    page.write_text("mine", encoding="utf-8")
    refused(capsys, 2, "holds report.html, but no study", run=lambda: main(command))
    assert page.read_text(encoding="utf-8") == "mine"


def test_if_all_cells_fail_the_study_does(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    never = [*command, "--method", "own_module_for_study:Never"]
    refused(capsys, 2, "all 1 cells failed: nothing suits.", run=lambda: main(never))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "best"], "`--method` 'best' is not known"),
        (["--jobs", "0"], "`--jobs` must be at least 1"),
        (["--latency", "quick"], "'quick'"),
        (["--held-out", "0"], "there are no held-out texts"),
        (["--test-data", "none.tsv"], "none.tsv"),
        (["--output-dir", "texts.txt"], "is a file"),
        (["--epochs", "2"], "only `--recovery finetune` trains"),
        (["--weighting", "equal"], "only `--recovery refit` and"),
    ],
)
def test_what_a_study_cannot_do_is_told_at_once(
    command: list[str], options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, 2, words, run=lambda: main([*command, *options]))
    assert not Path("study").exists()


def test_a_record_of_somebody_else_is_not_replaced(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("study").mkdir()
    Path("study/study.safetensors").write_text("mine", encoding="utf-8")
    refused(capsys, 2, "which no study wrote", run=lambda: main(command))
