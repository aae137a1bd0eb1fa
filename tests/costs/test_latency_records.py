"""Latency tables and profiles: damaged files, mixes, corrections, and the floors of budgets over them."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cahp_opt import (
    Block,
    Budget,
    BudgetError,
    CostTable,
    CountTable,
    HeadSpace,
    HeadStats,
    LatencyTable,
    Phase,
    Profile,
    Provenance,
    RecordError,
    ResourceTable,
    Unit,
)
from cahp_opt.costs.goals import LatencyGoal
from cahp_opt.costs.target import Target

SPACE = HeadSpace((Block("first", 3), Block("second", 2, Unit.KV_GROUP)))
FACTS = Provenance(device="cpu", batch=8, phase=Phase.DECODE, versions={"torch": "2"})


def make_table(seed: int, space: HeadSpace = SPACE, *, least: float = 0.0) -> LatencyTable:
    """A random table; ``least`` is where its launch time lies between its floor (0) and its time (1)."""
    rng = np.random.default_rng(seed)
    seconds = [rng.random(units + 1) for units in space.units.tolist()]
    if rng.random() < 0.5:
        seconds = [np.sort(own) for own in seconds]
    table = LatencyTable(space, float(rng.random()), tuple(seconds), FACTS)
    if not least:
        return table
    return replace(table, least=table.floor + least * max(table.dense - table.floor, 0))


def make_profile(seed: int) -> Profile:
    costs = tuple(1e6 * np.arange(units + 1.0) for units in SPACE.units.tolist())
    return Profile(
        SPACE,
        {"prefill": make_table(seed), "decode": make_table(seed + 1, least=0.5)},
        {"parameters": ResourceTable(SPACE, 7.0, costs, "weights")},
    )


def all_counts(space: HeadSpace) -> Iterator[np.ndarray]:
    yield from (np.array(c) for c in np.ndindex(*(space.units + 1)))


# -- damaged files -----------------------------------------------------------------------------------


@contextmanager
def saved(record: LatencyTable | Profile) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        record.save(path)
        yield path


def check_refused_or_valid(path: Path, load: Callable[[Path], LatencyTable | Profile]) -> bool:
    """Whether the file is refused, in one sentence that names it; what loads can be used."""
    try:
        record = load(path)
    except RecordError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return True
    tables = [record] if isinstance(record, LatencyTable) else [*record.latency.values()]
    for table in tables:
        assert all(
            s.shape == (u + 1,) for s, u in zip(table.seconds, table.space.units, strict=True)
        )
        assert all(np.all(np.isfinite(s) & (s >= 0)) for s in table.seconds)
        assert math.isfinite(table.dense) and table.floor <= table.predict(0 * table.space.units)
        assert all(isinstance(remark, str) for remark in table.remarks)
    record.save(path)  # what was read can be written
    return False


RECORDS: dict[str, tuple[LatencyTable | Profile, Callable[[Path], Any]]] = {
    "table": (make_table(0, least=0.5), LatencyTable.load),
    "table as a profile": (make_table(0, least=0.5), Profile.load),
    "profile": (make_profile(0), Profile.load),
}
each_record = pytest.mark.parametrize("name", RECORDS)


@each_record
@given(data=st.data())
def test_damaged_bytes(name: str, data: st.DataObject) -> None:
    record, load = RECORDS[name]
    with saved(record) as path:
        whole = path.read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        kind = data.draw(st.sampled_from(["cut", "changed", "dropped", "inserted"]))
        byte = bytes([data.draw(st.integers(0, 255))])
        changed = {
            "cut": whole[:place],
            "changed": whole[:place] + byte + whole[place + 1 :],
            "dropped": whole[:place] + whole[place + 1 :],
            "inserted": whole[:place] + byte + whole[place:],
        }
        path.write_bytes(changed[kind])
        refused = check_refused_or_valid(path, load)
        assert (
            refused or kind != "cut" or place == len(whole) - 1
        )  # only the last line break is spare


STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10),
    st.sampled_from([-1.0, 1e300, 10**400, 1.5, "", "x", "decode", [], {}, [[]], [None], {"a": 1}]),
    st.sampled_from([math.nan, math.inf, -math.inf]),
)


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys."""
    for key, value in (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    ):
        yield data, key
        yield from places(value)


@each_record
@given(data=st.data())
def test_damaged_fields(name: str, data: st.DataObject) -> None:
    record, load = RECORDS[name]
    with saved(record) as path:
        body = json.loads(path.read_text())
        found = list(places(body))
        container, key = found[data.draw(st.integers(0, len(found) - 1))]
        if data.draw(st.booleans()):
            del container[key]
        else:
            container[key] = data.draw(STRANGE)
        path.write_text(json.dumps(body))
        check_refused_or_valid(path, load)


