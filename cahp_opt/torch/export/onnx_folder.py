"""A model, pruned or not, as an ONNX graph beside its tokenizer.

The graph takes any number of examples and, for texts, any length; the cache of a decoder goes in and out as
one tensor for the keys and one for the values of every layer, each with as many heads as that layer kept.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn

from cahp_opt.files.folders import check_free, whole_folder
from cahp_opt.files.records import PathLike
from cahp_opt.torch.checkpoints.checkpoint import Saveable
from cahp_opt.torch.export.onnx_graphs import Graph, cached_graph, plain_graph
from cahp_opt.torch.export.onnx_inputs import example
from cahp_opt.torch.export.refusals import ExportError, check_installed, package
from cahp_opt.torch.running.cache_tensors import takes_cache
from cahp_opt.torch.running.undisturbed import evaluating

FILE = "model.onnx"
"""Name of the graph in the folder."""

_ALLOWED = 1e-4
"""The largest difference, relative to the largest number if that is above 1."""


@dataclass(frozen=True)
class OnnxGraph:
    """What a graph is like.

    Args:
        inputs: names of its inputs.
        outputs: names of its outputs.
        cached: whether it takes and gives a cache of keys and values.
        why_not: why it does not although the model has one; empty otherwise.
        difference: the largest difference from the model in PyTorch that was seen.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cached: bool
    why_not: str
    difference: float


def export_onnx(
    model: nn.Module,
    directory: PathLike,
    *,
    tokenizer: Any = None,
    overwrite: bool = False,
    batch: Mapping[str, Tensor] | None = None,
) -> OnnxGraph:
    """Write a model as an ONNX graph with its configuration and tokenizer, whole or not at all.

    The graph is run by onnxruntime with other numbers of examples and other lengths than it was traced with;
    outputs at real tokens must be within 1e-4 of the model's. A decoder gets a cache if the exporter can
    trace it, as :attr:`OnnxGraph.cached` says.

    Args:
        model: a transformers model in single precision, pruned or not; it is not changed.
        directory: the folder; new or empty.
        tokenizer: saved beside the graph, if given, and used for the texts that it is checked with.
        overwrite: replace a model that this library wrote there.
        batch: keyword arguments for the model to trace and check with, ``[examples, ...]``, at least two; None for a few
            texts, or small random inputs without a tokenizer.

    Raises:
        ExportError: if the exporter cannot trace the model, the graph computes something else, or a package
            is missing.
        FileExistsError: if the folder has content that may not be replaced.
        ValueError: if ``batch`` cannot be used, or none is given and none can be made.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise ExportError(
            f"`model` is a {type(model).__name__}, which is not a transformers model."
        )
    dtypes = {p.dtype for p in model.parameters()}
    if dtypes != {torch.float32}:
        raise ExportError(
            f"`model` has weights of {', '.join(map(str, sorted(dtypes, key=str)))}, and the graph is checked in "
            "single precision; load it in float32, and convert the graph with onnxruntime's tools."
        )
    for name in ("onnx", "onnxscript", "onnxruntime"):
        check_installed(name, "onnx")
    check_free(Path(directory).resolve(), overwrite=overwrite)
    inputs = example(model, tokenizer, batch)
    stock: Any = model
    with whole_folder(directory, overwrite=overwrite) as folder, evaluating(model):
        told = _traced(model, inputs, folder / FILE)
        config = copy.deepcopy(stock.config)
        config.architectures = [type(model).__name__]
        config.save_pretrained(str(folder))
        if tokenizer is not None:
            cast("Saveable", tokenizer).save_pretrained(str(folder))
    return told


def _traced(model: nn.Module, inputs: Mapping[str, Tensor], file: Path) -> OnnxGraph:
    """Write the graph with a cache if there is one and that can be done, otherwise without."""
    stock: Any = model
    options = {"use_cache": False} if takes_cache(model) else {}
    why_not = ""
    if options and stock.can_generate():
        try:
            return _written(cached_graph(model, inputs), model, file, "")
        except ExportError as error:
            why_not = str(error)
            for part in file.parent.glob(f"{FILE}*"):
                part.unlink()
    return _written(plain_graph(model, inputs, options), model, file, why_not)


def _written(graph: Graph, model: nn.Module, file: Path, why_not: str) -> OnnxGraph:
    """Trace a graph, write it, and run it.

    Raises:
        ExportError: if it cannot be traced, or computes something else.
    """
    untyped: Any = torch
    with _quiet():
        try:
            untyped.onnx.export(
                graph.module,
                tuple(graph.inputs.values()),
                str(file),
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes={"tensors": graph.axes},
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter raises anything over models that it cannot trace
            raise ExportError(
                f"PyTorch's exporter cannot trace {type(model).__name__}: {_reason(error)}"
            ) from error
    runtime: Any = package("onnxruntime", "onnx")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    seen = [_difference(graph, session, inputs) for inputs in (graph.inputs, *graph.others)]
    return OnnxGraph(tuple(graph.inputs), graph.outputs, graph.cached, why_not, max(seen))


def _reason(error: Exception) -> str:
    """The sentence at the bottom of the exporter's report, which has advice above and traces below it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("<class '")]
    return (named or lines or [type(error).__name__])[0][:300]


def _difference(graph: Graph, session: Any, inputs: Mapping[str, Tensor]) -> float:
    """The largest difference of a graph's outputs, at real tokens, from those in PyTorch."""
    sizes = " and ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())[:90]
    # What the exporter found to have no influence is not an input any more.
    taken = {entry.name for entry in session.get_inputs()}
    try:
        found = session.run(
            list(graph.outputs),
            {name: value.numpy() for name, value in inputs.items() if name in taken},
        )
    except Exception as error:  # onnxruntime has no error of its own above all others
        raise ExportError(f"onnxruntime cannot run the graph on {sizes}: {error}") from error
    with torch.no_grad():
        expected = graph.module(*inputs.values())
    largest, untyped = 0.0, cast("Any", torch)
    given: list[Tensor] = [untyped.from_numpy(output) for output in found]
    for name, mine, theirs in zip(graph.outputs, expected, given, strict=True):
        if mine.shape != theirs.shape:
            raise ExportError(
                f"the graph gives {name} of shape {list(theirs.shape)} on {sizes}, and the model "
                f"{list(mine.shape)}."
            )
        real = _real(name, mine, inputs)
        apart = (mine[real] - theirs[real]).abs()
        difference = float(apart.max()) if apart.numel() else 0.0
        allowed = _ALLOWED * max(1.0, float(mine[real].abs().max()) if apart.numel() else 1.0)
        if not difference <= allowed:
            raise ExportError(
                f"the graph gives another {name} than the model on {sizes}: by {difference:.3g}, and {allowed:.3g} "
                "is allowed."
            )
        largest = max(largest, difference)
    return largest


def _real(name: str, value: Tensor, inputs: Mapping[str, Tensor]) -> Any:
    """An index of the numbers of an output that belong to real tokens; of all where it has no tokens."""
    decoded = "decoder_input_ids" in inputs and not name.startswith("encoder_")
    mask = inputs.get("decoder_attention_mask" if decoded else "attention_mask")
    if mask is None or value.ndim < 3:
        return slice(None)
    if value.ndim == 4 and (value.shape[0], value.shape[2]) == mask.shape:
        return mask.bool()[:, None, :, None].expand(value.shape)
    last = mask[:, -value.shape[1] :].bool()
    return last if value.shape[:2] == last.shape else slice(None)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep the exporter's advice and reports off the screen."""
    loggers = [
        logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
