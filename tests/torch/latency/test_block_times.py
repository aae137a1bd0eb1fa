"""Timing: the right points are measured, on sliced weights, and the arithmetic around them is right."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import torch.nn.functional as F
from torch import nn

from cahp_opt.costs.latency_table import LatencyTable
from cahp_opt.costs.provenance import Execution, Phase
from cahp_opt.files.records import RecordError
from cahp_opt.torch.blocks.blocks import FeedForwardBlock
from cahp_opt.torch.blocks.finder import find_attention, find_prunable
from cahp_opt.torch.latency import block_times, stopwatch
from cahp_opt.torch.latency.block_parts import parts, watched
from cahp_opt.torch.latency.block_times import Timing, measure_latency
from cahp_opt.torch.latency.decoding_step import decoding_step
from cahp_opt.torch.latency.exact_counts import count_resources
from cahp_opt.torch.latency.execution import ExecutionError
from cahp_opt.torch.latency.model_times import time_models
from cahp_opt.torch.latency.stopwatch import Work, interleaved, timings
from cahp_opt.torch.latency.timing_log import SampleFile
from cahp_opt.torch.slicing.slicing import slice_heads

CPU = torch.device("cpu")
FAMILIES = (tiny_models.BERT, tiny_models.MPNET, tiny_models.GPT2, tiny_models.LLAMA_GQA)


class Clock:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def work(self, seconds: list[float]) -> Callable[[], None]:
        remaining = list(seconds)

        def run() -> None:
            self.now += remaining.pop(0)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("cahp_opt.torch.latency.stopwatch.time.perf_counter", made)
    return made


def test_low_quantile_and_spread(clock: Clock) -> None:
    work = {
        "a": Work(clock.work([9, 9, 1, 2, 3, 4, 5, 6])),
        "b": Work(clock.work([0, 0, *[2.0] * 6]), before=lambda: clock.wait(5)),
    }
    timings = interleaved(work, device=CPU, repeats=6)
    assert timings["a"] == Timing(2.0, 3.5, 0.75)  # the 0.2 quantile of 1..6
    assert timings["b"] == Timing(2.0, 2.0, 0.0)


def test_other_devices_are_waited_for(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is told to them in no time, and takes a while."""
    told: list[float] = []

    def synchronize() -> None:
        clock.wait(sum(told))
        told.clear()

    monkeypatch.setattr("torch.mps.synchronize", synchronize)
    work = {"a": Work(lambda: told.append(2.0), before=lambda: told.append(5.0))}
    assert interleaved(work, device=torch.device("mps"), repeats=2)["a"].seconds == 2.0


def test_the_pace_of_the_machine_is_taken_out() -> None:
    """A machine that is 1.8 times slower in most rounds, and interrupts single runs."""
    rng = np.random.default_rng(0)
    truth = np.linspace(1.0, 2.0, 9)
    pace = np.where(rng.random(30) < 0.8, 1.8, 1.0) * rng.uniform(1, 1.05, 30)
    jitter = rng.uniform(1, 1.02, (9, 30)) * np.where(rng.random((9, 30)) < 0.1, 2.0, 1.0)
    seconds = truth[:, None] * pace * jitter
    found = np.array([t.seconds for t in timings(seconds)])
    plain = np.quantile(seconds, 0.2, axis=1)
    np.testing.assert_allclose(found / found[0], truth / truth[0], rtol=0.01)
    assert np.abs(plain / plain[0] / truth - 1).max() > 0.1  # what it would be without
    same = timings(np.full((9, 4), 3.0))
    assert same == [Timing(3.0, 3.0, 0.0)] * 9


def test_rounds_are_interleaved_shuffled_and_repeatable() -> None:
    def order() -> str:
        seen: list[str] = []
        work = {name: Work(functools.partial(seen.append, name)) for name in "abcd"}
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
    assert stages == ["time models"] * 2 + ["time blocks"] * 4 + ["time again"]
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


