"""`cahp compare`: solvers by name and of one's own, on saved records, without PyTorch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from records_by_hand import SPACE, make_stats, make_table

from cahp_opt import Comparison, HeadStats, Objective, Selection
from cahp_opt.cli import main, plugins

OWN = '''
from dataclasses import dataclass

import numpy as np

from cahp_opt import Proposal, Solver
from cahp_opt.objectives import Modular


@dataclass(frozen=True)
class Last(Solver):
    """The last unit of every block."""

    def solve(self, problem, *, deadline, rng):
        kept = np.zeros(problem.space.n, dtype=bool)
        kept[[where.stop - 1 for where in problem.space.slices]] = True
        return Proposal(kept)


class Energy:
    """Not an objective itself: makes one."""

    @staticmethod
    def from_stats(stats):
        return Modular(np.arange(1.0, stats.space.n + 1))


class Nothing:
    pass
'''


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    make_stats(model="Model/1/2").save("stats.safetensors")
    make_table().save("latency.json")
    (tmp_path / "own_module_for_compare.py").write_text(OWN, encoding="utf-8")
    return ["compare", "--stats", "stats.safetensors"]


def test_all_solvers_on_default_budgets(
    records: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    table = ["--latency-table", "latency.json", "--minimum", "0"]
    assert main([*records, *table, "--time-limit", "0.03", "--objective", "gauss-newton"]) == 0
    found = Comparison.load("comparison/comparison.json")
    assert len({row.problem for row in found.rows}) == 3
    assert {"auto", "miqp", "brute-force", "spectral"} <= {row.solver for row in found.rows}
    best = {
        p: max(r.value for r in found.rows if r.problem == p and not r.refusal)
        for p in {r.problem for r in found.rows}
    }
    assert all(found.bound(p) >= value - 1e-9 for p, value in best.items())
    assert {p.name for p in Path("comparison").iterdir()} == {
        "comparison.json", "gaps.png", "report.html", "runs.jsonl", "values.png",
    }  # fmt: skip
    assert "tightest bound" in capsys.readouterr().out


@pytest.mark.usefixtures("no_pictures")
def test_default_budgets_are_those_that_can_be_reached(
    records: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*records, "--solver", "top-k", "--latency-table", "latency.json"]
    assert main([*given, "--minimum", "1"]) == 0
    problems = {row.problem for row in Comparison.load("comparison/comparison.json").rows}
    assert problems and "latency 0.7" not in problems
    assert "0.7 of the unpruned time cannot be reached" in capsys.readouterr().err
    assert main([*given, "--minimum", "1", "--latency", "0.7"]) == 2  # asked for
    given = [*records, "--solver", "top-k", "--multiple-of", "3", "--output-dir", "multiples"]
    assert main(given) == 0


def test_own_solver_and_objective(records: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    own = [
        "--solver",
        "own_module_for_compare:Last",
        "--objective",
        "own_module_for_compare:Energy",
    ]
    assert main([*records, *own, "--solver", "top-k", "--heads", "2", "--output-dir", "out"]) == 0
    values = {row.solver: row.value for row in Comparison.load("out/comparison.json").rows}
    assert values == {"own_module_for_compare:Last": 3 + 5, "top-k": 3 + 5}
    assert SPACE.n == 5 and "own_module" in capsys.readouterr().out


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("sensed", [True, False])
def test_the_default_objective_follows_the_statistics(
    records: list[str], monkeypatch: pytest.MonkeyPatch, sensed: bool
) -> None:
    """Statistics of models that embed texts, such as the demonstration's, have no sensitivity."""
    if not sensed:
        make_stats(model="Model/1/2").without("sensitivity").save("stats.safetensors")
    objectives, real = list[str](), plugins.objective_named

    def named(text: str, stats: HeadStats) -> Objective:
        objectives.append(text)
        return real(text, stats)

    monkeypatch.setattr(plugins, "objective_named", named)
    given = ["--solver", "top-k", "--solver", "dynamic-program", "--latency-table", "latency.json"]
    assert main([*records, *given, "--latency", "0.9", "--latency", "0.8"]) == 0
    assert objectives == ["explained-output" if sensed else "explained-variance"]
    assert main(["select", *records[1:], "--heads", "3", "--output", "selection.json"]) == 0
    assert Selection.load("selection.json").provenance["objective"] == objectives[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--solver", "none"], "`--solver` 'none' is not known"),
        (["--objective", "none"], "`--objective` 'none' is not known"),
        (["--solver", "own_module_for_compare:Missing"], "cannot be loaded"),
        (["--solver", "no_such_module:Solver"], "cannot be loaded"),
        (["--solver", "own_module_for_compare:Nothing"], "is not a cahp_opt.Solver"),
        (["--objective", "own_module_for_compare:Nothing"], "has no `from_stats(stats)`"),
        (["--latency", "0.8"], "needs a latency table"),
        (["--heads", "1"], "smallest reachable is 2"),
    ],
)
def test_refusals(
    records: list[str], options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*records, *options]) == 2
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1
    assert not Path("comparison").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("comparison.json", "{}"),
        ("runs.jsonl", "a line that somebody wrote"),
        ("runs.jsonl", "{}\n"),
        ("gaps.png", "a picture"),
        ("values.png", "a picture"),
        ("report.html", "a page"),
    ],
)
def test_files_of_somebody_else_are_not_replaced(
    records: list[str], name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("comparison").mkdir()
    Path("comparison", name).write_text(content, encoding="utf-8")
    assert main([*records, "--heads", "3", "--solver", "top-k"]) == 2
    printed = capsys.readouterr().err
    assert f"holds {name}, which no comparison wrote" in printed and printed.count("\n") == 1
    assert Path("comparison", name).read_text(encoding="utf-8") == content


@pytest.mark.usefixtures("no_pictures")
def test_a_comparison_goes_on_beside_other_files(records: list[str]) -> None:
    Path("comparison").mkdir()
    Path("comparison", "notes.txt").write_text("mine", encoding="utf-8")
    for heads in ("3", "4"):
        assert main([*records, "--heads", heads, "--solver", "top-k"]) == 0
    runs = Path("comparison", "runs.jsonl")
    assert runs.read_text(encoding="utf-8").count("\n") == 2
    with runs.open("a", encoding="utf-8") as file:
        file.write('{"key": "cut o')
    assert main([*records, "--heads", "4", "--solver", "top-k"]) == 0
    assert runs.read_text(encoding="utf-8").count("\n") == 2
    assert Path("comparison", "notes.txt").read_text(encoding="utf-8") == "mine"


def test_what_compare_cannot_do_is_told_at_once(
    records: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for jobs in ("0", "-2"):
        assert main([*records, "--heads", "3", "--jobs", jobs]) == 2
        assert f"`--jobs` must be at least 1, or -1 for one per core, got {jobs}." in (
            capsys.readouterr().err
        )
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([*records, "--heads", "3", "--solver", "top-k"]) == 0
    told = capsys.readouterr()
    assert told.err.startswith("note: plots need matplotlib")
    assert {p.name for p in Path("comparison").iterdir()} == {
        "comparison.json",
        "report.html",
        "runs.jsonl",
    }
