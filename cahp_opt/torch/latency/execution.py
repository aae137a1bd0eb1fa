"""Running pieces of work as they will be served: eagerly, compiled, or as replayed CUDA graphs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import nn

from cahp_opt.costs.provenance import Execution
from cahp_opt.torch.latency.stopwatch import Work

_WARM_UP = 3
"""Runs before a capture, in which libraries choose their kernels and take their memory."""
_RECOMPILES = 100_000
"""Every count of every block is compiled separately; beyond the usual limit they run uncompiled."""

Name = TypeVar("Name")


class ExecutionError(ValueError):
    """The model cannot be run in the requested way."""


def refuse_unfit(execution: Execution, device: torch.device) -> None:
    """Refuse CUDA graphs elsewhere than on CUDA.

    Raises:
        ExecutionError: naming the way out.
    """
    if execution is Execution.CUDA_GRAPH and device.type != "cuda":
        raise ExecutionError(
            f"`execution` is {execution.value}, and the model is on {device}; move it to a CUDA device, or "
            "use Execution.EAGER."
        )


@contextmanager
def on(device: torch.device) -> Generator[None]:
    """Make ``device`` the current one, where streams, events and graphs belong, if it is a CUDA device."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


@contextmanager
def room_to_compile(execution: Execution) -> Generator[None]:
    """Let ``torch.compile`` make as much code as there are pieces, and forget it afterwards."""
    if execution is not Execution.COMPILED:
        yield
        return
    config: Any = importlib.import_module("torch._dynamo.config")
    limits = {"recompile_limit": _RECOMPILES, "accumulated_recompile_limit": _RECOMPILES}
    with config.patch(**limits):
        try:
            yield
        finally:
            torch.compiler.reset()


def compiled(module: nn.Module, execution: Execution) -> nn.Module:
    """The module, through ``torch.compile`` if it is to be run like that."""
    if execution is not Execution.COMPILED:
        return module
    return cast("nn.Module", cast("Any", torch).compile(module, dynamic=False))


def captured(work: Mapping[Name, Work], execution: Execution) -> dict[Name, Work]:
    """The same pieces, as replays of CUDA graphs if they are to be run like that.

    Raises:
        ExecutionError: if a piece cannot be captured.
    """
    if execution is not Execution.CUDA_GRAPH:
        return dict(work)
    pool = torch.cuda.graph_pool_handle()  # one for all: replays follow each other
    return {name: _capture(piece, pool) for name, piece in work.items()}


def run_through(piece: Work, execution: Execution, prepare: Callable[[], None]) -> object:
    """Run a piece once in the way it will be timed, so that its parts are called as they will be.

    Model code behaves differently while it is captured: transformers makes masks that it otherwise
    leaves out, and other kernels run.

    Args:
        piece: the work.
        execution: how it will be run; where it will be compiled, it runs eagerly here.
        prepare: called right before the one run that counts.

    Returns:
        An object to keep alive while tensors of the run are used.

    Raises:
        ExecutionError: if it cannot be captured.
    """
    if execution is not Execution.CUDA_GRAPH:
        prepare()
        piece.once()
        return None
    graph = _graph(piece, torch.cuda.graph_pool_handle(), prepare)
    graph.replay()  # the captured tensors hold nothing before
    return graph


def _capture(piece: Work, pool: Any) -> Work:
    graph = _graph(piece, pool, lambda: None)

    def replay(read: Work = piece) -> None:
        """Keeps alive what the graph reads: weights, inputs and caches."""
        graph.replay()

    return Work(replay, alone=piece.alone)


def _graph(piece: Work, pool: Any, prepare: Callable[[], None]) -> torch.cuda.CUDAGraph:
    stream: Callable[[], Any] = torch.cuda.Stream
    current, side = torch.cuda.current_stream(), stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            piece.once()
    current.wait_stream(side)
    if piece.before is not None:
        piece.before()
    graph = torch.cuda.CUDAGraph()
    try:
        # A capture that fails leaves its own stream the current one.
        with torch.cuda.stream(current), torch.cuda.graph(graph, pool=pool):
            prepare()
            piece.run()
    except RuntimeError as error:
        raise ExecutionError(
            f"`model` cannot be captured as a CUDA graph ({str(error).splitlines()[0]}); leave the attention "
            "mask out of the batch if nothing is padded, or use Execution.EAGER."
        ) from error
    if piece.before is not None:
        piece.before()
    return graph