def count_weights(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Make a second pass for every weight that a linear layer uses."""
    plain = nn.Linear.forward

    def counted(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        clock.now += self.weight.numel()
        return plain(self, x)

    monkeypatch.setattr(nn.Linear, "forward", counted)


def test_really_sliced_weights_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts the weights that ran, the table is exact and additive."""
    model, batch = tiny_models.BERT.build(), tiny_models.batch(size=2, length=6)
    clock = Clock()
    monkeypatch.setattr("cahp_opt.torch.latency.stopwatch.time.perf_counter", clock)
    count_weights(monkeypatch, clock)
    table = measure_latency(model, batch, repeats=1)
    per_unit = 4 * 32 * 8
    # Without units attention is skipped; BERT's output projection, which lies outside, runs on zeros.
    expected = [per_unit / 4, *(k * per_unit for k in range(1, 5))]
    for seconds in table.seconds:
        np.testing.assert_allclose(seconds, expected, rtol=1e-6)
    attention = 3 * 4 * per_unit
    everything = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    assert table.fixed == pytest.approx(everything - attention)
    assert table.provenance.error < 1e-6 and table.provenance.spread == 0


@pytest.mark.parametrize("name", ["bert", "llama-gqa", "opt", "t5", "clip", "modernbert"])
def test_feed_forward_blocks_are_timed_part_by_part(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whether they are one module, two beside each other, or layers that lie bare in a larger one."""
    family = tiny_models.named(name)
    model, batch = family.build(), family.batch()
    clock = Clock()
    monkeypatch.setattr("cahp_opt.torch.latency.stopwatch.time.perf_counter", clock)
    count_weights(monkeypatch, clock)
    prunable = tiny_models.few_groups(model)
    table = measure_latency(prunable, batch, repeats=1)
    assert table.space == prunable.space.unordered()
    for block, seconds in zip(prunable, table.seconds, strict=True):
        if isinstance(block, FeedForwardBlock):
            weights = sum(m.get_parameter("weight").numel() for m in (*block.ins, block.out))
            counts = np.arange(block.units + 1)
            np.testing.assert_allclose(seconds, weights * counts / block.units, rtol=1e-6)
    blocks = sum(seconds[-1] for seconds in table.seconds)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert table.dense == pytest.approx(sum(m.weight.numel() for m in linear))
    assert table.fixed == pytest.approx(table.dense - blocks)
    assert table.provenance.error < 1e-6


@pytest.mark.parametrize("heads", [True, False])
def test_what_runs_between_bare_layers_is_timed_too(heads: bool) -> None:
    """OPT's activation is a module beside its two layers; and attention beside them is not timed with them, be it
    a block or not."""
    prunable = find_prunable(tiny_models.named("opt").build(), heads=heads)
    block = prunable.feed_forward[0]
    assert {"fc1", "fc2", "activation_fn"} <= watched(prunable, block).keys()
    called = ["self_attn_layer_norm", "fc1", "activation_fn", "fc2"]
    assert parts(prunable, block, called) == ("fc1", "fc2", "activation_fn")
    assert parts(prunable, block, ["fc1"]) == ()
    assert parts(prunable, block, ["", *called]) == ("fc1", "fc2", "activation_fn")
    assert "" not in watched(prunable, block)
    shared = [*called, "dropout", *called]  # a second layer with the same weights
    assert parts(prunable, block, shared) == ("fc1", "fc2", "activation_fn")
    bert = find_prunable(tiny_models.BERT.build(), heads=heads)
    inside = ["intermediate", "intermediate.dense", "intermediate.intermediate_act_fn"]
    called = [*inside, "output", "output.dense", "output.dropout"]
    assert "" not in watched(bert, bert.feed_forward[0])
    assert parts(bert, bert.feed_forward[0], called) == ("intermediate", "output")


def test_a_module_that_runs_elsewhere_too_is_no_run_of_the_block() -> None:
    """One activation between the layers and again behind them."""
    model: Any = tiny_models.named("opt").build()
    for layer in model.model.decoder.layers:
        layer.fc2.register_forward_hook(lambda _, args, out, f=layer.activation_fn: f(out))
    prunable, runs = find_prunable(model), tiny_models.batch(size=2, length=6)
    _, _, times = block_times._alike(prunable, runs, Phase.PREFILL, Execution.EAGER)
    assert times == [1] * len(prunable)


def test_feed_forward_blocks_that_are_alike_share_one_measurement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds: list[set[object]] = []
    timed = stopwatch.interleaved

    def listen(work: Any, **options: Any) -> Any:
        kinds.append(set(work))
        return timed(work, **options)

    monkeypatch.setattr("cahp_opt.torch.latency.block_times.interleaved", listen)
    prunable = tiny_models.few_groups(tiny_models.BERT.build())
    measure_latency(prunable, tiny_models.batch(size=2, length=6), repeats=1)
    wholes, blocks, _ = kinds
    first, second = (next(iter(found)) for found in (prunable.attention, prunable.feed_forward))
    points = {(0, k) for k in range(first.units + 1)} | {(1, k) for k in range(second.units + 1)}
    assert blocks == points
    assert {"few heads", "few neurons"} < wholes


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
    model = tiny_models.named("t5").build()
    ids = tiny_models.batch()["input_ids"]
    assert measure_latency(model, {"input_ids": ids, "labels": ids}, repeats=1).fixed >= 0


def test_models_never_run_in_inference_mode() -> None:
    """What their code remembers from it, as BEiT does for the whole process, could not be differentiated."""
    model, batch = tiny_models.GPT2.build().eval(), tiny_models.batch()
    runs: list[bool] = []
    model.register_forward_pre_hook(lambda *_: runs.append(torch.is_inference_mode_enabled()))
    for work in (
        lambda: measure_latency(model, batch, repeats=1),
        lambda: time_models({"one": model}, batch, repeats=1),
        lambda: time_models({"one": model}, batch, phase=Phase.DECODE, repeats=1),
        lambda: decoding_step(model, batch),
        lambda: count_resources(model, batch),
    ):
        runs.clear()
        work()
        assert runs and not any(runs)


DECODERS = [f for f in tiny_models.BUILDS if f.generates]


@pytest.mark.parametrize("family", DECODERS, ids=lambda f: f.name)
def test_a_decoding_step_is_the_next_token(family: tiny_models.Family) -> None:
    """It gives what a forward pass over the whole text gives for its last token, however often it runs."""
    model, batch = family.build().eval(), dict(family.batch(padded=False))
    name = "decoder_input_ids" if "decoder_input_ids" in batch else "input_ids"
    batch.setdefault(name, torch.randint(3, 90, (2, 5)))
    kept = tiny_models.uneven(find_attention(model).space, empty=None)
    small = slice_heads(model, kept, batch=batch)
    with torch.inference_mode():
        piece = decoding_step(small, batch)
        longer = {
            key: torch.cat([value, value[:, -1:]], dim=1)
            if key == name or key == name.replace("input_ids", "attention_mask")
            else value
            for key, value in batch.items()
        }
        expected = small(**longer).logits[:, -1]
        assert piece.before is not None
        for _ in range(3):
            piece.before()
            result: Any = piece.run()
            torch.testing.assert_close(result.logits[:, -1], expected, atol=1e-5, rtol=1e-4)


def test_decoding_is_timed_on_really_sliced_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_models.LLAMA_GQA.build(), tiny_models.batch(size=2, length=6)
    clock = Clock()
    monkeypatch.setattr("cahp_opt.torch.latency.stopwatch.time.perf_counter", clock)
    count_weights(monkeypatch, clock)
    lengths: list[int] = []
    plain = F.scaled_dot_product_attention

    def attention(query: torch.Tensor, key: torch.Tensor, *rest: Any, **kw: Any) -> torch.Tensor:
        lengths.append(key.shape[-2])
        return plain(query, key, *rest, **kw)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    table = measure_latency(model, batch, phase=Phase.DECODE, repeats=2)
    assert table.provenance.phase is Phase.DECODE and table.provenance.sequence_length == 6
    # Filling the cache, then every step against the same cache; 4 and 8 where a bypass is verified.
    assert set(lengths) == {6, 7} | {4, 8}
    weights = [p.numel() for p in find_attention(model).attention[0].site.parameters()]
    for seconds in table.seconds:
        expected = seconds[-1] * np.array([0, 1, 2, 3, 4]) / 4
        np.testing.assert_allclose(seconds, expected, rtol=1e-6)
        assert seconds[-1] == pytest.approx(sum(weights))
    assert table.provenance.error < 1e-6


def test_an_encoder_costs_nothing_while_decoding() -> None:
    family = tiny_models.named("t5")
    model, batch = family.build(), family.batch(padded=False)
    table = measure_latency(model, batch, phase=Phase.DECODE, repeats=1)
    free = [not s.any() for s in table.seconds]
    assert free == [block.name.startswith("encoder") for block in table.space.blocks]
    with pytest.raises(
        ValueError, match="BertForSequenceClassification that fills no key/value cache"
    ):
        measure_latency(tiny_models.BERT.build(), tiny_models.batch(), phase=Phase.DECODE)


def test_an_interrupted_measurement_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing measured is measured again, and the table is that of an undisturbed measurement."""
    model, batch = tiny_models.BERT.build(), tiny_models.batch(size=2, length=6)
    clock = Clock()
    monkeypatch.setattr("cahp_opt.torch.latency.stopwatch.time.perf_counter", clock)
    count_weights(monkeypatch, clock)
    whole = measure_latency(model, batch, repeats=4)
    path = tmp_path / "samples.jsonl"

    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("time blocks", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_latency(model, batch, repeats=4, samples=SampleFile(path), progress=stop)
    before = path.read_text().splitlines()
    assert len(before) == 1 + 4 * 8 + 3 * 5  # header, whole models, one kind of block
    with path.open("a") as file:
        file.write('["time blo')  # a crash in the middle of a line
    table = measure_latency(model, batch, repeats=4, samples=SampleFile(path))
    after = path.read_text().splitlines()
    assert after[: len(before)] == before and len(after) == 1 + 4 * 8 + 8 * 5 + 2
    np.testing.assert_array_equal(table.seconds, whole.seconds)
    assert table.fixed == whole.fixed and table.provenance == whole.provenance
    with pytest.raises(RecordError, match=r"timings of something else \(batch 2 against batch 1\)"):
        measure_latency(model, tiny_models.batch(size=1, length=6), samples=SampleFile(path))
    wider = tiny_models.BERT.build(intermediate_size=48)  # the same blocks
    with pytest.raises(RecordError, match="timings of something else .shapes"):
        measure_latency(wider, batch, samples=SampleFile(path))
    path.write_text("no timings")
    with pytest.raises(RecordError, match="not a file of timings"):
        SampleFile(path)
    for wrong in ("Infinity", "NaN", "-1.0", '"1.0"'):
        path.write_text(f'{before[0]}\n["time blocks: (0, 1)", {wrong}]\n')
        with pytest.raises(RecordError, match="not a file of timings"):
            SampleFile(path)


def test_drift_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("cahp_opt.torch.latency.stopwatch.time.perf_counter", clock)
    pace, plain = [1.0], nn.Linear.forward

    def slower(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        clock.now += pace[0]
        return plain(self, x)

    def throttle(stage: str, done: int, total: int) -> None:
        if stage == "time blocks":
            pace[0] = 1.3

    monkeypatch.setattr(nn.Linear, "forward", slower)
    model, batch = tiny_models.BERT.build(), tiny_models.batch(size=2, length=6)
    table = measure_latency(model, batch, repeats=2, progress=throttle)
    assert table.provenance.drift == pytest.approx(0.3)
    assert any("30 % slower" in remark for remark in table.remarks)


def test_executions_that_do_not_fit() -> None:
    model, batch = tiny_models.BERT.build(), tiny_models.batch()
    with pytest.raises(ExecutionError, match="`execution` is cuda_graph, and the model is on cpu"):
        measure_latency(model, batch, execution=Execution.CUDA_GRAPH)
    with pytest.raises(ExecutionError, match="move it to a CUDA device"):
        time_models({"a": model}, batch, execution=Execution.CUDA_GRAPH)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, in its compiler
def test_compiled_models_are_compiled() -> None:
    """Every count of every block, beyond the usual limit of recompilations."""
    model, batch = tiny_models.GPT2.build(), tiny_models.batch(size=2, length=6)
    limit = torch._dynamo.config.recompile_limit
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        table = measure_latency(model, batch, execution=Execution.COMPILED, repeats=2)
    assert table.provenance.execution is Execution.COMPILED
    assert torch._dynamo.config.recompile_limit == limit


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
