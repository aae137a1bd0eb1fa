"""Options that cannot do anything beside the others: refused or noted, and silent where they do."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import typer
from records_by_hand import SPACE, make_stats, make_table

from cahp_opt import Budget, Problem
from cahp_opt.cli import app, main
from cahp_opt.cli.unused_options import _RULES, Given, UnusedOptionError
from cahp_opt.costs.prune import Prune
from cahp_opt.runs.measuring import DECIDED
from cahp_opt.runs.media import Medium
from cahp_opt.runs.names import ObjectiveName, SolverName
from cahp_opt.runs.recovery import Recovery

DEFAULTS: dict[str, Any] = {
    "text": Path("t"),
    "data": None,
    "images": None,
    "audio": None,
    "recovery": Recovery.REFIT,
    "held_out": 256,
    "workload": None,
    "objective": None,
    "latency": None,
    "heads": None,
    "estimate": None,
    "seeds": 1,
    "test_data": None,
}
FACTS: dict[str, Any] = {
    "table_times": False,
    "goals": ("0.8",),
    "latency_goals": ("0.8",),
    "prunes": Prune.BOTH,
    "solvers": (SolverName("tabu"),),
    "needs": frozenset().union(*DECIDED.values()),
    "medium": Medium.SOUND,
    "tokens": True,
    "recoveries": (Recovery.FINETUNE,),
}
NO_TEXT, NO_RECOVERY = {"text": None}, {"recovery": Recovery.NONE}
MASK_TUNING = {"recovery": Recovery.MASK_TUNING}
FINETUNE = {"recovery": Recovery.FINETUNE}
DRY = (SolverName("top-k"), SolverName("dynamic-program"))


def flags_of(command: str) -> dict[str, str]:
    group: Any = typer.main.get_command(app)
    return {parameter.name: parameter.opts[0] for parameter in group.commands[command].params}


_OF_MEDIA: list[tuple[str, dict[str, Any]]] = [
    ("max_length", {"tokens": False}),
    ("sequence_length", {"tokens": False}),
    ("max_seconds", {"medium": Medium.IMAGE}),
]
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any], bool]] = [
    # command, option, values beside which it does something, and nothing, whether that is refused
    ("study", "keep_sets", {"objective": ("salience",)}, {}, False),
    *(
        (command, option, FINETUNE, values, True)
        for command in ("prune", "apply")
        for option in ("epochs", "learning_rate")
        for values in ({}, NO_RECOVERY)
    ),
    *(
        (command, option, values, idle, True)
        for command in ("prune", "apply")
        for option in ("weighting", "feed_forward")
        for values, idle in (({}, NO_RECOVERY), (FINETUNE, MASK_TUNING))
    ),
    *(
        (command, option, {"data": "d"}, {}, True)
        for command in ("prune", "study", "calibrate", "apply")
        for option in (
            "text_column",
            "pair_column",
            "label_column",
            "messages_column",
            "subset",
            "split",
        )
    ),
    *(
        (command, option, {}, {"table_times": True}, True)
        for command in ("prune", "study")
        for option in ("workload", "execution", "latency_batch_size", "sequence_length")
    ),
    *(
        (command, option, {}, {"workload": ["decode:2x8"]}, True)
        for command, option in [
            ("prune", "latency_batch_size"),
            ("prune", "sequence_length"),
            ("study", "latency_batch_size"),
            ("study", "sequence_length"),
            ("latency", "latency_batch_size"),
            ("latency", "sequence_length"),
        ]
    ),
    *(
        (command, "neuron_group", {}, {"prunes": Prune.HEADS}, False)
        for command in ("prune", "study", "calibrate", "latency")
    ),
    *(
        (command, option, {}, idle, False)
        for option, idle in _OF_MEDIA
        for command in ("prune", "study", "calibrate", "apply", "latency")
        if option in flags_of(command)
    ),
    *(
        ("study", option, {}, {"recoveries": (Recovery.REFIT,)}, True)
        for option in ("epochs", "learning_rate")
    ),
    *(
        ("study", option, {}, {"recoveries": (Recovery.NONE, Recovery.MASK_TUNING)}, True)
        for option in ("weighting", "feed_forward")
    ),
    ("study", "held_out", {}, {"test_data": "d"}, False),
    ("study", "latency_table", {}, {"goals": ()}, False),
    ("prune", "rounds", {}, {"latency_goals": ()}, False),
    ("prune", "latency_table", {}, {"goals": ()}, False),
    ("prune", "time_limit", {}, {"solvers": DRY[:1]}, False),
    *(("prune", number, {}, {"needs": frozenset({"moments"})}, False) for number in DECIDED),
    *(
        ("latency", option, {}, {"estimate": Path("h")}, False)
        for option in ("repeats", "device", "threads")
    ),
    ("select", "latency_table", {}, {"goals": ()}, False),
    ("select", "recovery", {}, {"objective": ObjectiveName.SALIENCE}, False),
    ("select", "time_limit", {}, {"solvers": DRY[:1]}, False),
    ("select", "seed", {}, {"solvers": DRY}, False),
    ("compare", "latency_table", {}, {"heads": [3]}, False),
    ("compare", "latency_table", {"heads": [3], "latency": ["1"]}, {"heads": [3]}, False),
    ("compare", "time_limit", {"solvers": ("own:Solver",)}, {"solvers": DRY[:1]}, False),
    ("compare", "seeds", {"seeds": 1, "solvers": DRY}, {"seeds": 2, "solvers": DRY}, False),
    ("apply", "recovery", NO_RECOVERY, NO_TEXT, True),
    ("apply", "recovery", MASK_TUNING, {**MASK_TUNING, **NO_TEXT}, True),
    *((command, "stream_memory", {}, NO_RECOVERY, True) for command in ("prune", "apply")),
    ("apply", "stream_memory", {}, NO_TEXT, True),
    ("apply", "weighting", {}, NO_TEXT, True),
    ("apply", "feed_forward", {}, NO_TEXT, True),
    *(
        ("apply", option, {}, NO_TEXT, False)
        for option in (
            *("max_texts", "held_out", "max_length", "max_seconds", "batch_size", "pooling"),
            "seed",
        )
    ),
    ("apply", "max_texts", MASK_TUNING, NO_RECOVERY, False),
    ("apply", "text", NO_RECOVERY, {**NO_RECOVERY, "held_out": 0}, False),
]


def notes_of(command: str, option: str, changes: dict[str, Any]) -> list[str]:
    values = {**DEFAULTS, **{k: v for k, v in changes.items() if k not in FACTS}}
    given = Given(command, values, frozenset({option}), flags_of(command))
    facts = {**FACTS, **{k: v for k, v in changes.items() if k in FACTS}}
    return given.check() + given.check(**facts)


@pytest.mark.parametrize(("command", "option", "used", "idle", "refusal"), CASES)
def test_what_is_idle_is_told(
    command: str, option: str, used: dict[str, Any], idle: dict[str, Any], refusal: bool
) -> None:
    assert not notes_of(command, option, used)
    start = f"`{flags_of(command)[option]}` does nothing here: "
    if refusal:
        with pytest.raises(UnusedOptionError, match=start):
            notes_of(command, option, idle)
    else:
        assert [note.startswith(start) for note in notes_of(command, option, idle)] == [True]


def test_every_rule_is_tried_and_names_options_that_there_are() -> None:
    tried = {(command, option) for command, option, *_ in CASES}
    for command, rules in _RULES.items():
        known = flags_of(command).keys()
        for rule in rules:
            assert set(rule.options) <= known
            others = {("apply", source) for source in ("data", "images", "audio")}
            assert {(command, option) for option in rule.options} - others <= tried


def test_defaults_are_never_told() -> None:
    for command in _RULES:
        given = Given(command, {**DEFAULTS, "text": None}, frozenset(), {})
        assert (
            given.check()
            == given.check(**{**FACTS, "goals": (), "solvers": DRY, "needs": frozenset()})
            == []
        )


def test_the_command_line_tells_what_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stats, table = tmp_path / "s.safetensors", tmp_path / "l.json"
    make_stats(model="Model/1/2").save(stats)
    make_table().save(table)
    out = ["--output", str(tmp_path / "o.json")]
    select = ["select", "--stats", str(stats), *out, "--heads", "3"]
    assert main([*select, "--solver", "top-k"]) == 0
    assert "does nothing here" not in capsys.readouterr().err
    idle = ["--seed", "0", "--time-limit", "9", "--latency-table", str(table)]
    assert main([*select, "--solver", "top-k", *idle, "--objective", "salience"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "does nothing here" in line]
    assert [line.split("` does")[0] for line in told] == [
        "note: `--latency-table", "note: `--time-limit", "note: `--seed"
    ]  # fmt: skip
    apply = ["apply", "MODEL", "--selection", str(tmp_path / "o.json")]
    assert main([*apply, "--recovery", "refit", "--epochs", "2"]) == 2
    assert "`--recovery` does nothing here" in capsys.readouterr().err
    assert main(["prune", "MODEL", "--text", "t", "--epochs", "2", "--learning-rate", "1"]) == 2
    assert "`--epochs` and `--learning-rate` do nothing here" in capsys.readouterr().err


class Touched(Exception):
    """Something was looked at that is said to be ignored."""


class Untouchable(float):
    """A time, or a source of random numbers, that tells when anybody looks at it."""

    def _touched(self, *args: object) -> NoReturn:
        raise Touched

    __lt__ = __le__ = __gt__ = __ge__ = __sub__ = __rsub__ = __add__ = __radd__ = _touched
    __mul__ = __rmul__ = __float__ = _touched

    def __getattr__(self, name: str) -> NoReturn:
        raise Touched


def touches(solver: SolverName, **given: Any) -> bool:
    """Whether the solver looks at what is untouchable, for any objective."""
    stats = make_stats(model="Model/1/2")
    for name in ObjectiveName:
        problem = Problem(name.build(stats), Budget.heads(SPACE, 3, minimum=1))
        asked = {"deadline": math.inf, "rng": np.random.default_rng(0), **given}
        try:
            solver.build().solve(problem, **asked)
        except Touched:
            return True
        except ValueError:  # not for this objective
            continue
    return False


@pytest.mark.parametrize("solver", SolverName)
def test_solvers_say_what_they_look_at(solver: SolverName) -> None:
    assert touches(solver, rng=Untouchable(0)) == solver.seeded or solver.value == "auto"
    touched = touches(solver, deadline=Untouchable(time.monotonic() + 60))
    assert touched == solver.timed or solver.value in ("auto", "dynamic-program")


def test_numbers_beyond_the_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "t.txt"
    text.write_text("one\ntwo\nthree\nfour\nfive\n", encoding="utf-8")
    given = ["calibrate", str(tmp_path / "nowhere"), "--text", str(text), "--held-out", "1"]
    assert main([*given, "--gradient-examples", "5", "--sensitivity-examples", "4"]) == 2
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    assert len(notes) == 1 and "`--gradient-examples 5` is more than the 4 texts" in notes[0]
