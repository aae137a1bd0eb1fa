"""Goals as they are stated: their grammar, their limits, and the targets and workloads made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahp_opt import (
    BudgetError,
    CostTable,
    Execution,
    HeadSpace,
    LatencyTable,
    Phase,
    Profile,
    Provenance,
    ResourceTable,
)
from cahp_opt.costs.basis import Basis
from cahp_opt.costs.goals import (
    LatencyGoal,
    ResourceGoal,
    asked_latency,
    asked_limit,
    goal_of,
)
from cahp_opt.costs.quantities import RESOURCES, Resource, amount
from cahp_opt.costs.target import Target
from cahp_opt.costs.workloads import Workload, recorded_workloads, workloads_for
from cahp_opt.runs.method import Task, choose_by
from cahp_opt.runs.objective_and_solver import ObjectiveAndSolver

SPACE = HeadSpace.uniform(2, 4)
PREFILL = LatencyTable(
    SPACE, 1.0, (np.arange(5.0), np.arange(5.0)), Provenance(device="gpu", batch=8, model="Bert/0")
)
DECODE = LatencyTable(
    SPACE,
    0.25,
    (0.5 * np.arange(5.0), 0.5 * np.arange(5.0)),
    Provenance(
        device="gpu", batch=2, sequence_length=64, phase=Phase.DECODE, spread=0.3, estimated=True
    ),
)
WEIGHTS = ResourceTable(SPACE, 1e6, (1e6 * np.arange(5.0), 1e6 * np.arange(5.0)), "weights")
CACHE = ResourceTable(SPACE, 0, (1024 * np.arange(5.0), 1024 * np.arange(5.0)), "bytes")
PROFILE = Profile(
    SPACE, {"prefill": PREFILL, "decode": DECODE}, {"parameters": WEIGHTS, "kv_cache": CACHE}
)


# -- latency ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "terms", "ratio", "seconds"),
    [
        ("0.8", (), 0.8, None),
        ("12.5ms", (), None, 0.0125),
        ("0.0125s", (), None, 0.0125),
        (" 1e-3 s", (), None, 0.001),
        ("decode=12ms", (("decode", 1),), None, 0.012),
        ("decode=0.7", (("decode", 1),), 0.7, None),
        ("prefill+200*decode=0.8", (("prefill", 1), ("decode", 200)), 0.8, None),
        (" 0.5 * a-b_2 + decode + a-b_2 = .8", (("a-b_2", 1.5), ("decode", 1)), 0.8, None),
    ],
)
def test_latency_expressions(
    text: str, terms: tuple[tuple[str, float], ...], ratio: float | None, seconds: float | None
) -> None:
    assert LatencyGoal.parse(text) == LatencyGoal(terms, ratio, seconds)


@pytest.mark.parametrize(
    "text",
    [
        "", "fast", "-1", "0", "0ms", "nan", "inf", "nanms", "1e400", "1 h", "0.8=decode", "decode=",
        "=0.8", "decode==1", "decode+=1", "+decode=1", "2decode=1", "0*decode=1", "-2*decode=1",
        "decode*2=1", "Decode=1", "1e400*decode=1", "decode 1", "decode=0.8=1",
    ],
)  # fmt: skip
def test_other_latencies_are_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"^`--latency` must be a ratio .* got .*\.$"):
        LatencyGoal.parse(text)


POSITIVE = st.floats(1e-300, 1e300)
NAMES = st.from_regex(r"[a-z][a-z0-9_-]*", fullmatch=True)
LATENCIES = st.builds(
    lambda terms, number, timed: (
        LatencyGoal(tuple(terms), seconds=number) if timed else LatencyGoal(tuple(terms), number)
    ),
    st.lists(st.tuples(NAMES, POSITIVE), max_size=4),
    POSITIVE,
    st.booleans(),
)
RESOURCE_GOALS = st.builds(
    lambda name, ratio, amount, counted: (
        ResourceGoal(name, amount=amount) if counted else ResourceGoal(name, ratio)
    ),
    st.sampled_from(["parameters", "memory", "kv_cache"]),
    st.floats(0, 1, exclude_min=True),
    st.integers(2, 2**53),
    st.booleans(),
)


@given(LATENCIES)
def test_a_latency_is_read_as_it_is_written(goal: LatencyGoal) -> None:
    assert LatencyGoal.parse(str(goal)) == goal


@given(RESOURCE_GOALS)
def test_a_resource_is_read_as_it_is_written(goal: ResourceGoal) -> None:
    assert ResourceGoal.parse(goal.name, str(goal)) == goal


@given(st.lists(st.one_of(LATENCIES, RESOURCE_GOALS), max_size=4))
def test_goals_survive_a_record(goals: list[LatencyGoal | ResourceGoal]) -> None:
    again = json.loads(json.dumps(Basis(tuple(goals)).to_json()))
    assert Basis.from_json(again).goals == tuple(goals)


@given(st.text(alphabet="0123456789.e+-*= msdecoprfilkKMGTiB", max_size=24))
def test_any_text_is_a_goal_or_one_sentence(text: str) -> None:
    readers: list[Callable[[str], object]] = [
        LatencyGoal.parse,
        lambda t: ResourceGoal.parse("memory", t),
        lambda t: ResourceGoal.parse("parameters", t),
        Workload.parse,
    ]
    for read in readers:
        try:
            read(text)
        except ValueError as error:
            assert str(error).endswith(".") and repr(text) in str(error)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LatencyGoal(), "either `ratio` or `seconds`"),
        (lambda: LatencyGoal(ratio=1, seconds=1), "either `ratio` or `seconds`"),
        (lambda: LatencyGoal(ratio=math.nan), "`ratio`"),
        (lambda: LatencyGoal(seconds=-1), "`seconds`"),
        (lambda: LatencyGoal((("Decode", 1),), 0.5), "named by small letters"),
        (lambda: LatencyGoal((("decode", 0),), 0.5), "runs of a workload"),
        (lambda: ResourceGoal("memory"), "either `ratio` or `amount`"),
        (lambda: ResourceGoal("memory", 1.5), "`ratio`"),
        (lambda: ResourceGoal("memory", amount=1), "`amount`"),
        (lambda: ResourceGoal("memory", amount=2.5), "`amount`"),
        (lambda: ResourceGoal("disk", 0.5), "must be one of"),
        (lambda: ResourceGoal.parse("disk", "0.5"), "must be one of"),
    ],
)
def test_bad_goals_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# -- resources -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "ratio", "amount"),
    [
        ("parameters", "0.5", 0.5, None),
        ("parameters", "1", 1.0, None),
        ("parameters", "7.5M", None, 7_500_000),
        ("parameters", "1.2B", None, 1_200_000_000),
        ("parameters", "500 k", None, 500_000),
        ("parameters", "7500000", None, 7_500_000),
        ("memory", "512MB", None, 512_000_000),
        ("memory", "1.5GiB", None, 3 * 2**29),
        ("memory", "123456B", None, 123_456),
        ("kv_cache", "40kB", None, 40_000),
        ("kv_cache", "0.0029kB", None, 2),
    ],
)
def test_resource_expressions(
    name: str, text: str, ratio: float | None, amount: int | None
) -> None:
    assert ResourceGoal.parse(name, text) == ResourceGoal(name, ratio, amount)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("parameters", "1.5"), ("parameters", "0"), ("parameters", "7.5MB"), ("parameters", "5m"),
        ("memory", "512"), ("memory", "2"), ("memory", "5mb"), ("memory", "1B"), ("memory", "-5MB"),
        ("memory", "1e99999999GB"), ("memory", "nan"), ("kv_cache", ""), ("kv_cache", "MB"),
    ],
)  # fmt: skip
def test_other_amounts_are_refused_with_the_way_out(name: str, text: str) -> None:
    with pytest.raises(
        ValueError, match=r"ratio of the unpruned model .* such as .*suffixes: .*\.$"
    ):
        ResourceGoal.parse(name, text)


def test_a_measured_resource_is_stated_in_its_own_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RESOURCES, "energy", Resource("J", "a_meter:joules"))
    name = "energy of prefill"
    goal = ResourceGoal.parse(name, "1.5mJ")
    assert goal == ResourceGoal(name, amount=0.0015) and goal.option == f"--limit {name}=0.0015J"
    assert ResourceGoal.parse(name, str(goal)) == goal
    assert ResourceGoal.parse(name, "0.8") == ResourceGoal(name, ratio=0.8)
    for text in ("2", "3kB", "0J", "1e999J"):
        with pytest.raises(ValueError, match=r"`--limit energy of prefill` .*suffixes: J, mJ"):
            ResourceGoal.parse(name, text)
    assert asked_limit(f"{name}=0.8") == ResourceGoal(name, ratio=0.8)
    for wrong in ("energy=0.8", "energy of =0.8", "memory of prefill=0.8"):
        with pytest.raises(ValueError, match=r"one of the names .*'energy of WORKLOAD'\]"):
            asked_limit(wrong)
    table = CostTable(SPACE, 1.0, (np.arange(5.0), np.arange(5.0)), "J")
    limited = ResourceGoal(name, ratio=0.5).table(Profile(SPACE, resources={name: table}))
    assert (limited.limit, limited.unit) == (4.5, "J")
    assert amount(0.25, "J") == "250 mJ" and amount(1.5, "s") == "1.500 s"


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("memory=0.5", ResourceGoal("memory", ratio=0.5)),
        (" parameters = 8M ", ResourceGoal("parameters", amount=8_000_000)),
        ("latency=0.8", LatencyGoal(ratio=0.8)),
        ("latency of prefill+2*decode=3ms", LatencyGoal.parse("prefill+2*decode=3ms")),
    ],
)
def test_any_limit_is_stated_by_its_name(text: str, goal: LatencyGoal | ResourceGoal) -> None:
    assert asked_limit(text) == goal
    for wrong in (text.replace("=", ""), f"speed of {text}", f"{text}x"):
        with pytest.raises(ValueError):
            asked_limit(wrong)


# -- what they mean ----------------------------------------------------------------------------------


def test_costs_and_limits_of_runs() -> None:
    goal = LatencyGoal.parse("prefill+200*decode=0.5")
    assert goal.cost({"prefill": 1.0, "decode": 0.01}) == 3.0
    assert goal.limit({"prefill": 1.0, "decode": 0.01}) == 1.5
    assert LatencyGoal.parse("decode=12ms").limit({"decode": 1.0}) == 0.012
    assert LatencyGoal(ratio=0.8).cost({"only": 2.0}) == 2.0
    assert LatencyGoal(ratio=0.8).cost({"decode": 2.0, "prefill": 3.0}) == 3.0
    with pytest.raises(ValueError, match="does not say which workload"):
        LatencyGoal(ratio=0.8).cost({"a": 2.0, "b": 3.0})
    with pytest.raises(ValueError, match="about the workload 'decode'"):
        goal.cost({"prefill": 1.0})
    with pytest.raises(ValueError, match="needs a latency table"):
        goal.cost({})


def test_a_budget_of_many_goals() -> None:
    goals = (
        LatencyGoal.parse("0.8"),
        LatencyGoal.parse("prefill+2*decode=0.7"),
        LatencyGoal.parse("decode=3s"),
        ResourceGoal.parse("parameters", "8M"),
        ResourceGoal.parse("kv_cache", "0.75"),
    )
    budget = Target(goals, heads=6, maximum=3, multiple_of=2).budget(SPACE, PROFILE)
    counts = np.array([2, 2])
    assert {name: cost[:2] for name, cost in budget.costs(counts).items()} == {
        "latency": (5.0, 0.8 * 9.0),
        "latency of prefill+2*decode": (5.0 + 2 * 2.25, 0.7 * (9.0 + 2 * 4.25)),
        "latency of decode": (2.25, 3.0),
        "parameters": (5e6, 8e6),
        "kv_cache": (4 * 1024.0, 0.75 * 8 * 1024),
        "units": (4.0, 6.0),
    }
    assert budget.allows(counts) and not budget.allows(np.array([2, 3]))
    assert budget.floors()["latency of decode"] == 0.25 + 2 * 1.0


@given(st.integers(0, 2**32 - 1))
def test_the_unpruned_model_meets_a_ratio_of_one(seed: int) -> None:
    """Also in a mix of launch-bound tables, which may predict too much."""
    rng = np.random.default_rng(seed)

    def table() -> LatencyTable:
        free = LatencyTable(SPACE, rng.random(), tuple(rng.random(5) for _ in range(2)))
        return replace(free, least=rng.uniform(0, 2 * free.dense))

    profile = Profile(SPACE, {"prefill": table(), "decode": table()})
    target = Target((LatencyGoal.parse("3*prefill+0.1*decode=1"),), minimum=0)
    assert target.budget(SPACE, profile).allows(SPACE.units)


def test_targets_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="nothing limits the selection"):
        Target(multiple_of=2).budget(SPACE, PROFILE)
    with pytest.raises(ValueError, match="`--kv-cache 0.5` needs a latency table"):
        Target((ResourceGoal("kv_cache", 0.5),)).budget(SPACE, None)
    with pytest.raises(ValueError, match="`--memory 0.5` needs a profile that counts 'memory'"):
        Target((ResourceGoal("memory", 0.5),)).budget(SPACE, PROFILE)
    with pytest.raises(ValueError, match="different models"):
        Target((LatencyGoal(ratio=0.5),)).budget(HeadSpace.uniform(2, 3), PROFILE)
    with pytest.raises(BudgetError, match=r"smallest reachable is 3,000,000 weights"):
        Target((ResourceGoal("parameters", 0.1),)).budget(SPACE, PROFILE)
    with pytest.raises(BudgetError, match="none of that is a multiple of 4"):
        Target(heads=6, maximum=3, multiple_of=4).budget(SPACE, None)


def test_the_basis_holds_goals_and_tables() -> None:
    goals = (LatencyGoal.parse("2*decode=0.9"), ResourceGoal("parameters", 0.9))
    basis = Target(goals).basis(PROFILE)
    assert basis.goals == goals
    (dense, where), *others = basis.tables.values()
    assert dense == DECODE.dense and where.estimated and not others
    assert recorded_workloads(basis, 7) == (Workload(2, 64, 7, "decode", Phase.DECODE),)
    assert [note.split(":")[0] for note in basis.remarks] == ["decode", "decode"]

    basis = Target((LatencyGoal.parse("0.8"),)).basis(PROFILE)
    assert basis.tables["prefill"].dense == PREFILL.dense and basis.remarks == ()
    words = dict(basis.in_words())
    assert words["goals"] == "--latency 0.8" and "on gpu" in words["unpruned prefill"]
    assert Target(heads=3).basis(None) == Basis()


# -- workloads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "workload"),
    [
        ("prefill:8x128", Workload(8, 128)),
        ("decode:8", Workload(8, None, 20, "decode", Phase.DECODE)),
        (" long=prefill:1x4096 ", Workload(1, 4096, 20, "long")),
    ],
)
def test_workload_expressions(text: str, workload: Workload) -> None:
    assert Workload.parse(text) == workload
    graph = Workload.parse(text, repeats=3, execution=Execution.CUDA_GRAPH)
    assert graph == replace(workload, repeats=3, execution=Execution.CUDA_GRAPH)


@pytest.mark.parametrize(
    "text", ["", "8x128", "prefill", "prefill:0x1", "prefill:1x0", "train:8x8", "A=prefill:1x1", "prefill:-1"]
)  # fmt: skip
def test_other_workloads_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^`--workload` must be"):
        Workload.parse(text)
    with pytest.raises(ValueError, match="at least 1"):
        Workload(0)


def test_goals_say_what_is_measured() -> None:
    default = Workload(4, 32, 5)

    def names(goals: list[str], *given: str) -> list[tuple[str, Phase]]:
        parsed = [LatencyGoal.parse(goal) for goal in goals]
        found = workloads_for(parsed, [Workload.parse(g) for g in given], default)
        return [(w.name, w.phase) for w in found]

    prefill, decode = ("prefill", Phase.PREFILL), ("decode", Phase.DECODE)
    assert names([]) == names(["0.8"]) == [prefill]
    assert names(["0.8", "decode=12ms"]) == names(["prefill+9*decode=1s"]) == [prefill, decode]
    assert names(["decode=12ms"]) == [decode]
    assert names(["0.8"], "long=prefill:1x99") == [("long", Phase.PREFILL)]
    sizes = workloads_for([LatencyGoal.parse("decode=1")], (), default)
    assert sizes == (Workload(4, 32, 5, "decode", Phase.DECODE),)
    with pytest.raises(ValueError, match="no workload 'long'; say what it is"):
        names(["long=0.8"])
    with pytest.raises(ValueError, match="about the workload 'long'"):
        names(["long=0.8"], "decode:1x1")
    with pytest.raises(ValueError, match="two workloads are named 'decode'"):
        names([], "decode:1x1", "decode:1x2")


def test_a_damaged_basis_is_refused() -> None:
    older = {"dense_seconds": "0.5", "batch_size": "3", "sequence_length": "9"}
    assert recorded_workloads(Basis.from_texts(older)[0]) == (Workload(3, 9),)
    assert Basis.from_texts({"a": "b"}) == (Basis(), {"a": "b"})
    bad: list[dict[str, str]] = [{"workloads": text} for text in ("{", "[1]", '{"a": {}}')]
    bad += [{"remarks": text} for text in ("", "NaN", "{}", "[1]")]
    bad += [{"goals": text} for text in ("", "1", '[["latency"]]', '[["latency", "fast"]]')]
    bad += [{**older, "dense_seconds": "x"}, {**older, "batch_size": "x"}]
    for texts in bad:
        with pytest.raises(ValueError, match="select again"):
            Basis.from_texts(texts)
    told = Target((LatencyGoal(ratio=0.5),)).basis(Profile(SPACE, {"prefill": PREFILL})).to_json()
    assert Basis.from_json(told).to_json() == told
    for field, wrong in (("dense", 0), ("dense", "x"), ("batch", None), ("phase", "x")):
        broken = {"prefill": {**told["tables"]["prefill"], field: wrong}}
        with pytest.raises(ValueError, match="select again"):
            Basis.from_json({**told, "tables": broken})


def test_a_limit_on_an_unknown_resource_is_a_remark() -> None:
    told = Target((LatencyGoal(ratio=0.5),)).basis(Profile(SPACE, {"prefill": PREFILL})).to_json()
    energy = {"energy of prefill": told["tables"]["prefill"]}
    more = {
        **told,
        "goals": [["energy of prefill", "0.8"], *told["goals"]],
        "tables": {**told["tables"], **energy},
    }
    basis = Basis.from_json(more)
    assert basis.goals == (LatencyGoal(ratio=0.5),) and list(basis.tables) == ["prefill"]
    assert any("energy of prefill=0.8" in remark for remark in basis.remarks)
    assert Basis.from_json(basis.to_json()) == basis


def test_a_method_records_the_goals() -> None:
    from records_by_hand import SPACE as SMALL
    from records_by_hand import make_stats

    cheap = ResourceTable(
        SMALL, 0, tuple(np.arange(u + 1.0) for u in SMALL.units.tolist()), "bytes"
    )
    profile = Profile(SMALL, {}, {"memory": cheap})
    target = Target((ResourceGoal("memory", 0.6),))
    task = Task(target.budget(SMALL, profile))
    selection = choose_by(ObjectiveAndSolver(), make_stats(), task, target, profile)
    assert selection.costs == {"memory": (3.0, 3.0)}
    assert selection.costs["memory"].unit == "bytes"
    assert selection.basis.goals == (ResourceGoal("memory", 0.6),)


@pytest.mark.parametrize(
    ("text", "way"),
    [("12", "12ms"), ("1.5", "1.5s"), ("decode=1.0001", "decode=1.0001ms"), ("9*decode=2", "=2s")],
)
def test_a_forgotten_unit_is_refused(text: str, way: str) -> None:
    with pytest.raises(ValueError, match=rf"^`--latency .*` is a ratio above 1, .*{way}.*\.$"):
        asked_latency(text)
    assert goal_of("latency", text) == LatencyGoal.parse(text)  # what was written is read
    assert asked_latency(f"{text}ms").seconds and asked_latency("1").ratio == 1


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target(heads=8), "`--heads 8` limits nothing: there are 8 units."),
        (Target(heads=99), "`--heads 99` limits nothing: there are 8 units."),
        (Target(maximum=4), "`--maximum 4` limits nothing: no block has more than 4 units."),
        (Target(heads=3, multiple_of=5), "`--multiple-of 5` leaves a block whole or empty"),
        (Target((asked_latency("prefill=1"),)), "`--latency prefill=1` limits nothing"),
        (Target((asked_latency("decode=5s"),)), "limits nothing: the unpruned model takes 4.25 s."),
        (Target((asked_latency("decode+prefill=60s"),)), "limits nothing"),
        (Target((ResourceGoal.parse("parameters", "2B"),)), "has 9,000,000 weights."),
        (Target((ResourceGoal.parse("kv_cache", "1"),)), "`--kv-cache 1` limits nothing"),
        (Target(heads=7), ""),
        (Target(maximum=3, multiple_of=4), ""),
        (Target((asked_latency("decode=4s"), ResourceGoal.parse("parameters", "8.9M"))), ""),
    ],
)
def test_limits_that_the_unpruned_model_keeps_to(target: Target, words: str) -> None:
    found = target.loose(SPACE, PROFILE)
    assert len(found) == (1 if words else 0) and words in "".join(found), found