@each_record
@pytest.mark.parametrize("bad", [-1e-9, math.nan, math.inf, "fast", None, [1.0]])
def test_no_bad_time_gets_in(name: str, bad: object) -> None:
    """Whichever number is replaced, a time that is none is refused."""
    record, load = RECORDS[name]
    with saved(record) as path:
        body = json.loads(path.read_text())
        tables = [body, *body.get("latency", {}).values()] if "latency" in body else [body]
        for table in tables:
            for field in ("fixed", "least"):
                if field in table:
                    check_bad(path, load, body, table, field, bad)
            for own in table.get("seconds", []):
                check_bad(path, load, body, own, 1, bad)


def check_bad(
    path: Path, load: Callable[[Path], Any], body: Any, container: Any, key: Any, bad: object
) -> None:
    before = copy.deepcopy(container[key])
    container[key] = bad
    path.write_text(json.dumps(body))
    assert check_refused_or_valid(path, load), (key, bad)
    container[key] = before


@pytest.mark.parametrize("load", [LatencyTable.load, Profile.load, HeadStats.load])
@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b"1e999", b"[" * 100_000, b"\xff"])
def test_files_that_are_no_record(
    tmp_path: Path, load: Callable[[Path], object], content: bytes
) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"record\.json"):
        load(path)


def test_a_broken_table_is_named_as_such_when_a_profile_may_hold_it(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    make_table(0).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "fixed": -1}))
    with pytest.raises(RecordError, match="`fixed` must be"):
        Profile.load(path)


def test_tables_of_other_shapes_and_models(tmp_path: Path) -> None:
    other = HeadSpace((Block("first", 2), Block("second", 2, Unit.KV_GROUP)))
    with pytest.raises(ValueError, match="own blocks"):
        Profile(SPACE, {"prefill": make_table(0, other)})
    with pytest.raises(ValueError, match="one model"):
        LatencyTable.mix([(1, make_table(0)), (1, make_table(0, other))])
    profile = Profile(other, {"prefill": make_table(0, other)})
    with pytest.raises(ValueError, match="different models"):
        Target((LatencyGoal(ratio=0.9),)).budget(SPACE, profile)
    path = tmp_path / "profile.json"
    make_profile(0).save(path)
    body = json.loads(path.read_text())
    body["blocks"] = other.to_json()
    path.write_text(json.dumps(body))
    with pytest.raises(RecordError, match="3 entries"):
        Profile.load(path)


# -- floors ------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(0, 2), st.integers(1, 3), st.data())
def test_the_floor_told_is_reached_exactly(
    seed: int, least: float, minimum: int, multiple_of: int, data: st.DataObject
) -> None:
    """Whatever the table, also where it falls with more units: at the floor there is an answer, below
    it one sentence."""
    table = make_table(seed, least=least)

    def within(seconds: float) -> Budget:
        return Budget.latency(table, seconds=seconds, minimum=minimum, multiple_of=multiple_of)

    ranges = Budget(SPACE, minimum=minimum, multiple_of=multiple_of)
    smallest = min(table.predict(c) for c in all_counts(SPACE) if ranges.allows(c))
    budget = within(smallest)
    assert budget.floors() == {"latency": smallest}
    assert table.predict(budget.cheapest) == smallest
    below = data.draw(st.floats(0, smallest, exclude_min=True, exclude_max=True))
    with pytest.raises(BudgetError) as error:
        within(below)
    assert f"the smallest reachable is {smallest:.6g} s" in str(error.value)
    assert str(error.value).endswith(".")
    with pytest.raises(BudgetError):
        budget.with_limit(below)


def test_a_limit_below_the_launch_time_says_so() -> None:
    milliseconds = tuple(np.array([0, 1e-3, 2e-3, 3e-3][: u + 1]) for u in SPACE.units.tolist())
    table = LatencyTable(SPACE, 0.001, milliseconds, least=0.004)
    with pytest.raises(BudgetError, match=r"smallest reachable is 0.004 s .*launching the kernels"):
        Budget.latency(table, 0.5)
    with pytest.raises(BudgetError, match="CUDA graphs, torch.compile or a larger batch"):
        Budget.latency(table, 0.5, minimum=1)
    with pytest.raises(BudgetError, match="or lower `minimum` or `multiple_of`") as error:
        Budget.latency(table, 0.8, minimum=2)
    assert "launching" not in str(error.value)
    profile = Profile(SPACE, {"prefill": replace(table, least=0.0), "decode": table})
    with pytest.raises(BudgetError, match="launching the kernels"):
        Target((LatencyGoal.parse("decode+0.1*prefill=3ms"),)).budget(SPACE, profile)
    with pytest.raises(ValueError, match="`least` finite"):
        Budget(SPACE, (CountTable("cost", table.seconds, 1.0, least=math.nan),))
    with pytest.raises(BudgetError, match="never below 5 bytes"):
        Budget(SPACE, (CountTable("cost", table.seconds, 1.0, least=5.0, unit="bytes"),))


