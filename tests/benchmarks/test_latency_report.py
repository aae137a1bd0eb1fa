"""The page and the pictures of measured latency, from results that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.latency import pictures, report, run
from benchmarks.pages import stale

SVG = "{http://www.w3.org/2000/svg}"


def case(execution: str, ratios: list[float], curve: list[float], spread: float) -> dict[str, Any]:
    """A case of two blocks whose predictions are so many times what was measured."""
    dense = 1 + 2 * curve[-1]
    rows: list[dict[str, Any]] = []
    for count, ratio in enumerate(ratios):
        predicted = 1 + 2 * curve[count]
        rows.append(
            {
                "counts": [count, count],
                "predicted": predicted,
                "measured": 2 * predicted / ratio,  # the machine was half as fast
                "dense": 2 * dense,
                "spread": spread,
                "error": ratio / 2 - 1,
                "relative_error": ratio - 1,
                "within_spread": abs(ratio - 1) <= spread,
            }
        )
    return {
        "model": "gpt2",
        "phase": "prefill",
        "execution": execution,
        "dtype": "bfloat16",
        "outcome": "measured",
        "unit": "head",
        "batch": 32,
        "length": 128,
        "table": {
            "dense": dense,
            "floor": 1 + 2 * min(curve),
            "kinds": [
                {"blocks": 1, "first": "odd", "seconds": [9.0, 9.0, 9.0, 9.0]},
                {"blocks": 2, "first": "usual", "seconds": curve},
            ],
        },
        "sets": rows,
        "summary": run.summary(rows),
    }


@pytest.fixture
def record() -> dict[str, Any]:
    decode = {"model": "gpt2", "phase": "decode", "execution": "eager"}
    return {
        "provenance": {
            "device": "A <fast> GPU",
            "driver": "1.2",
            "cuda": "13.0",
            "versions": {"torch": "2.11.0", "transformers": "5.17.0"},
            "python": "3.12.3",
            "threads": 1,
            "date": "2026-11-27",
        },
        "left_out": [{"model": "mine", "phase": "prefill", "execution": "eager"}, decode],
        "cases": [
            case("cuda_graph", [1.0, 1.02, 0.99], [0.1, 0.1, 0.4, 0.5], 0.015),
            case("eager", [1.0, 1.2, 0.8], [0.0, 0.01, 0.01, 0.01], 0.3),
            {**decode, "dtype": "bfloat16", "outcome": "failed", "why": "it is\n<gone>"},
        ],
    }


def test_the_page_tells_every_case(record: dict[str, Any]) -> None:
    told = report.page({"gpu": record})
    first = "| gpt2 | prefill | CUDA graph | 32 x 128 | 2000.00 | 60 | 1.00 / 1.80 / 2.00 | "
    assert f"{first}50.00 | 1.50 | 2 of 3 |" in told
    assert "error up to 3 %: 1 of 2 cases. Larger: gpt2 prefill eager." in told
    assert "(floor of at least 95 %): gpt2 prefill eager." in told
    assert "(median spread above 10 %), so errors mean little: gpt2 prefill eager." in told
    assert "Failed: gpt2 decode eager (it is &lt;gone>)." in told
    (missing,) = (row for row in told.splitlines() if row.startswith("- Not measured"))
    assert "mine prefill eager" in missing and "gpt2 decode CUDA graph" in missing
    assert "gpt2 prefill" not in missing and "gpt2 decode eager" not in missing
    assert "driver 1.2, CUDA 13.0, torch 2.11.0" in told and "1 CPU thread, bfloat16" in told


def test_a_processor_has_no_driver(record: dict[str, Any]) -> None:
    record["provenance"] |= {"driver": None, "cuda": None}
    told = report.page({"cpu": record})
    assert "\n\ntorch 2.11.0, " in told and "driver" not in told and "CUDA 13" not in told
    (missing,) = (row for row in told.splitlines() if row.startswith("- Not measured"))
    assert "bert-base prefill eager" in missing and "CUDA graph" not in missing


def groups(picture: str) -> list[list[tuple[float, float]]]:
    """The places of all markers, group by group."""
    tree = ElementTree.fromstring(picture)
    return [
        [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in group.iter(f"{SVG}circle")]
        for group in tree.iter(f"{SVG}g")
        if "transform" not in group.attrib
    ]


def test_blocks_are_drawn_relative_to_their_full_count(record: dict[str, Any]) -> None:
    above, below, *rest = groups(pictures.blocks(record))
    heights = [y for _, y in above]
    full, step = heights[-1], heights[2] - heights[3]
    assert len(rest) == 2 and len(above) == 4 and len(below) == 3
    assert heights[0] == heights[1]  # the usual block costs 0.1, 0.1, 0.4, 0.5
    assert heights[1] - full == pytest.approx(4 * step, abs=0.3)
    free, dear, cheap = (y for _, y in below)
    assert free - dear == pytest.approx(3 * (free - cheap), abs=0.3)


def test_predictions_are_drawn_around_the_diagonal(record: dict[str, Any]) -> None:
    graph, eager = groups(pictures.predictions(record))
    assert len(graph) == len(eager) == 3
    across, up = zip(*graph, strict=True)
    exact, high, low = (x + y for x, y in zip(across, up, strict=True))
    assert low > exact > high  # y grows downwards: a prediction that is too high lies above


def test_pictures_of_nothing(record: dict[str, Any]) -> None:
    record["cases"] = record["cases"][2:]
    made = report.files({"gpu": record})
    assert all(not groups(text) for name, text in made.items() if name.endswith(".svg"))
    assert "0 of 0 cases" in made["latency.md"]


def test_what_is_stale_is_named(record: dict[str, Any], tmp_path: Path) -> None:
    wanted = report.files({"gpu": record})
    assert sorted(stale(wanted, tmp_path, report.PICTURES)) == sorted(wanted)
    for name, content in wanted.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert stale(wanted, tmp_path, report.PICTURES) == []
    (tmp_path / "latency-old-blocks.svg").write_text("<svg/>", encoding="utf-8")
    record["cases"][0]["sets"][0]["measured"] *= 1.1
    found = stale(report.files({"gpu": record}), tmp_path, report.PICTURES)
    assert found == ["latency-old-blocks.svg", "latency-gpu-predictions.svg"]
