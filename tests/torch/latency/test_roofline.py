"""Estimates: the arithmetic, the traffic and the launches of really sliced shapes, without weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from tiny_models import Family, few_groups, named

from cahp_opt.costs.hardware import Hardware
from cahp_opt.costs.provenance import Phase
from cahp_opt.space import Unit
from cahp_opt.torch import estimate_latency, find_attention, measure_hardware
from cahp_opt.torch.latency.operations import Operation, Operations
from cahp_opt.torch.latency.weightless import skeleton

ENDLESS = 1e30
ARITHMETIC = Hardware(
    name="slow at products",
    flops_per_second={"float32": 1.0},
    bytes_per_second=ENDLESS,
    launch_seconds=1 / ENDLESS,
)
TRAFFIC = replace(ARITHMETIC, flops_per_second={"float32": ENDLESS}, bytes_per_second=1.0)
LAUNCHES = replace(
    ARITHMETIC, flops_per_second={"float32": ENDLESS}, launch_seconds=1.0, runs_ahead=True
)
T5 = named("t5")
ONE: dict[str, Any] = {"num_hidden_layers": 1}
BOTH: dict[str, Any] = {"num_layers": 1, "num_decoder_layers": 1}
"""One layer, and one in each half."""


def seen(run: Callable[[], object]) -> list[Operation]:
    found: list[Operation] = []
    with torch.no_grad(), Operations(found.append):
        run()
    return found


def test_operations() -> None:
    a, b = torch.ones(2, 3), torch.ones(3, 5)
    assert seen(lambda: a @ b) == [Operation("mm", torch.float32, 60, 4 * (6 + 15 + 10))]
    assert seen(lambda: a.view(3, 2).t()[:1].expand(4, 3)) == []
    # An expanded axis is one entry, and a table is read only where it is looked up.
    assert seen(lambda: a + torch.ones(1).expand(2, 3))[-1].moved == 4 * (6 + 1 + 6)
    table, index = torch.ones(1000, 4), torch.tensor([1, 2])
    assert seen(lambda: torch.embedding(table, index))[0].moved == 4 * 8 * 2 + 16
    q, k = torch.ones(2, 4, 3, 8), torch.ones(2, 4, 5, 8)
    attention = seen(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k))
    assert sum(operation.flops for operation in attention) == 2 * 2 * 4 * 3 * 5 * 16


def test_arithmetic_of_every_count() -> None:
    model, batch = tiny_models.BERT.build(), tiny_models.batch(size=2, length=6)
    table = estimate_latency(model, batch, ARITHMETIC)
    per_unit = 2 * 12 * 4 * 32 * 8 + 2 * 2 * 6 * 6 * 16  # four projections, and attention
    for seconds in table.seconds:
        # Skipped without units; BERT's output projection, which lies outside, runs on zeros.
        skipped = 2 * 12 * 32 * 8
        np.testing.assert_allclose(seconds, [skipped, *(per_unit * k for k in range(1, 5))])
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    heads = {id(model.bert.pooler.dense), id(model.classifier)}  # on one token per example
    everything = sum(m.weight.numel() * 2 * (2 if id(m) in heads else 12) for m in linears)
    assert table.fixed == pytest.approx(everything - 3 * 4 * 2 * 12 * 4 * 32 * 8)
    assert table.least == 0 and table.provenance.estimated
    assert table.provenance.device == "estimate for slow at products"
    assert (table.provenance.batch, table.provenance.sequence_length) == (2, 6)
    assert any("was not measured" in remark for remark in table.remarks)


def test_traffic_grows_with_the_units() -> None:
    table = estimate_latency(tiny_models.GPT2.build(), tiny_models.batch(), TRAFFIC)
    assert all((np.diff(seconds[1:]) > 0).all() for seconds in table.seconds)


def test_launches_are_the_floor_where_they_run_ahead_and_are_added_elsewhere() -> None:
    model, batch = tiny_models.BERT.build(), tiny_models.batch()
    ahead = estimate_latency(model, batch, LAUNCHES)
    launches = len(seen(lambda: model(**batch)))
    assert ahead.least == pytest.approx(launches, abs=5)  # masks are made in another way
    assert ahead.dense == ahead.floor == ahead.least
    added = estimate_latency(model, batch, replace(LAUNCHES, runs_ahead=False))
    assert added.least == 0 and added.dense == pytest.approx(ahead.least)


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        (tiny_models.BERT, {"num_hidden_layers": 2}),
        (tiny_models.LLAMA_GQA, ONE),
        (T5, BOTH),
    ],
    ids=["bert", "llama-gqa", "t5"],
)
def test_models_without_weights_and_models_that_stay_as_they_are(
    family: Family, layers: dict[str, Any]
) -> None:
    model, batch = family.build(**layers), family.batch()
    model.train()
    before = dict(model.named_parameters())
    for phase in Phase if family.generates else (Phase.PREFILL,):
        table = estimate_latency(model, batch, TRAFFIC, phase=phase)
        bare = estimate_latency(skeleton(model), batch, TRAFFIC, phase=phase)
        assert bare.dense == table.dense and bare.provenance == table.provenance
        assert table.provenance.phase is phase
    assert all(p is before[name] for name, p in model.named_parameters())
    assert all(m.training and not m._forward_hooks for m in model.modules())


def test_decoding_takes_one_token_and_skips_the_encoder() -> None:
    model, batch = tiny_models.GPT2.build(), tiny_models.batch(size=2, length=7, padded=False)
    one = {"input_ids": batch["input_ids"]}
    table = estimate_latency(model, one, ARITHMETIC, phase=Phase.DECODE)
    per_unit = 2 * 2 * 4 * 32 * 8 + 2 * 2 * 1 * 8 * 16  # two tokens, and eight in the cache
    expected = [per_unit * k for k in range(5)]
    np.testing.assert_allclose(table.seconds[0], expected, atol=1e-20)
    encoder = estimate_latency(T5.build(**BOTH), T5.batch(), ARITHMETIC, phase=Phase.DECODE)
    idle = [b.name.startswith("encoder") for b in encoder.space.blocks]
    assert [not s.any() for s in encoder.seconds] == idle and any(idle)


def test_query_slots_and_shared_layers() -> None:
    family = tiny_models.LLAMA_GQA
    model, batch = family.build(), family.batch()
    table = estimate_latency(model, batch, ARITHMETIC, unit=Unit.QUERY_SLOT)
    assert table.space == find_attention(model, unit=Unit.QUERY_SLOT).space
    albert = named("albert")
    shared = estimate_latency(albert.build(), albert.batch(), ARITHMETIC)
    bert = estimate_latency(tiny_models.BERT.build(), albert.batch(), ARITHMETIC)
    # One block that runs thrice; it adds a norm too, so that without units it runs with one.
    expected = 3 * bert.seconds[0][[1, 1, 2, 3, 4]]
    np.testing.assert_allclose(shared.seconds[0], expected)


def test_refusals() -> None:
    model, batch = tiny_models.BERT.build(), tiny_models.batch()
    with pytest.raises(ValueError, match=r"has rates for \['float32'\].*is in float16"):
        estimate_latency(model.half(), batch, ARITHMETIC)
    experts = named("gpt-oss")
    with pytest.raises(ValueError, match="whose forward depends on values"):
        estimate_latency(experts.build(), experts.batch(), ARITHMETIC)
    with pytest.raises(ValueError, match="fills no key/value cache"):
        estimate_latency(model.float(), batch, ARITHMETIC, phase=Phase.DECODE)


def test_measured_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cahp_opt.torch.latency.peak_rates._SIDE", {"cpu": 32})
    monkeypatch.setattr("cahp_opt.torch.latency.peak_rates._COPIED", 2**12)
    monkeypatch.setattr("cahp_opt.torch.latency.peak_rates._RUNS", 2)
    found = measure_hardware("cpu", torch.float32, torch.bfloat16)
    assert list(found.flops_per_second) == ["float32", "bfloat16"]
    assert found.name and not found.runs_ahead
    assert 1e-8 < found.launch_seconds < 1e-2
    with pytest.raises(ValueError, match="`dtypes` is empty"):
        measure_hardware("cpu")


def test_devices_that_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="`device` is meta, where nothing can be timed"):
        measure_hardware("meta", torch.float32)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="`device` cuda cannot be used here"):
            measure_hardware("cuda", torch.float32)


@pytest.mark.parametrize("length", (6, 12))
def test_work_per_second_is_what_was_measured(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """With a clock that every run moves by a second, rates are the work itself."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(
        "cahp_opt.torch.latency.peak_rates.time.perf_counter", lambda: float(next(ticks))
    )
    monkeypatch.setattr("cahp_opt.torch.latency.peak_rates._SIDE", {"cpu": length})
    monkeypatch.setattr("cahp_opt.torch.latency.peak_rates._COPIED", 2**12)
    monkeypatch.setattr("cahp_opt.torch.latency.peak_rates._RUNS", 2)
    found = measure_hardware("cpu", torch.float32)
    assert found.flops_per_second == {"float32": 2 * length**3}
    assert found.bytes_per_second == 2**13
    assert found.launch_seconds == pytest.approx(1 / 60)  # twenty times three tiny layers


@pytest.mark.parametrize(
    ("name", "layers"),
    [("bert", {"num_hidden_layers": 2}), ("llama-gqa", ONE), ("opt", ONE), ("t5", BOTH)],
    ids=["bert", "llama-gqa", "opt", "t5"],
)
def test_feed_forward_blocks(name: str, layers: dict[str, Any]) -> None:
    """Their arithmetic is that of their layers, whatever modules these lie in; without groups they are skipped."""
    family = named(name)
    prunable, batch = few_groups(family.build(**layers)), family.batch()
    table = estimate_latency(prunable, batch, ARITHMETIC)
    assert table.space == prunable.space.unordered()
    for block, seconds in zip(prunable, table.seconds, strict=True):
        if not block.unit.of_attention:
            steps = np.diff(seconds)
            np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
            assert seconds[0] < 1e-15 < seconds[1]
    heads = estimate_latency(prunable.model, batch, ARITHMETIC)
    attention = [s for s, own in zip(table.seconds, table.space.of_attention, strict=True) if own]
    np.testing.assert_allclose(attention, heads.seconds, rtol=1e-6)
    assert table.dense == pytest.approx(heads.dense) and table.fixed < heads.fixed