def test_a_measured_resource_keeps_where_it_was_measured(tmp_path: Path) -> None:
    where = Provenance(device="cpu", batch=8, spread=0.2)
    costs = tuple(np.arange(units + 1.0) for units in SPACE.units.tolist())
    energy = CostTable(SPACE, 0.5, costs, "J", where, least=1.0)
    assert energy.measured and "noisy" in energy.remarks[0]
    Profile(SPACE, resources={"energy": energy}).save(tmp_path / "profile.json")
    again = Profile.load(tmp_path / "profile.json").resources["energy"]
    assert (again.unit, again.least, again.provenance) == ("J", 1.0, where)
    assert type(energy.corrected([(SPACE.units, 9.0)])) is CostTable
    assert CostTable.mix([(2.0, energy)]).unit == "J"


# -- mixes and corrections ---------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.floats(0.01, 300), st.integers(0, 2**16), st.sampled_from([0.0, 0.3, 0.9, 1.5])
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_mix_never_predicts_too_little(parts: list[tuple[float, int, float]]) -> None:
    tables = [(runs, make_table(seed, least=least)) for runs, seed, least in parts]
    mix = LatencyTable.mix(tables)
    exact = all(
        table.least <= table.floor and not least
        for (_, table), (_, _, least) in zip(tables, parts, strict=True)
    )
    for counts in all_counts(SPACE):
        truth = math.fsum(runs * table.predict(counts) for runs, table in tables)
        assert mix.predict(counts) >= truth * (1 - 1e-12)
        if exact:
            assert math.isclose(mix.predict(counts), truth, rel_tol=1e-12)


def test_a_mix_of_one_launch_bound_table_is_exact_at_the_ends() -> None:
    table = LatencyTable(SPACE, 1.0, (np.arange(4.0), np.arange(3.0)), least=3.0)
    mix = LatencyTable.mix([(2.0, table)])
    assert mix.predict([0, 0]) == pytest.approx(6.0) and mix.dense == pytest.approx(12.0)
    assert mix.floor == pytest.approx(6.0)
    with pytest.raises(ValueError, match="`parts` is empty"):
        LatencyTable.mix([])
    with pytest.raises(ValueError, match="more than 0 times"):
        LatencyTable.mix([(math.nan, table)])


@given(st.integers(0, 2**16), st.floats(0.5, 2), st.floats(0, 1))
def test_a_correction_finds_factor_and_offset(seed: int, factor: float, offset: float) -> None:
    table = make_table(seed)
    truth = replace(
        table, fixed=table.fixed + offset, costs=tuple(factor * s for s in table.seconds)
    )
    evidence = [(counts, truth.predict(counts)) for counts in all_counts(SPACE)]
    corrected = table.corrected(evidence)
    for counts, taken in evidence:
        assert math.isclose(corrected.predict(counts), taken, rel_tol=1e-6)
    assert corrected.provenance == table.provenance


@given(st.integers(0, 2**16), st.floats(0.2, 5))
def test_a_correction_by_one_model_meets_it(seed: int, slower: float) -> None:
    """Where the blocks alone do not take longer than the whole, the offset makes up for it."""
    table = make_table(seed)
    taken = slower * table.dense
    assume(taken > table.dense - table.fixed)
    corrected = table.corrected([(SPACE.units, taken)])
    assert math.isclose(corrected.dense, taken, rel_tol=1e-9)
    assert corrected.fixed >= 0 and all(np.all(s >= 0) for s in corrected.seconds)


@pytest.mark.parametrize("taken", [0.0, -1.0, math.nan, math.inf])
def test_a_correction_needs_times(taken: float) -> None:
    with pytest.raises(ValueError, match="`evidence`"):
        make_table(0).corrected([(SPACE.units, taken)])
    with pytest.raises(ValueError, match="`evidence`"):
        make_table(0).corrected([])
