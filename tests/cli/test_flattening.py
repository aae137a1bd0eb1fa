"""Commands that take records: what the terminal offers for their fields, and what they get."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from cahp_opt.cli import commands
from cahp_opt.cli.flattening import flags_of, flattened
from cahp_opt.cli.unused_options import Given
from cahp_opt.runs import budget_options, plan, timing_options
from cahp_opt.runs.options import option, option_of, same
from cahp_opt.runs.recovery import Weighting

COMMANDS = (
    *("prune", "calibrate", "latency", "hardware", "select", "compare", "apply", "export", "demo"),
)


@dataclass(frozen=True)
class Inner:
    topic: ClassVar[str] = "Inside"

    width: int = field(default=3, metadata=option("--width", min=1, help="Width."))


@dataclass(frozen=True)
class Outer:
    topic: ClassVar[str] = "Outside"

    place: Path = field(metadata=option("PLACE", help="Place."))
    name: tuple[str, ...] = field(default=(), metadata=option("--name", help="Names."))
    inner: Inner = Inner()
    how: Weighting = field(default=Weighting.EQUAL, metadata=option("--how", help="How."))
    loud: bool = field(default=False, metadata=option("--loud/--quiet", help="Loud."))


@dataclass(frozen=True)
class Other:
    topic: ClassVar[str] = "Outside"

    depth: int = same(Inner, "width")


def run(*arguments: str) -> tuple[list[Any], str]:
    found: list[Any] = []

    def command(given: Given, outer: Outer) -> None:
        """One line
        and the next."""
        found.extend([outer, given])

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(flattened(command))
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80", "TERM": "dumb"})
    return found, result.output


def test_a_command_gets_its_records_and_what_was_given() -> None:
    (outer, given), _ = run("here")
    assert outer == Outer(Path("here"))
    assert given.explicit == {"place"}
    (outer, given), _ = run(
        "here", "--name", "a", "--name", "b", "--width", "7", "--how", "sensitivity", "--loud"
    )
    assert outer == Outer(Path("here"), ("a", "b"), Inner(7), Weighting.SENSITIVITY, True)
    assert given.explicit == {"place", "name", "width", "how", "loud"}
    assert given.flags["loud"] == "--loud" and given.values["how"] is Weighting.SENSITIVITY


@pytest.mark.parametrize("wrong", [(), ("here", "--width", "0"), ("here", "--how", "other")])
def test_what_a_field_does_not_take_is_refused(wrong: tuple[str, ...]) -> None:
    assert not run(*wrong)[0]


def test_the_help_has_a_panel_for_each_topic() -> None:
    found, text = run("--help")
    assert not found and "One line and the next." in text
    inside = text[text.index(" Inside ") :]
    assert "--width" in inside and "[default: 3]" in inside
    outside = text[text.index(" Outside ") : text.index(" Inside ")]
    assert "--name" in outside and "--loud" in outside
    assert "One of auto, sensitivity, equal." in re.sub(r"[\s│]+", " ", outside)


def test_the_flags_of_a_command() -> None:
    def command(given: Given, outer: Outer) -> None: ...

    assert flags_of(command) == {
        "name": "--name",
        "width": "--width",
        "how": "--how",
        "Weighting": "--how",
        "loud": "--loud",
    }


def test_a_field_like_another_has_its_default_and_its_help() -> None:
    (depth,) = fields(Other)
    assert Other().depth == 3 and option_of(depth.metadata) == option_of(fields(Inner)[0].metadata)


def test_every_field_of_the_options_is_an_option_or_a_record_of_them() -> None:
    rooms = {**vars(plan), **vars(budget_options), **vars(timing_options)}
    for name, kind in rooms.items():
        if isinstance(kind, type) and hasattr(kind, "topic"):
            types = get_type_hints(kind)
            for f in fields(kind):
                told = option_of(f.metadata)
                assert (told is not None) != is_dataclass(types[f.name]), f"{name}.{f.name}"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_can_be_read_at_80_columns(command: str) -> None:
    result = CliRunner().invoke(
        commands.app, [command, "--help"], env={"COLUMNS": "80", "TERM": "dumb"}
    )
    lines = result.output.splitlines()
    assert result.exit_code == 0 and max(map(len, lines)) <= 80
    # A value's kind that is cut in the middle of a word, and help in a column of a few letters.
    assert "…" not in result.output and "<str" not in result.output.replace("<str>", "")
    helps = [line for line in lines if re.match(r"│ +\S+ *│$", line)]
    assert len(helps) < 0.2 * len(lines), helps


def test_the_topics_of_prune() -> None:
    result = CliRunner().invoke(
        commands.app, ["prune", "--help"], env={"COLUMNS": "80", "TERM": "dumb"}
    )
    topics = re.findall(r"╭─ (.+?) ─", result.output)
    assert topics == [
        *("Arguments", "Options", "Texts", "Budget", "Timing", "Selection", "Statistics"),
        *("Recovery", "Output", "Units", "Model and machine"),
    ]
