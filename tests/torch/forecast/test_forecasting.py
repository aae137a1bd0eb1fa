"""What is foretold of a run is what it does: passes are counted by hooks, bytes in its records."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from command_line import make_tokenizer, sentences
from torch import nn

from cahp_opt.costs.prune import Prune
from cahp_opt.costs.target import Target
from cahp_opt.methods import Fisher, GaussNewton
from cahp_opt.progress import Progress, Stages
from cahp_opt.runs.kinds import Kinds
from cahp_opt.runs.measuring import MeasuringOptions
from cahp_opt.runs.method import Method
from cahp_opt.runs.objective_and_solver import ObjectiveAndSolver
from cahp_opt.runs.plan import Applying, OutputOptions, PruningPlan, Reading, RecoveryOptions
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.texts import Example, TextSplit, split
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.single_blocks import of_single_blocks
from cahp_opt.torch import Weighting, find_prunable, refit
from cahp_opt.torch.blocks.blocks import submodules
from cahp_opt.torch.forecast.forecasting import forecast_pruning
from cahp_opt.torch.forecast.walk_passes import TimesRun, WalkedModel
from cahp_opt.torch.pipeline.applying import recover, slice_model
from cahp_opt.torch.pipeline.pruning_run import check, choose, measure_prices, measure_statistics
from cahp_opt.torch.pipeline.run import Named, PruningRun
from cahp_opt.torch.recovery import kept_streams, mask_tuning, refitting, side_by_side
from cahp_opt.torch.recovery.layer_walk import LayerWalk
from cahp_opt.torch.running.preparing import PaddingCheck
from cahp_opt.torch.slicing.slicing import slice_found

pytestmark = pytest.mark.usefixtures("threads")

TEXTS, LAYERS = 32, tiny_models.LAYERS


def texts() -> TextSplit:
    """Four batches to calibrate on, and one to judge by; classifiers take their labels."""
    examples = [Example(text, label=str(i % 2)) for i, text in enumerate(sentences(40))]
    return split(examples, most=TEXTS, held_out=8, seed=0)


def plan(
    recovery: Recovery, kinds: Prune, method: Method | None = None, memory: float | None = None
) -> PruningPlan:
    """Statistics of gradients on whole batches, so that the weights of their tokens stay for the refit."""
    target = Target(heads=6, neurons=0.5 if kinds.neurons else None)
    forgetful = isinstance(method, Fisher)  # no residual stream is remembered
    repairs = RecoveryOptions(recovery, stream_memory=0 if forgetful else 3)
    applying = Applying(repairs, reading=Reading(16, batch_size=8))
    timed = tuple(replace(w, batch_size=2, repeats=1) for w in applying.workloads)
    amounts = MeasuringOptions(16, 24, statistics_memory=memory)
    return PruningPlan(
        target,
        method or ObjectiveAndSolver(),
        replace(applying, workloads=timed),
        measuring=amounts,
    )


TRIALS = ("check_runs_once", "places_of")
OTHER_TRIALS = (
    (PaddingCheck, "check"),
    (side_by_side, "find_shortcuts"),
    (kept_streams, "walked_places"),
)


class Counting(Stages):
    """Counts the examples that run through the layers of either model, and those of backward passes, by stage."""

    def __init__(self, model: nn.Module, attention: str, end: str) -> None:
        super().__init__()
        self.now, self.rows, self.backward = "", Counter[tuple[str, bool, str]](), Counter[str]()
        self.size, self.trying = 0, False
        own = {id(module) for module in model.modules()}

        def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self.size = len(kwargs["input_ids"])

        def listen(kind: str) -> Any:
            def ran(module: nn.Module, args: Any, output: Any) -> None:
                if not self.trying:
                    self.rows[self.now, id(module) in own, kind] += self.size

            return ran

        model.register_forward_pre_hook(begin, with_kwargs=True)
        for name, module in submodules(model):
            for kind, ending in (("attention", attention), ("end", end)):
                if re.search(f"{ending}$", name):
                    module.register_forward_hook(listen(kind))

    @contextmanager
    def stage(self, name: str) -> Generator[Progress, None, None]:
        self.now = name
        with super().stage(name) as progress:
            yield progress
        self.now = ""

    def passes(self, stage: str, *, dense: bool) -> TimesRun:
        """How often all layers ran over all texts."""
        found = (self.rows[stage, dense, kind] for kind in ("attention", "end"))
        return TimesRun(*(rows / (LAYERS * TEXTS) for rows in found))

    @contextmanager
    def aside(self) -> Generator[None, None, None]:
        """What is tried on the first batch is no pass over the texts."""
        before, self.trying = self.trying, True
        try:
            yield
        finally:
            self.trying = before


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Any:
    def start(model: nn.Module, attention: str, end: str) -> Counting:
        stages = Counting(model, attention, end)
        gradient: Any = torch.autograd.grad

        def counting_gradient(*args: Any, **options: Any) -> Any:
            stages.backward[stages.now] += stages.size
            return gradient(*args, **options)

        monkeypatch.setattr(torch.autograd, "grad", counting_gradient)
        for where, name in (
            *((room, name) for room in (refitting, mask_tuning) for name in TRIALS),
            *OTHER_TRIALS,
        ):
            trial: Any = getattr(where, name)

            def tried(*args: Any, trial: Any = trial, **options: Any) -> Any:
                with stages.aside():
                    return trial(*args, **options)

            monkeypatch.setattr(where, name, tried)
        return stages

    return start


ENCODER = (r"attention\.self\.query", r"intermediate\.dense")
DECODER = ("q_proj", "up_proj")
MODELS = {
    "classifier": ("bert", False, ENCODER),
    "embedder": ("bert", True, ENCODER),
    "decoder": ("mistral", False, DECODER),
}


@pytest.mark.parametrize(
    ("name", "kinds", "recovery", "method", "memory"),
    [
        ("classifier", Prune.BOTH, Recovery.REFIT, None, None),
        ("classifier", Prune.HEADS, Recovery.NONE, None, 0),
        ("classifier", Prune.HEADS, Recovery.REFIT, Fisher(), None),
        ("embedder", Prune.HEADS, Recovery.REFIT, None, None),
        ("embedder", Prune.BOTH, Recovery.NONE, None, None),
        ("embedder", Prune.HEADS, Recovery.MASK_TUNING, GaussNewton(seconds=0.1), None),
        ("decoder", Prune.BOTH, Recovery.REFIT, None, 0),
        ("decoder", Prune.BOTH, Recovery.NONE, None, None),
    ],
)
def test_passes_and_bytes_are_those_of_the_run(
    name: str,
    kinds: Prune,
    recovery: Recovery,
    method: Method | None,
    memory: float | None,
    counted: Any,
    tmp_path: Path,
) -> None:
    """Without memory for statistics, one block is measured in every pass."""
    family, bare, places = MODELS[name]
    model: Any = tiny_models.named(family).build(bare=bare)
    named, read = Named("tiny", model, make_tokenizer(), kinds=Kinds(kinds)), texts()
    planned, out = plan(recovery, kinds, method, memory), OutputOptions(tmp_path / "out")
    said = forecast_pruning(named, read, planned, out)
    assert not list(tmp_path.iterdir())  # nothing was written
    assert any("`--stream-memory 0.1`" in note for note in said.notes) is isinstance(method, Fisher)
    blocks = LAYERS * (1 + kinds.neurons)
    assert any(f"in {blocks} passes" in note for note in said.notes) is (memory is not None)
    stages = counted(model, *places)
    run = check(named, read, planned, None, tmp_path, out, stages)
    stats, streams = run_as_far_as_the_recovery(run, planned)
    for stage in said.stages:
        if stage.name.startswith("evaluate"):  # before the recovery and after it
            continue
        for dense in (True, False):
            share = attention_share(model)
            passes = stages.passes(stage.name, dense=dense).passes(share)
            assert passes == pytest.approx(stage.passes.dense if dense else stage.passes.sliced)
        every = stage.passes.backward + stage.passes.sliced_backward
        assert stages.backward[stage.name] == pytest.approx(every * TEXTS)
    twice = 1 + recovery.repairs
    assert stages.rows["evaluate", False, "end"] == twice * LAYERS * len(read.held_out)
    assert [stage.name for stage in said.stages].count("evaluate again") == recovery.repairs
    expected = measured(stats)
    if memory is not None:
        blocks_alone = of_single_blocks(stats.without("salience", "gauss_newton"))
        alone = [measured(one) for one in blocks_alone]
        largest = max(alone, key=lambda sizes: sum(sizes.values()))
        expected.update(largest)
    sizes = held(said.stage("calibrate").held)
    kept = sizes.pop("streams", 0)
    assert sizes == expected
    assert bool(kept) is (recovery is Recovery.REFIT and not isinstance(method, Fisher))
    assert kept == streams
    assert (
        run.weights is None or run.weights.streams.nbytes == 0
    )  # they are given up behind the refit


def run_as_far_as_the_recovery(run: PruningRun, plan: PruningPlan) -> tuple[HeadStats, int]:
    """The stages that models run over texts in: the statistics of the first, and the bytes of the streams that it kept."""
    prices = measure_prices(run, plan, None, None)
    run, stats = measure_statistics(run, plan, prices)
    streams = 0 if run.weights is None else run.weights.streams.nbytes
    selection = choose(run, plan, prices, stats)
    run = run.grouped(selection)
    recover(run, slice_model(run, selection))
    return stats, streams


def held(said: Mapping[str, int]) -> dict[str, int]:
    """The bytes by statistic, of both kinds of blocks together."""
    sizes = Counter[str]()
    for what, size in said.items():
        sizes[what.split(" of ")[0]] += size
    sizes.pop("weights", None)
    return dict(sizes)


def measured(stats: HeadStats) -> dict[str, int]:
    """The bytes of the arrays of every statistic."""
    return {
        name: sum(array.nbytes for array in statistic.arrays().values())
        for name, statistic in stats.statistics.items()
    }


def attention_share(model: nn.Module) -> float:
    """The share of attention in the weights of the layers."""
    prunable = find_prunable(model)
    whole = {id(layer): layer for layer in LayerWalk(prunable, 0).layers}.values()
    return numbers(b.site for b in prunable.attention) / numbers(whole)


def numbers(modules: Iterable[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize("streams", [0, 2])
def test_layers_run_again_where_streams_are_forgotten(streams: int, counted: Any) -> None:
    model: Any = tiny_models.BERT.build()
    prunable = find_prunable(model)
    batches = [tiny_models.batch(size=8, length=7, seed=seed) for seed in range(4)]
    walked = WalkedModel.of(prunable, batches[0], feed_forward=True, attention_too=True)
    needed = 3 * streams * walked.stream * 8 * 7
    memory = needed + 30 if needed else 0
    said = walked.over([8 * 7] * 4, memory)
    assert said.remembered == streams / 4 and said.held == needed
    stages = counted(model, *ENCODER)
    small = slice_found(prunable, np.arange(prunable.space.n) % 2 == 0)
    with stages.stage("refit"):
        refit(small, prunable, batches, weighting=Weighting.EQUAL, memory=memory)
    assert stages.passes("refit", dense=True) == pytest.approx(said.dense)
    assert stages.passes("refit", dense=False) == pytest.approx(said.sliced)
