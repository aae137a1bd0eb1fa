"""`cahp study`, whole: tables, files, what resumes, and what is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import QUICK, refused, save_model, sentences

from cahp_opt import Budget, HeadSpace, Task
from cahp_opt.cli import main
from cahp_opt.runs.names import ObjectiveName
from cahp_opt.runs.studied_objectives import applicable
from cahp_opt.runs.study_options import StudiedMethods
from cahp_opt.studies.study import Study

pytestmark = pytest.mark.usefixtures("threads")

OWN = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cahp_opt import Method
from cahp_opt.objectives import Modular
from cahp_opt.stats.needs import needs


@dataclass(frozen=True)
class Never(Method):
    """Refuses every choice."""

    source: ClassVar[str] = "these tests"

    def chooser(self, stats, task):
        raise ValueError("nothing suits.")


class Capped(Modular):
    """Salience, with its largest values cut off."""

    @staticmethod
    @needs("salience")
    def from_stats(stats):
        salience = stats.salience.mean
        return Capped(np.minimum(salience, np.median(salience) * 3))


class Broken(Modular):
    """Cannot be made."""

    @staticmethod
    def from_stats(stats):
        raise RuntimeError("it broke")
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


def test_objectives_stand_beside_what_they_choose(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["own_module_for_study:Capped", "own_module_for_study:Broken"]
    few = [
        "--objective",
        own[0],
        "--objective",
        own[1],
        "--objective",
        "salience",
        "--keep-sets",
        "4",
    ]
    assert main([*command, *few]) == 0
    told = capsys.readouterr()
    assert "study: 4 methods x 1 limit" in told.out  # random is the baseline
    assert "3 objectives, by 4 random keep-sets at every limit: 4 more models to judge" in told.out
    assert "do they rank 4 random keep-sets by kl" in " ".join(told.out.split())
    assert "1 of 4 cells failed" in told.err
    found = Study.load("study/study.safetensors")
    assert found.objectives == (own[0], "salience", own[1])
    assert found.methods == ("random", own[0], "salience", own[1])
    page = Path("study/report.html").read_text(encoding="utf-8")
    for words in ("What objectives say", "your own objective", "RuntimeError: it broke."):
        assert words in page


def test_objectives_of_the_library_stand_beside_ones_own() -> None:
    usual = {name.value for name in StudiedMethods(objective=("mine:One",)).usual_objectives}
    assert usual == {name.value for name in ObjectiveName}
    assert not StudiedMethods(objective=("mine:One", "salience")).usual_objectives
    assert not StudiedMethods().usual_objectives
    space = HeadSpace.uniform(2, 3)
    unlabelled = applicable(ObjectiveName, Task(Budget(space)))
    assert "complementarity" not in unlabelled and "facility-location" in unlabelled
    assert "complementarity" in applicable(ObjectiveName, Task(Budget(space), labelled=True))


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
        (["--objective", "best"], "`--objective` 'best' is not known"),
        (["--objective", "own_module_for_study:Never"], "has no `from_stats(stats)`"),
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


def test_those_that_apply_are_studied_beside_ones_own(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--objective", "own_module_for_study:Capped", "--keep-sets", "2"]
    assert main([*command, *own]) == 0
    assert "6 objectives, by 2 random keep-sets" in capsys.readouterr().out
    names = [name.value for name in ObjectiveName if name.value != "complementarity"]
    found = Study.load("study/study.safetensors").objectives
    assert found == ("own_module_for_study:Capped", *names)
