"""What is kept of heads and of neurons, as it is shown and saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.picture import DROPPED, KEPT, draw
from cahp_opt import (
    Block,
    Budget,
    Check,
    Frontier,
    HeadSpace,
    Problem,
    Round,
    Selection,
    Unit,
    compare,
    frontier,
)
from cahp_opt.cli.summary import LINES, summary
from cahp_opt.files.records import read_json, write_json
from cahp_opt.objectives import Modular
from cahp_opt.runs.report import Report
from cahp_opt.solvers import DynamicProgram, Greedy, LazyGreedy
from cahp_opt.space import Portion

GROUP = Unit.NEURON_GROUP
ORDER = tuple(np.random.default_rng(0).permutation(1536).tolist())
SPACE = HeadSpace(
    (
        Block("layer.0.attention", 12),
        Block("layer.0.mlp", 12, GROUP, ORDER),
        Block("layer.1.attention", 4, Unit.KV_GROUP),
        Block("layer.1.mlp", 12, GROUP, ORDER[::-1]),
    )
)
CHOSEN = Selection.from_kept(
    SPACE,
    SPACE.join(
        {
            "layer.0.attention": [0, 5],
            "layer.0.mlp": [0, 1, 2, 3, 5],
            "layer.1.attention": [0, 1, 2, 3],
        }
    ),
)


def test_portions_are_heads_and_neurons() -> None:
    portions = SPACE.portions(CHOSEN.counts)
    assert portions == [(2, 12, "heads"), (640, 1536, "neurons"), (4, 4, "key/value groups"),
                        (0, 1536, "neurons")]  # fmt: skip
    assert SPACE.totals(CHOSEN.counts) == [(6, 16, "units"), (640, 3072, "neurons")]
    without = SPACE.unordered()
    assert without.portions(CHOSEN.counts)[1] == Portion(5, 12, "neuron groups")
    assert without.totals(CHOSEN.counts)[1] == Portion(5, 24, "neuron groups")
    assert HeadSpace.uniform(2, 3).totals([1, 2]) == [(3, 6, "heads")]


def test_a_selection_shows_both() -> None:
    lines = str(CHOSEN).splitlines()
    assert lines[0].split() == ["layer.0.attention", *["2", "of", "12", "heads", "0", "5"]]
    assert lines[1].split() == [
        "layer.0.mlp",
        *["640", "of", "1536", "neurons", "groups", "0-3", "5"],
    ]
    assert lines[2].split() == [
        "layer.1.attention",
        *["4", "of", "4", "key/value", "groups", "0", "1", "2", "3"],
    ]
    assert lines[3].split() == ["layer.1.mlp", *["0", "of", "1536", "neurons"]]
    assert len({line.index(" of ") for line in lines[:4]}) == 1


def report() -> Report:
    check = Check(
        predicted=0.02, measured=0.021, dense_predicted=0.03, dense_measured=0.03, limit=0.021
    )
    rounds = (Round(counts=tuple(CHOSEN.counts.tolist()), goals={"latency": check}),)
    chosen = Selection(SPACE, CHOSEN.kept, 3.0, 3.0, rounds=rounds)
    return Report("tiny", chosen, {}, {}, {"latency": check}, None, (100, 60), 0.0)


def test_the_summary_shows_both() -> None:
    first, *others = summary(report(), "folder")
    assert first == "kept      6 of 16 units and 640 of 3,072 neurons; 60.0 % of the weights"
    assert any("folder: report.html" in line for line in others)


def test_the_summary_is_one_screen_whatever_there_is_to_say() -> None:
    check = report().goals["latency"]
    many = {f"workload {i}": check for i in range(12)}
    notes = tuple(f"note {i} " + "word " * 30 for i in range(9))
    for crowded in (replace(report(), notes=notes), replace(report(), notes=notes, goals=many)):
        lines = summary(crowded, "folder")
        assert len(lines) <= LINES and all(len(line) <= 80 for line in lines)
        assert lines[-1].startswith("written   folder: report.html")
        assert any("notes in report.html" in line for line in lines)
    assert not any("... and" in line for line in summary(report(), "folder"))


def test_the_report_tells_neurons_and_leaves_orders_to_the_selection(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report().save(path)
    told = Report.read(path)["selection"]
    assert told["portions"]["layer.0.mlp"] == {"kept": 640, "of": 1536, "what": "neurons"}
    assert told["blocks"][1] == ["layer.0.mlp", 12, "neuron_group"]
    assert path.stat().st_size < 5000


def test_the_picture_shows_both() -> None:
    found = report()
    goal: dict[str, Any] = {"goals": {"latency": vars(found.goals["latency"])}}
    picture = draw(found.selection, goal, "tiny")
    assert "tiny: 6 of 16 units and 640 of 3,072 neurons kept" in picture
    assert "for 0.7 of the end-to-end time" in picture and "640 of 1,536<" in picture
    # Heads: 6 kept and 10 dropped. Neurons: two whole bars, and one part of a bar that is kept.
    assert picture.count(f'fill="{DROPPED}"') == 10 + 2
    assert picture.count(f'fill="{KEPT}"') == 6 + 1 + 1  # and the measured time
    assert "layer 1" in picture and "layer 2" not in picture


# -- files -----------------------------------------------------------------------------------------


@given(st.data())
def test_a_selection_of_both_kinds_survives_a_round_trip(data: st.DataObject) -> None:
    blocks = list[Block]()
    for b in range(data.draw(st.integers(1, 4))):
        units, width = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 3))
        order = data.draw(st.permutations(range(units * width))) if width else None
        unit = GROUP if width else data.draw(st.sampled_from(list(Unit)))
        blocks.append(Block(f"block {b}", units, unit, None if order is None else tuple(order)))
    space = HeadSpace(tuple(blocks))
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=space.n, max_size=space.n)))
    told = Selection.from_kept(space, kept).to_json()
    found = Selection.from_json(json.loads(json.dumps(told)))
    assert found.space == space and np.array_equal(found.kept, kept)


def test_orders_are_compact(tmp_path: Path) -> None:
    """At most six bytes per neuron: four digits, a comma and a blank."""
    path = tmp_path / "selection.json"
    CHOSEN.save(path)
    assert path.stat().st_size < 6 * 2 * len(ORDER) + 2000
    assert Selection.load(path).space == SPACE
    assert any(line.startswith('  "kept"') or "[0, 1, 2, 3, 5]" in line
               for line in path.read_text().splitlines())  # fmt: skip


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.sampled_from('[]{}"\\\n ,1a')),
        lambda inner: st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.sampled_from('[\n"k'), max_size=3), inner, max_size=3),
        max_leaves=12,
    )
)  # fmt: skip
def test_a_record_reads_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, x: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "record.json"
    write_json(path, "kind", 1, {"x": x})
    assert read_json(path, "kind", 1)["x"] == x


# -- studies ---------------------------------------------------------------------------------------


def test_a_frontier_over_the_neurons(tmp_path: Path) -> None:
    values = np.random.default_rng(1).random(SPACE.n)
    problem = Problem(Modular(values), Budget.neurons(SPACE, 0.5) & Budget.heads(SPACE, 7))
    limits = [768, 1536, 3072]
    found = frontier(problem, DynamicProgram(), limits, table="neurons")
    assert [s.costs["neurons"].value for s in found] == limits
    assert all(s.costs["attention units"].value == 7 for s in found)
    found.save(tmp_path / "frontier.json")
    assert Frontier.load(tmp_path / "frontier.json").selections[0].space == SPACE


def test_solvers_are_compared_over_both() -> None:
    values = np.random.default_rng(1).random(SPACE.n)
    problem = Problem(Modular(values), Budget.neurons(SPACE, 0.5) & Budget.heads(SPACE, 7))
    found = compare(problem, {"exact": DynamicProgram(), "one": Greedy(), "other": LazyGreedy()})
    assert not found.refuted and not any(row.refusal for row in found.rows)
    counts = np.array([row.counts for row in found.rows])
    assert (counts[:, ~SPACE.of_attention].sum(axis=1) == 12).all()
    assert (counts[:, SPACE.of_attention].sum(axis=1) == 7).all()
