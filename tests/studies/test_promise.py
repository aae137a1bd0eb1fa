"""A stated time is kept as measured, or refused with what was measured; with a fake in place of clocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cahp_opt import (
    Block,
    BudgetError,
    Check,
    HeadSpace,
    LatencyTable,
    Profile,
    Provenance,
    Round,
    Selection,
    Unit,
)
from cahp_opt.arrays import Ints
from cahp_opt.costs.checks import SLACK
from cahp_opt.costs.goals import LatencyGoal
from cahp_opt.costs.target import Target
from cahp_opt.objectives import Modular
from cahp_opt.selection import chooser
from cahp_opt.solvers import DynamicProgram
from cahp_opt.studies.promise import Promise, corrected, foreign

SPACE = HeadSpace.uniform(12, 12)
WEIGHTS = np.random.default_rng(0).pareto(1.5, SPACE.n)
OBJECTIVE = Modular(WEIGHTS)
CHOOSE = chooser(OBJECTIVE, DynamicProgram())
ABSOLUTE, RATIO = LatencyGoal(seconds=0.0075), LatencyGoal(ratio=0.75)


def table(space: HeadSpace = SPACE, fixed: float = 0.004, block: float = 0.0005) -> LatencyTable:
    """Unpruned 10 ms."""
    seconds = tuple(block * np.linspace(0.1, 1, units + 1) for units in space.units)
    return LatencyTable(space, fixed, seconds, Provenance(device="here"))


@dataclass
class Device:
    """What a device truly takes, and what was asked of it.

    Args:
        scale: of the blocks' times in the table.
        offset: added to what is outside the blocks, in seconds.
        least: of any model, in seconds.
        noise: relative, of every measurement.
        spread: that is told, beside the noise.
        speed: of the whole machine, per round.
        bursts: factors of the sliced model's time alone, per round.
        bend: by how much the middle of a block's curve is lower, relative.
    """

    tables: Mapping[str, LatencyTable]
    scale: float = 1.0
    offset: float = 0.0
    least: float = 0.0
    noise: float = 0.0
    spread: float = 0.0
    speed: tuple[float, ...] = ()
    bursts: tuple[float, ...] = ()
    bend: float = 0.0
    asked: list[tuple[tuple[int, ...], int]] = field(default_factory=list)

    def truth(self, name: str, counts: Ints) -> float:
        found = self.tables[name]
        blocks = 0.0
        for seconds, k in zip(found.seconds, counts, strict=True):
            x = k / (len(seconds) - 1)
            blocks += float(seconds[k]) * (1 - 4 * self.bend * x * (1 - x))
        return max(self.least, found.fixed + self.offset + self.scale * blocks)

    def __call__(self, selection: Selection, repeats: int) -> dict[str, Check]:
        self.asked.append((tuple(selection.counts.tolist()), repeats))
        turn = len(self.asked) - 1
        rng = np.random.default_rng(turn)
        noisy = self.speed[turn] if turn < len(self.speed) else 1.0
        found = dict[str, Check]()
        for name in self.tables:
            dense, small = (
                noisy * self.truth(name, counts) * (1 + self.noise * rng.normal())
                for counts in (selection.space.units, selection.counts)
            )
            burst = self.bursts[turn] if turn < len(self.bursts) else 1.0
            found[name] = Check(
                measured=burst * small, dense_measured=dense, spread=self.noise + self.spread
            )
        return found

    def over(self, goal: LatencyGoal, counts: Ints) -> float:
        """How far these counts are truly over the goal."""
        dense = {name: self.truth(name, t.space.units) for name, t in self.tables.items()}
        small = {name: self.truth(name, counts) for name in self.tables}
        return goal.cost(small) / goal.limit(dense) - 1


def keep(
    device: Device, *goals: LatencyGoal, promise: Promise | None = None, **limits: Any
) -> Selection:
    profile = Profile(SPACE, device.tables)
    target = Target(tuple(goals), **limits)
    return (promise or Promise()).keep(CHOOSE, profile, target, device, device="here")


def one(**truth: Any) -> Device:
    return Device({"prefill": table()}, **truth)


@pytest.mark.parametrize("goal", [RATIO, ABSOLUTE], ids=str)
def test_a_table_that_is_right_needs_one_round(goal: LatencyGoal) -> None:
    device = one()
    selection = keep(device, goal)
    (found,) = selection.rounds
    check = found.goals["latency"]
    assert found.workloads == {"prefill": replace(check, limit=None)}
    assert -SLACK < found.over <= 0 and abs(found.error) < 1e-9 and not found.fastest
    assert check.limit == pytest.approx(0.0075) and check.dense_measured == pytest.approx(0.01)
    cost, limit = selection.costs["latency"]
    unit = selection.costs["latency"].unit
    assert (cost, limit) == pytest.approx((check.predicted, 0.0075)) and unit == "s"
    assert found == selection.measured and found.device == "here" and found.repeats == 20


@settings(max_examples=60, deadline=None)
@given(
    scale=st.floats(0.7, 1.4),
    offset=st.floats(-0.002, 0.002),
    bend=st.floats(-0.1, 0.1),
    ratio=st.floats(0.7, 0.9),
    absolute=st.booleans(),
)
def test_a_table_that_is_off_is_put_right(
    scale: float, offset: float, bend: float, ratio: float, absolute: bool
) -> None:
    device = one(scale=scale, offset=offset, bend=bend)
    goal = LatencyGoal(ratio=ratio)
    if absolute:
        goal = LatencyGoal(seconds=ratio * device.truth("prefill", SPACE.units))
    reachable = device.over(goal, np.ones(12, dtype=np.int64)) <= 0
    try:
        selection = keep(device, goal)
    except BudgetError:
        assert not reachable
        return
    assert device.over(goal, selection.counts) <= 0.01
    assert len(selection.rounds) <= 3 and len(device.asked) <= 3
    assert selection.costs["latency"][0] <= selection.costs["latency"][1]


@settings(max_examples=60, deadline=None)
@given(
    scale=st.floats(0.5, 1.5),
    offset=st.floats(-0.003, 0.02),
    least=st.sampled_from([0.0, 0.006, 0.008]),
    noise=st.floats(0, 0.03),
    rounds=st.integers(1, 4),
    ratio=st.floats(0.5, 1.0),
    minimum=st.integers(0, 12),
)
def test_the_answer_is_the_best_round_and_ends_in_time(
    scale: float,
    offset: float,
    least: float,
    noise: float,
    rounds: int,
    ratio: float,
    minimum: int,
) -> None:
    device = one(scale=scale, offset=offset, least=least, noise=noise)
    promise = Promise(rounds=rounds)
    try:
        selection = keep(device, LatencyGoal(ratio=ratio), promise=promise, minimum=minimum)
    except BudgetError as refused:
        assert "was measured to take" in str(refused)
        assert len(device.asked) <= 2 * rounds
        return
    found = selection.rounds
    assert 1 <= len(found) <= rounds and len(device.asked) <= 2 * rounds
    assert len({r.counts for r in found}) == len(found)
    assert selection.measured is not None and selection.counts.min() >= minimum
    met = [r for r in found if r.over <= promise.tolerance]
    if met:
        assert selection.measured in met
        assert selection.value == pytest.approx(max(best_value(r.counts) for r in met))
    else:
        assert selection.measured.over == min(r.over for r in found)
    assert selection.value == pytest.approx(OBJECTIVE.value(selection.kept))


def best_value(counts: tuple[int, ...]) -> float:
    """Of any keep-set with these counts."""
    saliences = np.sort(WEIGHTS.reshape(12, 12), axis=1)[:, ::-1]
    return float(sum(row[:k].sum() for row, k in zip(saliences, counts, strict=True)))


def test_what_met_the_limit_last_need_not_be_best() -> None:
    """A burst of other work in the second round makes the third one careful."""
    device = one(bursts=(0.95, 1.15, 0.95))
    selection = keep(device, RATIO)
    first, second, third = selection.rounds
    assert second.over > 0.01 > max(first.over, third.over)
    assert sum(first.counts) > sum(third.counts) and selection.measured == first


def test_two_models_of_almost_one_size_are_no_floor() -> None:
    device = one(bursts=(1.0, 1.02))
    profile, rounds = Profile(SPACE, device.tables), list[Round]()
    for ratio in (0.76, 0.745):
        goal = LatencyGoal(ratio=ratio)
        rounds += keep(device, goal, promise=Promise(rounds=1)).rounds
    assert rounds[0].goals["latency"].ratio == pytest.approx(rounds[1].goals["latency"].ratio, 0.01)
    assert rounds[0].counts != rounds[1].counts
    assert corrected(profile, rounds).latency["prefill"].least == 0


def test_if_none_meets_the_limit_the_answer_is_the_least_over() -> None:
    device = one(offset=0.002, speed=(1.0, 1.2, 1.3))
    selection = keep(device, LatencyGoal(seconds=0.0105))
    over = [r.over for r in selection.rounds]
    assert len(over) == 3 and selection.measured == selection.rounds[0]
    assert 0.1 < over[0] == min(over)


def test_of_the_rounds_that_met_the_limit_the_most_valuable_is_the_answer() -> None:
    """The table says too much, so that the first round gives quality away."""
    device = one(scale=0.8)
    selection = keep(device, LatencyGoal(seconds=0.007))
    first, second = selection.rounds
    assert first.over < -SLACK and -SLACK <= second.over <= 0.01
    assert selection.measured == second and sum(second.counts) > sum(first.counts)
    assert second.error == pytest.approx(0, abs=1e-6)  # the table was corrected
    assert selection.costs["latency"][0] == pytest.approx(second.goals["latency"].measured)


def test_a_slow_machine_is_no_error_of_the_table() -> None:
    device = one(offset=0.001, speed=(1.5, 1.0, 0.7))
    selection = keep(device, RATIO)
    assert abs(device.over(RATIO, selection.counts)) < SLACK
    assert [r.error > 0.3 for r in selection.rounds] == [True, False]
    first = selection.rounds[0].goals["latency"]
    assert first.limit == pytest.approx(0.75 * first.dense_measured)
    assert first.dense_error == pytest.approx(0.65)
    device = one(offset=0.002, speed=(1.0, 1.5, 0.8))
    rounds = keep(device, LatencyGoal(seconds=0.009)).rounds
    table = corrected(Profile(SPACE, device.tables), rounds).latency["prefill"]
    dense = device.truth("prefill", SPACE.units)
    assert len(rounds) == 3 and table.dense == pytest.approx(dense)
    for r in rounds:
        truth = device.truth("prefill", np.array(r.counts))
        assert table.predict(r.counts) == pytest.approx(truth)


@pytest.mark.parametrize(
    ("bursts", "times"),
    [
        ((1.05, 0.95), 2),
        ((1.05, 1.04), 3),
        ((1.05, 1.05, 1.05, 1.05), 3),
        ((1.15,), 1),
        ((1.005,), 1),
    ],
)
def test_noise_is_measured_again_before_it_is_believed(
    bursts: tuple[float, ...], times: int
) -> None:
    """What was measured counts too; and the more often it was, the less noise can excuse."""
    device = one(bursts=bursts, spread=0.08)
    selection = keep(device, RATIO, promise=Promise(rounds=1, repeats=7))
    assert [repeats for _, repeats in device.asked] == [7] * times
    assert len({counts for counts, _ in device.asked}) == 1
    (found,) = selection.rounds
    every = [*bursts, 1.0, 1.0][:times]
    truth = device.truth("prefill", selection.counts)
    assert found.repeats == 7 * times
    assert found.workloads["prefill"].measured == pytest.approx(np.mean(every) * truth)


def test_what_is_clear_is_measured_once() -> None:
    clear = one(offset=0.001)
    selection = keep(clear, RATIO, promise=Promise(rounds=1, repeats=7))
    assert [repeats for _, repeats in clear.asked] == [7]
    assert (
        selection.rounds[0].over == pytest.approx(clear.over(RATIO, selection.counts))
        and selection.rounds[0].over > 0.01
    )


def test_the_same_counts_are_not_measured_again() -> None:
    """Another limit binds, so that the time stays far below its own."""
    device = one()
    selection = keep(device, LatencyGoal(ratio=0.99), heads=30)
    assert len(selection.rounds) == len(device.asked) == 1
    assert selection.rounds[0].over < -0.2 and selection.kept.sum() == 30


def test_what_cannot_be_met_is_measured_before_it_is_said() -> None:
    device = one(offset=0.01)
    with pytest.raises(BudgetError) as refused:
        keep(device, LatencyGoal(ratio=0.7))
    assert [sum(counts) for counts, _ in device.asked][-1] == 12
    sentence = str(refused.value)
    assert "`latency` of at most 14 ms (0.700 of the unpruned time) cannot be met" in sentence
    assert (
        "with 1 unit per block, was measured to take 15.05 ms, 0.752 of the unpruned 20 ms"
        in sentence
    )
    assert "attention heads take only 30 % of this model's time" in sentence
    with pytest.raises(
        BudgetError, match="launching this model's operations alone takes that long"
    ):
        keep(one(least=0.008), RATIO)


def test_a_table_that_wrongly_says_unreachable_is_put_right() -> None:
    device = one(offset=-0.002, scale=1.3)
    selection = keep(device, LatencyGoal(ratio=0.4))
    assert selection.rounds[0].fastest and sum(selection.rounds[0].counts) == 12
    assert abs(device.over(LatencyGoal(ratio=0.4), selection.counts)) <= SLACK
    only = keep(one(offset=-0.002, scale=1.3), LatencyGoal(ratio=0.4), promise=Promise(rounds=1))
    cost, limit = only.costs["latency"]
    assert cost > limit == pytest.approx(0.004)  # by the table, which is wrong
    assert only.measured is not None and only.measured.over < 0


def test_a_hopeless_target_is_refused_before_long_work() -> None:
    def reach(device: Device, target: Target) -> Round | None:
        return Promise(repeats=7).reach(Profile(SPACE, device.tables), target, device)

    hopeless, fine = Target((LatencyGoal(ratio=0.4),)), Target((RATIO,))
    device = one()
    with pytest.raises(BudgetError, match=r"with 1 unit per block, was measured to take 5.05 ms"):
        reach(device, hopeless)
    assert device.asked == [((1,) * 12, 7)]
    only_the_table_is_hopeless = one(offset=-0.002, scale=1.3)
    floor = reach(only_the_table_is_hopeless, hopeless)
    assert floor is not None and floor.fastest and floor.over < 0
    for target in (fine, Target(heads=30)):
        assert reach(device, target) is None
    with pytest.raises(BudgetError, match="`units`"):
        reach(device, Target(heads=3))
    assert len(device.asked) == 1

    def after(rounds: int, device: Device) -> Selection:
        profile = Profile(SPACE, device.tables)
        promise = Promise(rounds=rounds)
        return promise.keep(CHOOSE, profile, hopeless, device, reached=floor)

    selection = after(1, only_the_table_is_hopeless)
    assert selection.rounds[0] == floor and -SLACK <= selection.rounds[1].over <= 0.01
    assert selection.measured == selection.rounds[1] and len(only_the_table_is_hopeless.asked) == 2
    slower_since = one(offset=-0.002, scale=1.3, bursts=(1.2,))
    fastest = after(1, slower_since)
    assert fastest.measured == floor  # the only one that met the limit
    assert fastest.costs["latency"].unit == "s"


@pytest.mark.parametrize(
    ("units", "reason"),
    [
        ([Unit.HEAD], "attention heads take only 55 % of .* removing them alone cannot"),
        ([Unit.NEURON_GROUP], "feed-forward neurons take only 55 % of .* removing them alone"),
        (
            [Unit.HEAD, Unit.NEURON_GROUP],
            "attention heads and feed-forward neurons take only 55 % of .* removing them cannot",
        ),
    ],
)
def test_a_refusal_names_the_kinds_of_blocks(units: list[Unit], reason: str) -> None:
    blocks = [Block(str(b), 12, units[b % len(units)]) for b in range(10)]
    space = HeadSpace(tuple(blocks))
    device = Device({"prefill": table(space, fixed=0.0041)})
    target = Target((LatencyGoal(ratio=0.3),))
    with pytest.raises(BudgetError, match=f"with 1 unit per block.*{reason}"):
        Promise().reach(Profile(space, device.tables), target, device)


def test_a_selection_has_the_orders_of_its_profile() -> None:
    """The tables are of both kinds and state no order; the profile is restricted to what is pruned."""
    order = tuple(reversed(range(24)))
    pruned = HeadSpace(tuple(Block(f"mlp.{b}", 12, Unit.NEURON_GROUP, order) for b in range(6)))
    heads = tuple(Block(f"attention.{b}", 12) for b in range(6))
    whole = HeadSpace(heads + pruned.blocks)
    measured = Profile(whole.unordered(), {"prefill": table(whole)})
    profile = measured.restricted(pruned)
    device = Device(profile.latency)
    values = Modular(WEIGHTS[: pruned.n])
    selection = Promise().keep(chooser(values, DynamicProgram()), profile, Target((RATIO,)), device)
    assert selection.space == pruned and selection.measured is not None
    assert -SLACK < selection.measured.over <= 0.01


def test_rounds_tell_the_tables_in_force() -> None:
    device = one(scale=0.8)
    selection = keep(device, LatencyGoal(seconds=0.007))
    profile = Profile(SPACE, device.tables)
    again = corrected(profile, selection.rounds[:1]).latency["prefill"]
    last = selection.rounds[-1].workloads["prefill"]
    assert again.predict(selection.counts) == pytest.approx(last.predicted)
    assert again.dense == pytest.approx(last.dense_predicted)


def test_other_limits_are_refused_as_what_they_are() -> None:
    device = one()
    with pytest.raises(BudgetError, match="`units`"):
        keep(device, LatencyGoal(ratio=0.1), heads=5)
    assert not device.asked


def test_several_goals_and_workloads() -> None:
    device = Device({"prefill": table(), "decode": table(fixed=0.002)}, scale=1.2, offset=0.0005)
    mix = LatencyGoal((("prefill", 1), ("decode", 200)), ratio=0.8)
    decode = LatencyGoal((("decode", 1),), seconds=0.008)
    selection = keep(device, mix, decode)
    assert max(device.over(mix, selection.counts), device.over(decode, selection.counts)) <= 0.01
    last = selection.rounds[-1]
    assert list(last.goals) == ["latency of prefill+200*decode", "latency of decode"]
    assert list(last.workloads) == ["prefill", "decode"]
    assert last.goals["latency of decode"] == replace(last.workloads["decode"], limit=0.008)
    whole = last.goals["latency of prefill+200*decode"]
    runs = [last.workloads[name].measured for name in ("prefill", "decode")]
    assert whole.measured == pytest.approx(runs[0] + 200 * runs[1])
    twice = keep(device, decode, replace(decode, seconds=0.0078))
    assert list(twice.rounds[0].goals) == list(twice.costs)


def test_errors() -> None:
    with pytest.raises(ValueError, match="`target` has no latency goal to verify"):
        keep(one(), heads=30)
    with pytest.raises(ValueError, match="`rounds` must be at least 1, got 0"):
        Promise(rounds=0)
    with pytest.raises(ValueError, match="`repeats` must be at least 1, got 0"):
        Promise(repeats=0)
    with pytest.raises(ValueError, match="`tolerance` must be a relative excess of at least 0"):
        Promise(tolerance=float("nan"))


def test_a_table_of_another_machine_is_named() -> None:
    facts = Provenance(device="GPU", dtype="bfloat16", batch=32, threads=8, sequence_length=128)
    tables = {"decode": facts}
    here = replace(facts, device="CPU", batch=1, threads=0)
    (sentence,) = foreign(tables, {"decode": here})
    assert "table of decode was measured with device GPU, batch 32, and is verified" in sentence
    assert "with device CPU, batch 1:" in sentence
    assert foreign(tables, {"decode": facts}) == foreign(tables, {"decode": Provenance()}) == []


def test_a_table_that_was_estimated_is_always_told() -> None:
    facts = Provenance(device="estimate for GPU", estimated=True)
    (sentence,) = foreign({"decode": facts}, {"decode": replace(facts, device="GPU")})
    assert "table of decode is an estimate for GPU, and is verified on GPU" in sentence
