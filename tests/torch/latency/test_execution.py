"""Capturing CUDA graphs, with a device that only pretends to be one."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import tiny_models
import torch
import torch.nn.functional as F
from torch import nn

from cahp_opt.costs.provenance import Execution
from cahp_opt.torch.latency.block_times import _keep_sets, measure_latency
from cahp_opt.torch.latency.execution import ExecutionError, captured
from cahp_opt.torch.latency.stopwatch import Work


class Graph:
    """Remembers what was run while it was recorded; a replay runs nothing else."""

    recording = False

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


class Stream:
    """A stream that has nothing to wait for."""

    def wait_stream(self, other: object) -> None:
        del other


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """As much of ``torch.cuda`` as a capture asks for; the graphs that were made."""
    made: list[Graph] = []

    class Listed(Graph):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    @contextmanager
    def record(graph: Graph, pool: object) -> Generator[None]:
        del graph, pool
        Graph.recording = True
        try:
            yield
        finally:
            Graph.recording = False

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Listed)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 0)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: Graph.recording)
    return made


class MaskedInGraphs(nn.Module):
    """Takes another way while it is captured, as models of some releases of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_models.BERT.build()
        self.inner.set_attn_implementation("sdpa")
        self.config = self.inner.config

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        size, length = input_ids.shape
        mask = torch.zeros(size, 1, length, length) if Graph.recording else attention_mask
        logits: torch.Tensor = self.inner(input_ids, attention_mask=mask).logits
        return logits


def test_blocks_are_captured_with_what_the_captured_model_gives_them(
    pretended: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    plain = F.scaled_dot_product_attention

    def attention(*args: Any, **kw: Any) -> torch.Tensor:
        if Graph.recording:
            seen.append(kw.get("attn_mask") is not None)
        return plain(*args, **kw)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    monkeypatch.setattr("cahp_opt.torch.latency.block_times.refuse_unfit", lambda *_: None)
    ids = tiny_models.batch()["input_ids"]
    model = MaskedInGraphs()
    table = measure_latency(model, {"input_ids": ids}, execution=Execution.CUDA_GRAPH, repeats=2)
    blocks = len(table.space.blocks)
    # All wholes, blocks by count, and runs to learn arguments.
    models, counts, reading = 8 + 1, 5, 1 + 5
    kept = [table.space.counts(kept) for kept in _keep_sets(table.space).values()]
    skipped = int(sum((own == 0).sum() for own in kept)) + blocks + 1
    assert seen == [True] * ((models + reading) * blocks + counts - skipped)
    replays = [graph.replays for graph in pretended]
    assert sum(replays) == reading + (2 + 2) * 8 + (2 + 4) * counts + (2 + 1)  # warm-up and rounds


def test_what_a_graph_reads_stays_alive(pretended: list[Graph]) -> None:
    weights = nn.Linear(2, 2)
    alive: list[bool] = []

    class Call:
        def __call__(self) -> None:
            weights(torch.ones(1, 2))

        def __del__(self) -> None:
            alive.append(False)

    pieces = captured({"a": Work(Call())}, Execution.CUDA_GRAPH)
    assert pretended and not alive
    pieces.clear()
    assert alive == [False]


def test_a_capture_that_fails_is_told(pretended: list[Graph]) -> None:
    def run() -> None:
        if Graph.recording:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with pytest.raises(
        ExecutionError, match=r"\(operation not permitted when stream is capturing\)"
    ):
        captured({"a": Work(run)}, Execution.CUDA_GRAPH)
    assert pretended[0].replays == 0
