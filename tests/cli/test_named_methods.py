"""Methods by name on the command line, and a user's own."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

pytest.importorskip("torch", reason="models need PyTorch")

from command_line import prune, refused

from cahp_opt import Selection
from cahp_opt.cli.plugins import every_method, method_named
from cahp_opt.runs.method import Method

pytestmark = pytest.mark.usefixtures("threads")

OWN = dedent(
    """
    from dataclasses import dataclass
    from typing import ClassVar

    import numpy as np

    from cahp_opt import Chooser, HeadStats, Method, Task, chooser
    from cahp_opt.objectives import Modular
    from cahp_opt.solvers import TopK


    @dataclass(frozen=True)
    class Last(Method):
        "The units with the largest numbers."

        source: ClassVar[str] = "made up"

        def chooser(self, stats: HeadStats, task: Task) -> Chooser:
            return chooser(Modular(np.arange(stats.space.n, dtype=float)), TopK())


    @dataclass(frozen=True)
    class Sourceless(Last):
        "Somebody's."

        source: ClassVar[str] = ""


    @dataclass(frozen=True)
    class Asking(Last):
        "One that has to be told."

        units: int


    class Greedy:
        pass
    """
)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_methods.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def test_every_method_is_known_by_its_name() -> None:
    methods = list(every_method())
    names = [method.name for method in methods]
    assert len(set(names)) == len(names) and {"default", "michel", "random"} <= set(names)
    for method in methods:
        assert isinstance(method, Method) and method_named(method.name) == method


def test_methods_of_statistics_are_found_without_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cahp_opt.cli.plugins.importlib", None)
    assert method_named("zip-levels").name == "zip-levels"


def test_a_method_of_the_users_own_prunes(
    own: None, model: Path, text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    options = ["--text", str(text), "--heads", "3", "--minimum", "0", "--recovery", "none"]
    assert prune(model, output, *options, "--method", "own_methods:Last") == 0
    selection = Selection.load(output / "cahp_selection.json")
    n = selection.space.n
    assert selection.kept.nonzero()[0].tolist() == [n - 3, n - 2, n - 1]
    assert selection.provenance["method"] == "last" and "objective" not in selection.provenance


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--method", "sorcery"], "`--method` 'sorcery' is not known; known: "),
        (["--method", "own_methods:Greedy"], "is not a cahp_opt.Method; subclass it"),
        (["--method", "own_methods:Sourceless"], "must state its `source`"),
        (["--method", "own_methods:Asking"], "'units'); define what is abstract, and give every"),
        (["--method", ":Last"], "cannot be loaded"),
        (
            ["--method", "michel", "--objective", "salience"],
            "`--method michel` chooses in its own way, and `--objective salience` in another",
        ),
        (["--method", "michel", "--solver", "auto"], "and `--solver auto` in another"),
    ],
)
def test_what_is_no_method_is_refused_before_the_model_is_loaded(
    own: None,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    told: str,
) -> None:
    given = ["--text", str(text), "--heads", "3", *options]
    refused(capsys, 2, told, run=lambda: prune(tmp_path / "nowhere", tmp_path / "out", *given))
