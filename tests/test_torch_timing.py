"""Timing: the right points are measured, on sliced weights, and the arithmetic around them is right."""

from __future__ import annotations

import platform
from collections.abc import Callable

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn

from cahp_opt.latency import LatencyTable, Phase
from cahp_opt.torch.attention import find_attention
from cahp_opt.torch.slicing import slice_heads
from cahp_opt.torch.stopwatch import interleaved
from cahp_opt.torch.timing import Timing, measure_latency, time_models

CPU = torch.device("cpu")
FAMILIES = (tiny_models.BERT, tiny_models.MPNET, tiny_models.GPT2, tiny_models.LLAMA_GQA)


class Clock:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: list[float]) -> Callable[[], None]:
        remaining = list(seconds)

        def run() -> None:
            self.now += remaining.pop(0)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("cahp_opt.torch.stopwatch.time.perf_counter", made)
    return made


def test_low_quantile_and_spread(clock: Clock) -> None:
    work = {"a": clock.work([9, 9, 1, 2, 3, 4, 5, 6]), "b": clock.work([0, 0, *[2.0] * 6])}
    timings = interleaved(work, device=CPU, repeats=6)
    assert timings["a"] == Timing(2.0, 3.5, 0.75)  # the 0.2 quantile of 1..6
    assert timings["b"] == Timing(2.0, 2.0, 0.0)


def test_rounds_are_interleaved_shuffled_and_repeatable() -> None:
    def order() -> str:
        seen: list[str] = []
        work = {name: (lambda name=name: seen.append(name)) for name in "abcd"}
        rounds: list[int] = []
        interleaved(
            work, device=CPU, repeats=5, warm_up=1, progress=lambda *where: rounds.append(where[1])
        )
        assert rounds == [1, 2, 3, 4, 5]
        return "".join(seen)

    runs = order()
    rounds = [runs[i : i + 4] for i in range(4, 24, 4)]
    assert runs == order() and all(sorted(r) == list("abcd") for r in rounds)
    assert len(set(rounds)) > 1


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_table_of_a_model(family: tiny_models.Family) -> None:
    model, batch = family.build(), tiny_models.batch(size=2, length=6)
    model.train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    stages: list[str] = []
    table = measure_latency(
        model, batch, repeats=2, progress=lambda stage, *_: stages.append(stage)
    )
    assert table.space == find_attention(model).space
    assert all(len(s) == 5 and (s > 0).all() for s in table.seconds)
    assert table.fixed >= 0 and table.floor <= table.dense
    assert stages == ["time models"] * 2 + ["time blocks"] * 4
    facts = table.provenance
    assert (facts.batch, facts.sequence_length, facts.dtype) == (2, 6, "float32")
    assert facts.phase is Phase.PREFILL and facts.repeats == 2 and facts.device
    assert facts.threads == torch.get_num_threads()
    assert facts.attention in ("sdpa", "eager")
    assert facts.versions["python"] == platform.python_version()
    assert facts.spread >= 0 and facts.error >= 0
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    assert all(m.training and not m._forward_pre_hooks for m in model.modules())


def test_blocks_that_are_alike_share_one_measurement() -> None:
    model, batch = tiny_models.BERT.build(), tiny_models.batch(size=2, length=6)
    table = measure_latency(model, batch, repeats=1)
    np.testing.assert_array_equal(table.seconds[0], table.seconds[1])
    space = find_attention(model).space
    kept = np.ones(space.n, dtype=np.bool_)
    kept[:2] = False
    ragged = measure_latency(slice_heads(model, kept), batch, repeats=1)
    assert [len(s) for s in ragged.seconds] == [3, 5, 5]
    np.testing.assert_array_equal(ragged.seconds[1], ragged.seconds[2])


def test_really_sliced_weights_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts the weights that ran, the table is exact and additive."""
    model, batch = tiny_models.BERT.build(), tiny_models.batch(size=2, length=6)
    clock = Clock()
    monkeypatch.setattr("cahp_opt.torch.stopwatch.time.perf_counter", clock)
    plain = nn.Linear.forward

    def counted(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        clock.now += self.weight.numel()
        return plain(self, x)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    table = measure_latency(model, batch, repeats=1)
    per_unit = 4 * 32 * 8
    expected = [
        per_unit,
        *(k * per_unit for k in range(1, 5)),
    ]  # nothing kept is stored as one unit
    for seconds in table.seconds:
        np.testing.assert_allclose(seconds, expected, rtol=1e-6)
    attention = 3 * 4 * per_unit
    everything = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    assert table.fixed == pytest.approx(everything - attention)
    assert table.provenance.error < 1e-6 and table.provenance.spread == 0


def test_table_survives_its_file(tmp_path: object) -> None:
    table = measure_latency(
        tiny_models.GPT2.build(), tiny_models.batch(size=1, length=4), repeats=1
    )
    path = f"{tmp_path}/table.json"
    table.save(path)
    assert LatencyTable.load(path).provenance == table.provenance


def test_time_models_times_them_all() -> None:
    dense = tiny_models.BERT.build().train()
    batch = {**tiny_models.batch(), "labels": torch.zeros(3, dtype=torch.long)}
    timings = time_models({"dense": dense, "other": tiny_models.BERT.build()}, batch, repeats=3)
    assert list(timings) == ["dense", "other"]
    assert all(0 < t.seconds <= t.median and t.spread >= 0 for t in timings.values())
    assert dense.training


def test_models_of_ones_own_and_labels_alone() -> None:
    """A wrapper that knows no cache, whatever its configuration says; and what T5 makes of labels."""

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_models.LLAMA_GQA.build()
            self.config = self.inner.config

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(input_ids, attention_mask, use_cache=False).logits
            return logits

    assert measure_latency(Wrapper(), tiny_models.batch(), repeats=1).fixed >= 0
    model = next(family for family in tiny_models.BUILDS if family.name == "t5").build()
    ids = tiny_models.batch()["input_ids"]
    assert measure_latency(model, {"input_ids": ids, "labels": ids}, repeats=1).fixed >= 0


def test_errors() -> None:
    model, batch = tiny_models.BERT.build(), tiny_models.batch()
    with pytest.raises(ValueError, match="`repeats` must be at least 1, got 0"):
        measure_latency(model, batch, repeats=0)
    with pytest.raises(ValueError, match="`repeats` must be at least 1, got 0"):
        time_models({"a": model}, batch, repeats=0)
    with pytest.raises(ValueError, match="`models` is empty"):
        time_models({}, batch)
    with pytest.raises(ValueError, match="`batch` has no tensor among"):
        measure_latency(model, {})
    empty = {"input_ids": torch.ones(0, 3, dtype=torch.long)}
    with pytest.raises(ValueError, match="`batch` holds no examples"):
        measure_latency(model, empty)
