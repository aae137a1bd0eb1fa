"""What `cahp calibrate` measures, and that it is what `cahp prune` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="models need PyTorch")

from command_line import SMALL, prune, refused

from cahp_opt import HeadStats
from cahp_opt.cli import main
from cahp_opt.runs.names import ObjectiveName

pytestmark = pytest.mark.usefixtures("threads")

ALWAYS = {"salience", "moments"}


def calibrated(model: Path, folder: Path, *options: str) -> HeadStats:
    out = folder / "calibrated.safetensors"
    given = ["calibrate", str(model), *SMALL[:4], "--threads", "1", *options]
    assert main([*given, "--output", str(out)]) == 0
    return HeadStats.load(out)


@pytest.mark.parametrize(
    ("objective", "recovery", "numbers"),
    [
        ("gauss-newton", "none", ["--gradient-examples", "8", "--prune", "both"]),
        ("explained-output", "refit", ["--sensitivity-examples", "9", "--prune", "both"]),
        ("facility-location", "none", ["--gradient-examples", "8", "--divergence-examples", "4"]),
    ],
)
def test_calibrate_measures_for_an_objective_what_prune_does(
    model: Path, text: Path, tmp_path: Path, objective: str, recovery: str, numbers: list[str]
) -> None:
    """Neurons without a refit are put in order by the sensitivity, which is measured for that too. How many blocks are
    measured at once changes nothing."""
    asked = ["--text", str(text), "--objective", objective, *numbers]
    chosen = ["--heads", "6", "--solver", "lazy-greedy", "--statistics-memory", "0"]
    assert prune(model, tmp_path / "out", *asked, *chosen, "--recovery", recovery) == 0
    whole = HeadStats.load(tmp_path / "out" / "stats.safetensors")
    ordering = {"sensitivity"} if "both" in numbers else set[str]()
    found = ObjectiveName(objective).needs | {"salience"} | ordering
    assert whole.statistics.keys() == (found if "sensitivity" in found else found | ALWAYS)
    stage = calibrated(model, tmp_path, *asked)
    assert stage.statistics.keys() == whole.statistics.keys()
    for name, statistic in stage.statistics.items():
        theirs = whole.statistics[name].arrays()
        for part, array in statistic.arrays().items():
            np.testing.assert_array_equal(array, theirs[part], err_msg=f"{name}/{part}")


def test_a_number_that_is_given_asks_for_what_it_is_about(
    model: Path, text: Path, tmp_path: Path
) -> None:
    usual = ALWAYS | {"gauss_newton"}
    given = ["--text", str(text)]
    assert calibrated(model, tmp_path, *given).statistics.keys() == usual
    more = calibrated(model, tmp_path, *given, "--divergence-examples", "2")
    assert more.statistics.keys() == usual | {"divergence"} and more.divergence is not None
    assert more.divergence.count == 2
    weighed = calibrated(model, tmp_path, *given, "--sensitivity-examples", "3")
    assert weighed.statistics.keys() == usual | {"sensitivity"}
    assert {entry.examples for entry in weighed.sensitivity} == {3}
    none = calibrated(model, tmp_path, *given, "--gradient-examples", "0")
    assert none.statistics.keys() == usual and none.salience.count == 0


def test_objectives_that_are_named_together(model: Path, text: Path, tmp_path: Path) -> None:
    both = ["--objective", "explained-variance", "--objective", "facility-location"]
    found = calibrated(model, tmp_path, "--text", str(text), *both)
    assert found.statistics.keys() == ALWAYS | {"divergence"}


def test_nothing_is_not_enough_for_an_objective(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = ["--text", str(text), "--objective", "gauss-newton", "--gradient-examples", "0"]
    said = "`--gradient-examples` is 0, and gauss-newton is made from what it is about"
    refused(capsys, 2, said, run=lambda: main(["calibrate", str(model), *none]))
    refused(capsys, 2, said, run=lambda: prune(model, tmp_path / "o", *none, "--heads", "6"))
