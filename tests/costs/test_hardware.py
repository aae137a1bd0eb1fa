"""The record of a device's peak rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cahp_opt import Hardware, RecordError

SERVER = Hardware(
    name="a server",
    flops_per_second={"float32": 6e13, "bfloat16": 9e14},
    bytes_per_second=3e12,
    launch_seconds=5e-6,
    runs_ahead=True,
)


def test_survives_its_file(tmp_path: Path) -> None:
    SERVER.save(tmp_path / "hardware.json")
    assert Hardware.load(tmp_path / "hardware.json") == SERVER


def test_cannot_be_changed_from_outside() -> None:
    rates = {"float32": 1.0}
    made = replace(SERVER, flops_per_second=rates)
    rates["float32"] = 2.0
    assert made.flops_per_second["float32"] == 1.0


@pytest.mark.parametrize("wrong", (0.0, -1.0, float("nan"), float("inf")))
@pytest.mark.parametrize("name", ("bytes_per_second", "launch_seconds", "flops_per_second"))
def test_wrong_numbers(name: str, wrong: float) -> None:
    value: Any = {"float32": wrong} if name == "flops_per_second" else wrong
    with pytest.raises(ValueError, match=f"`{name}.*` must be finite and above 0, got {wrong}"):
        replace(SERVER, **{name: value})


def test_a_text_is_no_yes() -> None:
    wrong: Any = "no"
    with pytest.raises(ValueError, match="`runs_ahead` must be true or false, got 'no'"):
        replace(SERVER, runs_ahead=wrong)


def test_nothing_known() -> None:
    with pytest.raises(ValueError, match="`name` is empty"):
        replace(SERVER, name="")
    with pytest.raises(ValueError, match="`flops_per_second` is empty"):
        replace(SERVER, flops_per_second={})


def test_files_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "hardware.json"
    path.write_text('{"kind": "cahp-hardware", "version": 1, "name": "x"}', encoding="utf-8")
    with pytest.raises(RecordError, match="it lacks 'flops_per_second'"):
        Hardware.load(path)
    path.write_text('{"kind": "cahp-latency", "version": 1}', encoding="utf-8")
    with pytest.raises(RecordError, match="'cahp-hardware' was expected"):
        Hardware.load(path)
