"""Statistics of feed-forward neurons: what stands in them, and the order that they give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_models
from batches_by_hand import assert_same, collate, texts, trace

from cahp_opt.objectives import (
    Complementarity,
    ExplainedVariance,
    FacilityLocation,
    Modular,
    Quadratic,
)
from cahp_opt.runs.measuring import Measuring, MeasuringOptions
from cahp_opt.space import HeadSpace
from cahp_opt.stats.neuron_order import in_order_of_price
from cahp_opt.torch import calibrate, find_prunable, head_mask, order_neurons
from cahp_opt.torch.blocks.blocks import out_weight
from cahp_opt.torch.pipeline.calibrating import calibrate_kinds

BATCHES = [collate(texts())]


def test_neurons_are_measured_in_their_groups_and_order() -> None:
    model = tiny_models.LLAMA_GQA.build().double()
    prunable = find_prunable(model, neuron_group=8)
    seen = calibrate(prunable, BATCHES, sensitivity_examples=100)
    ordered = order_neurons(prunable, BATCHES, sensitivity_examples=100)
    assert [b.order for b in ordered.feed_forward] != [b.order for b in prunable.feed_forward]
    again = calibrate(ordered, BATCHES, sensitivity_examples=100).without(
        "salience", "gauss_newton"
    )
    assert_same(in_order_of_price(seen.without("salience", "gauss_newton")), again, rtol=1e-9)
    for block, moments, weighted in zip(ordered, again.moments, again.sensitivity, strict=True):
        order = np.argsort(block.columns, kind="stable")
        weight = out_weight(block).detach().numpy()[:, order]
        np.testing.assert_allclose(moments.readout, weight.T @ weight, atol=1e-12)
        assert moments.form.width == weighted.form.width == block.width


def test_gates_on_groups_are_those_of_their_neurons() -> None:
    """A unit's gauss-newton and salience are about what its gate moves, and blocks keep their places."""
    model = tiny_models.BERT.build().double()
    prunable = order_neurons(find_prunable(model, neuron_group=8), BATCHES)
    assert order_neurons(model, BATCHES).space == order_neurons(find_prunable(model), BATCHES).space
    before = trace(model)
    stats = calibrate(prunable, BATCHES)
    assert trace(model) == before
    assert stats.space == prunable.space and stats.salience.sum.shape == (prunable.space.n,)
    for objective in (Modular.from_stats(stats), Quadratic.from_stats(stats)):
        assert objective.n == prunable.space.n
    assert stats.salience.sum.min() > 0
    with head_mask(prunable, np.ones(prunable.space.n, dtype=np.bool_)):
        assert_same(calibrate(prunable, BATCHES), stats)


@pytest.mark.parametrize("examples", [0, 2, None])
def test_the_first_groups_are_worth_most(examples: int | None) -> None:
    prunable = find_prunable(tiny_models.BERT.build().double(), heads=False, neuron_group=8)
    ordered = order_neurons(prunable, BATCHES, sensitivity_examples=examples)
    stats = calibrate(ordered, BATCHES, sensitivity_examples=100 if examples is None else examples)
    make = ExplainedVariance.from_sensitivity if examples != 0 else ExplainedVariance.from_stats
    objective = make(stats)
    for where in ordered.space.slices:
        first, last = np.zeros((2, ordered.space.n), dtype=np.bool_)
        first[where.start], last[where.stop - 1] = True, True
        assert objective.value(first) > objective.value(last)


def test_where_nothing_is_refitted_neurons_stand_by_what_is_lost_without_them() -> None:
    """The sensitivity decides, although salience alone is asked for."""
    whole = find_prunable(tiny_models.BERT.build().double(), neuron_group=8)
    spaces = list[HeadSpace]()
    for refitted in (False, True):
        measuring = Measuring(frozenset({"salience"}), refitted=refitted)
        spaces.append(calibrate_kinds(whole, BATCHES, measuring).stats.space)
    stats = calibrate(whole, BATCHES, sensitivity_examples=2048).without("salience", "gauss_newton")
    assert spaces[0] == in_order_of_price(stats, refitted=False).space
    assert spaces[1] == in_order_of_price(stats.without("sensitivity")).space != spaces[0]
    ordered = order_neurons(whole, BATCHES, sensitivity_examples=2048, refitted=False)
    assert ordered.space == spaces[0]


def test_neurons_stand_by_the_moments_where_the_sensitivity_is_that_of_no_examples() -> None:
    whole = find_prunable(tiny_models.BERT.build().double(), neuron_group=8)
    measuring = Measuring(
        frozenset({"salience"}), MeasuringOptions(sensitivity_examples=0), refitted=False
    )
    found = calibrate_kinds(whole, BATCHES, measuring).stats
    stats = calibrate(whole, BATCHES, sensitivity_examples=0).without("salience", "gauss_newton")
    assert found.space == in_order_of_price(stats, refitted=False).space


def test_attention_alone_has_no_neurons_to_order() -> None:
    prunable = find_prunable(tiny_models.BERT.build(), neurons=False)
    assert order_neurons(prunable, BATCHES) is prunable


@pytest.mark.parametrize("option", [{"divergence_examples": 2}, {"signature_size": 2}], ids=str)
def test_attention_maps_of_feed_forward_parts_are_refused_before_the_first_batch(
    option: dict[str, Any],
) -> None:
    prunable = find_prunable(tiny_models.BERT.build(), neuron_group=8)
    with pytest.raises(
        ValueError, match=r"attention maps, which feed-forward parts such as.*heads"
    ):
        calibrate(prunable, iter(()), **option)


@pytest.mark.parametrize(
    "make",
    [FacilityLocation.from_stats, FacilityLocation.from_signatures, Complementarity.from_stats],
)
def test_objectives_of_attention_maps_refuse_feed_forward_parts(
    make: Callable[..., object],
) -> None:
    stats = calibrate(find_prunable(tiny_models.BERT.build(), neuron_group=8), BATCHES)
    with pytest.raises(ValueError, match=r"no attention maps to compare.*--prune heads"):
        make(stats)
