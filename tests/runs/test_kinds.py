"""What decides which kinds of blocks are pruned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cahp_opt import Block, HeadSpace, Profile, ResourceTable, Target, Unit
from cahp_opt.costs.goals import LatencyGoal, ResourceGoal
from cahp_opt.costs.prune import Prune
from cahp_opt.runs.kinds import KindOptions, Kinds, MeasuredKinds
from cahp_opt.runs.names import ObjectiveName, SolverName

TIME, CACHE = LatencyGoal.parse("0.7"), ResourceGoal("kv_cache", ratio=0.5)
WEIGHTS = ResourceGoal("parameters", ratio=0.5)
MAPS = ObjectiveName.FACILITY_LOCATION


def profile(*units: Unit) -> Profile:
    space = HeadSpace(tuple(Block(unit.value, 2, unit) for unit in units))
    return Profile(
        space, {}, {"parameters": ResourceTable(space, 1, (np.arange(3.0),) * len(units))}
    )


@pytest.mark.parametrize(
    ("target", "given", "kinds", "why"),
    [
        (Target((TIME,)), {}, Prune.BOTH, "both count for `--latency 0.7`"),
        (Target((CACHE, WEIGHTS)), {}, Prune.BOTH, "both count for `--parameters 0.5`"),
        (Target((TIME,), heads=5), {}, Prune.BOTH, "both count for `--latency 0.7`"),
        (Target(heads=5), {}, Prune.HEADS, "`--heads 5` limits them"),
        (Target(maximum=5), {}, Prune.HEADS, "`--maximum 5` limits them"),
        (Target((CACHE,)), {}, Prune.HEADS, "`--kv-cache 0.5` limits them"),
        (Target(neurons=0.5), {}, Prune.NEURONS, "`--neurons 0.5` limits them"),
        (
            Target(heads=5, neurons=0.5),
            {},
            Prune.BOTH,
            "`--heads 5` and `--neurons 0.5` limit them",
        ),
        (
            Target((TIME,)),
            {"objective": MAPS},
            Prune.HEADS,
            "`--objective facility-location` compares attention maps",
        ),
        (
            Target((TIME,)),
            {"solver": SolverName("cahp")},
            Prune.HEADS,
            "`--solver cahp` compares attention maps",
        ),
        (Target((TIME,)), {"objective": ObjectiveName.GAUSS_NEWTON}, Prune.BOTH, None),
        (Target((TIME,)), {"profile": profile(Unit.HEAD, Unit.NEURON_GROUP)}, Prune.BOTH, None),
        (
            Target((TIME,)),
            {"profile": profile(Unit.HEAD)},
            Prune.HEADS,
            "the latency table holds nothing else",
        ),
    ],
)
def test_what_is_limited_decides(
    target: Target, given: dict[str, Any], kinds: Prune, why: str | None
) -> None:
    found = KindOptions().chosen(target, **given)
    assert found.prune is kinds and not found.asked
    if why is not None:
        assert found.why == why and found.sentence.endswith(f", because {why}")


@pytest.mark.parametrize("asked", list(Prune))
def test_what_is_asked_for_needs_no_reason(asked: Prune) -> None:
    found = KindOptions(asked, 64).chosen(Target((TIME,)))
    assert found == Kinds(asked, neuron_group=64) and found.asked
    assert "because" not in found.sentence
    assert MeasuredKinds(asked, 64).measured() == found


@pytest.mark.parametrize(
    ("asked", "target", "given", "parts"),
    [
        (Prune.NEURONS, Target(heads=5), {}, ("--heads 5", "--prune neurons")),
        (Prune.NEURONS, Target((TIME, CACHE)), {}, ("--kv-cache 0.5", "--prune neurons")),
        (Prune.HEADS, Target((TIME,), neurons=0.5), {}, ("--neurons 0.5", "--prune heads")),
        (Prune.BOTH, Target((TIME,)), {"objective": MAPS}, ("facility-location", "--prune both")),
    ],
)
def test_contradictions_are_refused(
    asked: Prune, target: Target, given: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="leave out one or the other") as refusal:
        KindOptions(asked).chosen(target, **given)
    assert all(part in str(refusal.value) for part in parts)


def test_both_kinds_are_measured_unless_maps_are_compared() -> None:
    assert MeasuredKinds().measured().prune is Prune.BOTH
    assert MeasuredKinds().measured("--signature-size").prune is Prune.HEADS
    assert MeasuredKinds(Prune.HEADS).measured("--signature-size").asked
    with pytest.raises(ValueError, match="`--signature-size` compares attention maps"):
        MeasuredKinds(Prune.BOTH).measured("--signature-size")
    both = Kinds(Prune.BOTH, "of a reason")
    assert both.without_neurons("of another") == replace(both, prune=Prune.HEADS, why="of another")
