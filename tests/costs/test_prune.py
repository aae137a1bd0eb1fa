"""Which kinds of blocks a target is about."""

from __future__ import annotations

import pytest

from cahp_opt import HeadSpace, LatencyGoal, ResourceGoal, Target, Unit
from cahp_opt.costs.prune import Prune

HALF = LatencyGoal(ratio=0.5)
CACHE = ResourceGoal("kv_cache", 0.5)


@pytest.mark.parametrize(
    ("target", "prune"),
    [
        (Target((HALF,)), Prune.BOTH),
        (Target((ResourceGoal("parameters", 0.5),), heads=3), Prune.BOTH),
        (Target((CACHE, ResourceGoal("memory", 0.5))), Prune.BOTH),
        (Target((CACHE,)), Prune.HEADS),
        (Target(heads=3), Prune.HEADS),
        (Target(maximum=3), Prune.HEADS),
        (Target(neurons=0.5), Prune.NEURONS),
        (Target(neurons=0.5, heads=3), Prune.BOTH),
        (Target((CACHE,), neurons=0.5), Prune.BOTH),
        (Target(), Prune.BOTH),
    ],
)
def test_a_target_says_what_its_limits_are_about(target: Target, prune: Prune) -> None:
    assert target.prune is prune


@pytest.mark.parametrize(
    "units", [[Unit.HEAD], [Unit.NEURON_GROUP], [Unit.NEURON_GROUP, Unit.HEAD]]
)
def test_the_kinds_in_a_space(units: list[Unit]) -> None:
    found = Prune.in_space(HeadSpace(tuple((unit.value, 2, unit) for unit in units)))  # type: ignore[misc]
    assert (found.heads, found.neurons) == (Unit.HEAD in units, Unit.NEURON_GROUP in units)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
def test_a_share_of_neurons_is_a_ratio(share: float) -> None:
    with pytest.raises(ValueError, match="`neurons` must be a share of the feed-forward neurons"):
        Target(neurons=share)
