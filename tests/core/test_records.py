"""Records: checked at the door, whole or not at all, and the same after a round trip."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from records_by_hand import SPACE, make_stats, make_table
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from cahp_opt import (
    Block,
    Check,
    Cost,
    HeadSpace,
    HeadStats,
    LatencyTable,
    Moments,
    Proposal,
    RecordError,
    Round,
    Selection,
    Signatures,
    Status,
    Total,
)
from cahp_opt.arrays import finite
from cahp_opt.files.records import whole_file
from cahp_opt.stats.pooling import Pooling
from cahp_opt.stats.sensitivity import Sensitivity

# -- HeadSpace -------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_split_and_join_are_inverse(units: list[int], seed: int) -> None:
    space = HeadSpace(tuple(Block(f"b{i}", u) for i, u in enumerate(units)))
    kept = np.random.default_rng(seed).random(space.n) < 0.5
    assert np.array_equal(space.join(space.split(kept)), kept)
    assert space.counts(kept).sum() == kept.sum() and space.n == sum(units)
    assert [len(ids) for ids in space.split(kept).values()] == space.counts(kept).tolist()
    assert HeadSpace.from_json(json.loads(json.dumps(space.to_json()))) == space


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ((), "empty"),
        ((("a", 1), ("a", 2)), "two blocks"),
        ((("a", 0),), "at least 1"),
        ((("a", 1.5),), "whole number"),
        ((("a", math.inf),), "whole number"),
        ((("a", None),), "whole number"),
        ((("", 2),), "non-empty name"),
        ((("a", 2, "tail"),), "tail"),
    ],
)
def test_bad_spaces_are_refused(blocks: tuple[Block, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        HeadSpace(blocks)


@pytest.mark.parametrize("kept", [np.ones(4, dtype=bool), np.ones(5), [1, 0, 1, 0, 1]])
def test_a_keep_set_is_boolean_and_complete(kept: object) -> None:
    with pytest.raises(ValueError, match=r"boolean array of shape \[5\]"):
        SPACE.counts(kept)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "heads", [{"third": [0]}, {"first": [3]}, {"first": [0, 0]}, {"first": [0.5]}]
)
def test_join_refuses_unknown_units(heads: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match="`heads"):
        SPACE.join(heads)


# -- LatencyTable ----------------------------------------------------------------------------------


def test_latency_predicts_and_survives_a_round_trip(tmp_path: Path) -> None:
    table = make_table()
    assert math.isclose(table.predict([2, 1]), 0.5 + 0.2 + 0.2)
    assert math.isclose(table.dense, 0.5 + 0.15 + 0.4)
    assert math.isclose(table.floor, 0.5 + 0 + 0.1)
    table.save(tmp_path / "latency.json")
    again = LatencyTable.load(tmp_path / "latency.json")
    assert again.space == table.space and again.fixed == table.fixed
    assert again.provenance == table.provenance
    assert all(np.array_equal(a, b) for a, b in zip(again.seconds, table.seconds, strict=True))


@pytest.mark.parametrize(
    ("fixed", "seconds", "words"),
    [
        (-1, make_table().seconds, "`fixed`"),
        (math.nan, make_table().seconds, "`fixed`"),
        (0.5, make_table().seconds[:1], "one array per block"),
        (0.5, (np.zeros(3), np.zeros(3)), "4 entries"),
        (0.5, (np.array([0, 1, 2, math.nan]), np.zeros(3)), "finite"),
        (0.5, (np.array([0, 1, 2, -3.0]), np.zeros(3)), "at least 0"),
    ],
)
def test_bad_times_are_refused(fixed: float, seconds: tuple[np.ndarray, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LatencyTable(SPACE, fixed, seconds)


@pytest.mark.parametrize("counts", [[4, 0], [-1, 0], [1], [1.0, 1.0]])
def test_predict_refuses_impossible_counts(counts: list[float]) -> None:
    with pytest.raises(ValueError, match="`counts`"):
        make_table().predict(counts)


# -- HeadStats -------------------------------------------------------------------------------------


def test_stats_survive_a_round_trip(tmp_path: Path) -> None:
    stats = make_stats()
    stats.save(tmp_path / "stats.safetensors")
    again = HeadStats.load(tmp_path / "stats.safetensors")
    assert (again.space, again.model, again.examples, again.tokens) == (SPACE, "model", 20, 200)
    assert list(again.gauss_newton) == [0.5, 1.0] and list(again.fisher) == [0.25, 1.0]
    assert again.divergence is not None and stats.divergence is not None
    assert again.signatures is not None and stats.signatures is not None
    for part in ("counts", "mean", "squares"):
        mine, theirs = getattr(again.signatures, part), getattr(stats.signatures, part)
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs)
    for a, b in [
        (again.salience, stats.salience),
        (again.gauss_newton[0.5], stats.gauss_newton[0.5]),
        (again.fisher[0.25], stats.fisher[0.25]),
        (again.fisher[1.0], stats.fisher[1.0]),
        (again.divergence, stats.divergence),
    ]:
        assert a.count == b.count and np.array_equal(a.sum, b.sum)
    for mine, theirs in zip(again.moments, stats.moments, strict=True):
        assert mine.count == theirs.count
        assert np.array_equal(mine.scatter, theirs.scatter) and np.array_equal(mine.sum, theirs.sum)
    for own, other in zip(again.sensitivity, stats.sensitivity, strict=True):
        assert (own.weight, own.examples) == (other.weight, other.examples)
        for part in ("sum", "scatter", "metric"):
            assert np.array_equal(getattr(own, part), getattr(other, part))


def test_statistics_of_a_file_are_read_where_they_are_used(tmp_path: Path) -> None:
    """No copy is made of them, and other readers of the format read the same."""
    stats, file = make_stats(), tmp_path / "stats.safetensors"
    stats.save(file)
    arrays = {n: a for n, a in HeadStats.load(file).moments[1].arrays().items() if n != "count"}
    assert not any(array.flags.owndata or array.flags.writeable for array in arrays.values())
    reader: Any = safe_open(file, framework="numpy")
    theirs, metadata = load_file(file), reader.metadata()
    for name, array in arrays.items():
        assert np.array_equal(theirs[f"moments/1/{name}"], array)
    save_file(theirs, tmp_path / "theirs.safetensors", metadata)
    assert (tmp_path / "theirs.safetensors").stat().st_size == file.stat().st_size


def test_an_array_of_a_file_that_may_be_written_to_is_copied(tmp_path: Path) -> None:
    file = tmp_path / "numbers"
    file.write_bytes(bytes(24))
    shared = np.memmap(file, np.float64, "r+")
    seen = shared.view()
    seen.flags.writeable = False
    assert finite(seen, "numbers").flags.owndata
    assert finite(np.memmap(file, np.float64, "r"), "numbers").base is not None
    assert finite(np.frombuffer(bytearray(24)), "numbers").flags.owndata


def test_stats_add_up() -> None:
    one, two = make_stats(1), make_stats(2)
    both = one + two
    assert both.examples == 40 and both.salience.count == 16
    np.testing.assert_allclose(both.salience.sum, one.salience.sum + two.salience.sum)
    np.testing.assert_allclose(both.fisher[0.25].sum, one.fisher[0.25].sum + two.fisher[0.25].sum)
    assert both.fisher[0.25].count == 16
    assert np.array_equal(both.moments[1].readout, one.moments[1].readout)
    pooled, parts = both.sensitivity[1], (one.sensitivity[1], two.sensitivity[1])
    assert pooled.weight == 61 and pooled.examples == 40
    for part in ("sum", "metric"):
        np.testing.assert_allclose(getattr(pooled, part), sum(getattr(x, part) for x in parts))
    with pytest.raises(ValueError, match="two different models.*weights differ"):
        _ = one + make_stats(1, "another")


def test_stats_of_some_units_are_those_units_in_all_of_them() -> None:
    stats = make_stats()
    part = stats.restricted(np.array([True, False, True, False, True]))
    own = [0, 2, 4]
    assert [(b.name, b.units) for b in part.space.blocks] == [("first", 2), ("second", 1)]
    np.testing.assert_array_equal(part.salience.sum, stats.salience.sum[own])
    for mine, whole in (
        (part.gauss_newton[0.5], stats.gauss_newton[0.5]),
        (part.fisher[0.25], stats.fisher[0.25]),
        (part.divergence, stats.divergence),
    ):
        assert mine is not None and whole is not None and mine.count == whole.count
        np.testing.assert_array_equal(mine.sum, whole.sum[np.ix_(own, own)])
    columns = [0, 1, 4, 5]  # two of each unit
    scatter = stats.moments[0].scatter[np.ix_(columns, columns)]
    np.testing.assert_array_equal(part.moments[0].scatter, scatter)
    np.testing.assert_array_equal(part.moments[1].sum, stats.moments[1].sum[[2, 3]])
    assert part.moments[0].readout.shape == (4, 4) and part.moments[0].count == 20
    assert part.signatures is not None and stats.signatures is not None
    np.testing.assert_array_equal(part.signatures.mean, stats.signatures.mean[:, own])
    assert (part.examples, part.tokens, part.model) == (20, 200, "model")

    second = stats.without("moments", "divergence", "signatures").restricted(
        np.array([False, False, False, True, True])
    )
    assert [b.name for b in second.space.blocks] == ["second"] and not second.moments
    with pytest.raises(ValueError, match="at least one unit"):
        stats.restricted(np.zeros(5, dtype=bool))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"salience": Total(np.zeros(4), 1)}, r"`salience` must have shape \[5\]"),
        ({"gauss_newton": {0.5: Total(np.zeros((4, 4)), 1)}}, "gauss_newton"),
        ({"gauss_newton": {1.5: Total(np.zeros((5, 5)), 1)}}, "density 1.5"),
        ({"fisher": {0.5: Total(np.zeros((4, 4)), 1)}}, "fisher"),
        ({"fisher": {0.0: Total(np.zeros((5, 5)), 1)}}, "`fisher` has the density 0.0"),
        ({"moments": make_stats().moments[:1]}, "one entry per block"),
        ({"moments": make_stats().moments[::-1]}, "3 units cannot share"),
        (
            {"sensitivity": make_stats().sensitivity[:1]},
            "`sensitivity` must have one entry per block",
        ),
        ({"sensitivity": make_stats().sensitivity[::-1]}, "3 units cannot share"),
        ({"divergence": Total(np.zeros(5), 1)}, "divergence"),
        ({"signatures": Signatures(np.array([1]), *np.zeros((2, 1, 4, 2, 2)))}, "of 4 units"),
    ],
)
def test_bad_stats_are_refused(change: dict[str, object], words: str) -> None:
    stats = make_stats()
    names = [name for name in signature(HeadStats).parameters if name != "statistics"]
    fields = {name: getattr(stats, name) for name in names}
    with pytest.raises(ValueError, match=words):
        HeadStats(**{**fields, **change})


@pytest.mark.parametrize(
    "missing",
    [
        {"signatures": None},
        {"fisher": {}},
        {"sensitivity": ()},
        {"signatures": None, "fisher": {}, "sensitivity": ()},
    ],
)
def test_statistics_of_earlier_releases_are_read_and_do_not_mix(
    missing: dict[str, Any], tmp_path: Path
) -> None:
    old = make_stats().without(*missing)
    old.save(tmp_path / "old.safetensors")
    again = HeadStats.load(tmp_path / "old.safetensors")
    assert all(getattr(again, name) == value for name, value in missing.items())
    with pytest.raises(ValueError, match="calibrated with different options"):
        _ = old + make_stats()


def test_statistics_of_two_poolings_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "stats.safetensors"
    mean, cls = (replace(make_stats(), pooling=p) for p in (Pooling.MEAN, Pooling.CLS))
    cls.save(file)
    again = HeadStats.load(file)
    assert again.pooling is Pooling.CLS
    assert copy.deepcopy(again).pooling is (again + cls).pooling is Pooling.CLS
    assert again.restricted(np.arange(SPACE.n) > 0).pooling is Pooling.CLS
    with pytest.raises(ValueError, match=r"mean pooling, and the other cls pooling.*`fidelity`"):
        _ = mean + cls
    with pytest.raises(
        ValueError, match=r"cls pooling, and the other no pooling that was recorded"
    ):
        _ = cls + make_stats()


@pytest.mark.parametrize("told", ['"pooling": "sum"', '"pooling": 3', ""])
def test_a_pooling_that_is_none_is_refused_and_an_absent_one_is_not(
    told: str, tmp_path: Path
) -> None:
    file = tmp_path / "stats.safetensors"
    replace(make_stats(), pooling=Pooling.CLS).save(file)
    with safe_open(file, framework="numpy") as reader:
        metadata = reader.metadata()
        arrays = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
    header = metadata["header"]
    metadata["header"] = header.replace('"pooling": "cls"', told).replace(", }", "}")
    assert metadata["header"] != header
    save_file(arrays, file, metadata=metadata)
    if told:
        with pytest.raises(RecordError, match="Pooling"):
            HeadStats.load(file)
    else:  # as earlier releases wrote it
        assert HeadStats.load(file).pooling is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": np.eye(3)}, r"`metric` of a block's sensitivity has shape \[3, 3\]"),
        ({"sum": np.zeros((2, 2))}, "`sum` of a block's sensitivity"),
        ({"scatter": np.full((2, 2), np.nan)}, "`scatter` holds 4 values that are NaN"),
        ({"weight": -1.0}, "`weight` and `examples` must be finite and at least 0, got -1.0"),
        ({"examples": -1}, "`weight` and `examples`"),
    ],
)
def test_bad_sensitivities_are_refused(change: dict[str, Any], words: str) -> None:
    good: dict[str, Any] = {
        "sum": np.zeros(2),
        "scatter": np.eye(2),
        "metric": np.eye(2),
        "weight": 1.0,
        "examples": 1,
    }
    with pytest.raises(ValueError, match=words):
        Sensitivity(**{**good, **change})


def test_a_block_that_the_output_never_depends_on_costs_nothing() -> None:
    blank = Sensitivity(np.zeros(2), np.zeros((2, 2)), np.zeros((2, 2)), 0.0, 3)
    assert blank.cost == 0 and not blank.covariance.any() and not blank.readout.any()


@given(st.integers(0, 2**32 - 1))
def test_signatures_merge_to_those_of_all_examples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps, labels = 3 + rng.normal(size=(12, 2, 3, 3)), rng.integers(0, 4, 12)

    def of(some: slice) -> Signatures:
        own = labels[some]
        rows = [maps[some][own == c] for c in range(own.max() + 1)]  # later classes are not known
        mean = np.array([r.mean(axis=0) if len(r) else np.zeros((2, 3, 3)) for r in rows])
        squares = np.array([((r - m) ** 2).sum(axis=0) for r, m in zip(rows, mean, strict=True)])
        return Signatures(np.bincount(own), mean, squares)

    merged, whole = of(slice(0, 3)) + of(slice(3, 8)) + of(slice(8, 12)), of(slice(0, 12))
    assert np.array_equal(merged.counts, whole.counts)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(merged.variance, whole.variance, rtol=0, atol=1e-12)


def test_bad_signatures_are_refused() -> None:
    good = make_stats().signatures
    assert good is not None
    for change, words in (
        ({"counts": np.array([3.0, 0, 5])}, "whole number"),
        ({"counts": np.array([3, -1, 5])}, "whole number"),
        ({"mean": np.zeros((2, 5, 2, 2))}, r"`mean` .* shape \[3, n, size, size\]"),
        ({"squares": np.zeros((3, 5, 2, 1))}, "`squares` .* shape"),
        ({"squares": good.squares - 1}, "at least 0"),
        ({"mean": good.mean * math.nan}, "NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(good, **change)
    with pytest.raises(ValueError, match="cannot be added"):
        _ = good + Signatures(np.array([1]), *np.zeros((2, 1, 5, 3, 3)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_statistics_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        Total(np.array([1.0, bad]), 1)
    with pytest.raises(ValueError, match="NaN or infinite"):
        Moments(np.array([bad]), np.eye(1), np.eye(1), 1)


def test_what_was_not_measured_says_so() -> None:
    with pytest.raises(ValueError, match="not measured"):
        _ = Total(np.zeros(2), 0).mean


# -- Selection -------------------------------------------------------------------------------------


def test_selection_survives_a_round_trip(tmp_path: Path) -> None:
    kept = SPACE.join({"first": [0, 2], "second": [1]})
    selection = Selection(
        SPACE, kept, 3.0, 4.0, {"units": Cost(3.0, 4.0, "J")}, Status.FEASIBLE, "why", "Greedy()", 0.1,
        {"evaluations": 7}, {"model": "abc"},
    )  # fmt: skip
    selection.save(tmp_path / "selection.json")
    again = Selection.load(tmp_path / "selection.json")
    assert np.array_equal(again.kept, kept) and again.to_json() == selection.to_json()
    for same in (again, pickle.loads(pickle.dumps(again)), copy.deepcopy(again)):
        cost, limit = same.costs["units"]  # a pair, as it has always been
        assert (cost, limit, same.costs["units"].unit) == (3.0, 4.0, "J")
    assert math.isclose(again.gap, 1 / 3) and again.status is Status.FEASIBLE
    assert "2 of 3" in str(again) and "33.3 %" in str(again)


def test_a_hand_made_selection(tmp_path: Path) -> None:
    selection = Selection.from_kept(SPACE, np.ones(5, dtype=bool))
    assert math.isnan(selection.value) and math.isinf(selection.bound) and math.isinf(selection.gap)
    selection.save(tmp_path / "hand.json")
    again = Selection.load(tmp_path / "hand.json")
    assert math.isnan(again.value) and math.isinf(again.bound)
    assert again.heads() == {"first": [0, 1, 2], "second": [0, 1]}


def make_round(counts: tuple[int, ...] = (2, 1)) -> Round:
    check = Check(
        predicted=0.8,
        measured=0.88,
        dense_predicted=1.0,
        dense_measured=1.1,
        spread=0.02,
        limit=0.8,
    )
    return Round(
        counts=counts,
        goals={"latency of decode": check, "latency": replace(check, measured=0.76, spread=0.03)},
        workloads={"decode": replace(check, limit=None)},
        device="a processor",
        repeats=20,
    )


def test_a_round_tells_error_and_excess() -> None:
    found = make_round()
    check = found.goals["latency of decode"]
    assert check.error == pytest.approx(0.1) and check.dense_error == pytest.approx(0.1)
    assert check.ratio == pytest.approx(0.8) and check.over == pytest.approx(0.1)
    assert check.predicted_ratio == pytest.approx(0.8)
    assert found.workloads["decode"].over is None
    assert found.over == check.over and found.error == check.error and found.spread == 0.03
    assert Round(counts=(1, 1), goals={}).over == -1
    for change in ({"measured": 0.0}, {"limit": -1.0}, {"dense_measured": math.nan}):
        with pytest.raises(ValueError, match=f"`{next(iter(change))}` must be finite and above"):
            replace(check, **change)
    with pytest.raises(ValueError, match="`spread` must be finite and at least 0, got -1"):
        replace(check, spread=-1.0)


def test_a_selection_keeps_its_rounds(tmp_path: Path) -> None:
    path = tmp_path / "selection.json"
    kept = SPACE.join({"first": [0, 2], "second": [1]})
    rounds = (make_round((3, 1)), make_round(), replace(make_round(), repeats=60))
    selection = replace(Selection.from_kept(SPACE, kept), rounds=rounds)
    selection.save(path)
    assert Selection.load(path).rounds == rounds
    assert pickle.loads(pickle.dumps(selection)).rounds == rounds
    assert selection.measured == rounds[2]
    assert "latency of decode, measured: 0.88 of 0.8" in str(selection)
    assert Selection.from_kept(SPACE, kept).measured is None
    data = json.loads(path.read_text())
    del data["rounds"]  # as earlier releases wrote it
    path.write_text(json.dumps(data))
    assert Selection.load(path).rounds == ()
    whole = make_round().to_json()
    for change in (
        {"counts": [2, 9]},
        {"counts": [1]},
        {"goals": {"latency": {"predicted": 1}}},
        {"goals": {"latency": {**whole["goals"]["latency"], "measured": -1.0}}},
        {"more": 1},
    ):
        path.write_text(json.dumps({**data, "rounds": [{**whole, **change}]}))
        with pytest.raises(RecordError, match="cannot be used"):
            Selection.load(path)


def test_records_copy_and_pickle() -> None:
    """Worker processes are sent records."""
    stats, proposal = make_stats(), Proposal(np.ones(5, dtype=bool))
    for again in (copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))):
        assert again.space == SPACE and list(again.gauss_newton) == [0.5, 1.0]
        assert np.array_equal(again.gauss_newton[0.5].sum, stats.gauss_newton[0.5].sum)
        assert np.array_equal(again.fisher[0.25].sum, stats.fisher[0.25].sum)
        assert (
            again.divergence is not None and again.divergence.count == 4 and len(again.moments) == 2
        )
    assert pickle.loads(pickle.dumps(proposal)).stats == {}
    selection = Selection(SPACE, proposal.kept, stats={"evaluations": 1})
    assert pickle.loads(pickle.dumps(selection)).to_json() == selection.to_json()
    table = pickle.loads(pickle.dumps(make_table()))
    assert table.provenance == make_table().provenance and table.dense == make_table().dense


def test_a_selection_of_the_wrong_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "selection.json"
    Selection.from_kept(SPACE, np.ones(5, dtype=bool)).save(path)
    data = json.loads(path.read_text())
    for change in ({"kept": [0, 1]}, {"costs": None}, {"blocks": [["a", 10**400]]}, {"value": "x"}):
        path.write_text(json.dumps({**data, **change}))
        with pytest.raises(RecordError, match="cannot be used"):
            Selection.load(path)


# -- files -----------------------------------------------------------------------------------------


def test_a_wrong_file_is_named_in_one_sentence(tmp_path: Path) -> None:
    latency, stats = tmp_path / "latency.json", tmp_path / "stats.safetensors"
    make_table().save(latency)
    make_stats().save(stats)
    with pytest.raises(RecordError, match="holds 'cahp-latency', and 'cahp-selection'"):
        Selection.load(latency)
    with pytest.raises(RecordError, match="not a readable JSON"):
        LatencyTable.load(stats)
    with pytest.raises(RecordError, match="safetensors"):
        HeadStats.load(latency)
    with pytest.raises(FileNotFoundError):
        HeadStats.load(tmp_path / "none")
    stats.write_bytes(stats.read_bytes()[:-40])
    with pytest.raises(RecordError, match="safetensors"):
        HeadStats.load(stats)
    data = json.loads(latency.read_text())
    for change, words in (
        ({"version": 99}, "schema version 99"),
        ({"fixed": "fast"}, "cannot be used"),
        ({"fixed": math.nan}, "holds NaN"),
        ({"seconds": [[10**400] * 4, [0, 1, 2]]}, "cannot be used"),
        ({"seconds": [[0, 1]]}, "one array per block"),
    ):
        latency.write_text(json.dumps({**data, **change}))
        with pytest.raises(RecordError, match=words):
            LatencyTable.load(latency)
    latency.write_text(json.dumps({k: v for k, v in data.items() if k != "blocks"}))
    with pytest.raises(RecordError, match="lacks 'blocks'"):
        LatencyTable.load(latency)


def test_files_are_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "record.json"
    target.write_text("old")
    with pytest.raises(RuntimeError), whole_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["record.json"]
