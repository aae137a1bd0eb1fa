"""Errors of the library as the command line tells them."""

from __future__ import annotations

import pytest
from records_by_hand import make_stats

from cahp_opt.cli import main
from cahp_opt.cli.option_words import as_options

COMMANDS = {
    "prune": {
        "time_limit": "--time-limit",
        "weighting": "--weighting",
        "Weighting": "--weighting",
        "feed_forward": "--feed-forward",
        "overwrite": "--overwrite",
        "solver": "--solver",
        "units": "--units",
        "heads": "--heads",
    },
    "select": {"stats": "--stats", "solver": "--solver"},
    "calibrate": {
        "sensitivity_examples": "--sensitivity-examples",
        "output": "--output",
        "units": "--units",
    },
}


@pytest.mark.parametrize(
    ("command", "python", "told"),
    [
        ("prune", "`time_limit` must be seconds", "`--time-limit` must be seconds"),
        ("prune", "pass `weighting=Weighting.EQUAL`.", "pass `--weighting equal`."),
        ("prune", "or take `Weighting.EQUAL`.", "or take `--weighting equal`."),
        ("prune", "with `feed_forward=False`, or", "with `--no-feed-forward`, or"),
        ("prune", "pass `overwrite=True`", "pass `--overwrite`"),
        ("prune", "use `LazyGreedy()`", "use `--solver lazy-greedy`"),
        ("prune", "`dense` holds NaN", "the unpruned model holds NaN"),
        (
            "select",
            "`stats` has none; calibrate with `sensitivity_examples`.",
            "`--stats` has none; calibrate with `--sensitivity-examples` of `cahp calibrate`.",
        ),
        ("calibrate", "with `sensitivity_examples=9`", "with `--sensitivity-examples 9`"),
        ("prune", "`model` and `--heads 3` and `stats`", "`model` and `--heads 3` and `stats`"),
        (
            "prune",
            "is unknown; pass `fidelity=ClassLogits()`, `Regression()` or your own `Fidelity`.",
            "is unknown; the functions of `cahp_opt.torch` take a `fidelity` of your own.",
        ),
        ("prune", "`units` of at most 3 cannot", "`--heads` of at most 3 cannot"),
        ("calibrate", "`units` of at most 3 cannot", "`units` of at most 3 cannot"),
        ("prune", "pass `time_limit=0.5`", "pass `--time-limit 0.5`"),
        (None, "`time_limit` stays", "`time_limit` stays"),
    ],
)
def test_arguments_become_options(command: str | None, python: str, told: str) -> None:
    assert as_options(python, command, COMMANDS) == told


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--objective", "explained-output"], ["`--stats`", "`--sensitivity-examples`"]),
        (["--objective", "facility-location"], ["`--divergence-examples`"]),
        (["--objective", "complementarity"], ["`--signature-size 32` of `cahp calibrate`"]),
        (["--objective", "gauss-newton"], ["`--gradient-examples` of `cahp calibrate`"]),
        (["--time-limit", "-1"], ["`--time-limit`"]),
        (["--minimum", "9"], ["`--minimum`"]),
        (["--minimum", "2"], ["`--heads` of at most 3 cannot be met"]),
        (
            ["--objective", "facility-location", "--solver", "dynamic-program"],
            ["`--solver dynamic-program`", "`--solver lazy-greedy`"],
        ),
    ],
)
def test_errors_of_records_name_options(
    options: list[str],
    parts: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path_factory.mktemp("records")
    left_out = ("divergence", "signatures", "sensitivity", "gauss_newton", "fisher")
    bare = make_stats(model="Model/1/2").without(*left_out)
    bare.save(folder / "s.safetensors")
    given = ["select", "--stats", str(folder / "s.safetensors"), "--heads", "3"]
    assert main([*given, "--output", str(folder / "o.json"), *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    (told,) = [line for line in lines if not line.startswith("note: ")]
    assert all(part in told for part in parts), told
