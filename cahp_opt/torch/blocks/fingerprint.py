"""A short name for a model's weights, so that statistics and times of two models never mix."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from torch import Tensor, nn

from cahp_opt.identity import covers_outputs_alone, difference
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.blocks.linear_layers import is_conv1d
from cahp_opt.torch.blocks.out_weight import plain_weight, readout_weight

_THREADS = 8
"""More threads do not read memory faster."""


def fingerprint(model: nn.Module) -> str:
    """The identity of a model as :mod:`cahp_opt.identity` has it: class, shapes, and a SHA-256 of all weights.

    It covers everything that a checkpoint holds: parameters and buffers, by name. Weights in another
    precision are other weights: calibrate a model in the precision in which it is used. The device does
    not matter. Weights that a checkpoint lacks are drawn anew in every load, so the identity changes.

    Raises:
        ValueError: if weights are neither in memory nor offloaded by accelerate.
    """
    held = dict(_weights(model))
    own = {id(weight): weight for weight in held.values()}  # tied ones are read once
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        digests = dict(zip(own, pool.map(_digest, own.values()), strict=True))
    whole = hashlib.sha256()
    for name, weight in held.items():
        whole.update(f"{name} {digests[id(weight)]}\n".encode())
    return f"{structure(model)}/{whole.hexdigest()[:32]}"


def structure(model: nn.Module) -> str:
    """The class of a model and sixteen digits about the names and shapes of its weights.

    It distinguishes models whose times may differ, on any device and in any precision.
    """
    shapes = "\n".join(f"{name} {_shape(weight)}" for name, weight in _named(model))
    return f"{type(model).__name__}/{hashlib.sha256(shapes.encode()).hexdigest()[:16]}"


def mismatch(model: nn.Module, recorded: str) -> str | None:
    """How a model differs from the one that a record was made from, in words; None if it does not.

    Args:
        model: the model.
        recorded: the identity in the record, also of an earlier release; nothing is compared if empty.
    """
    if not recorded:
        return None
    old = covers_outputs_alone(recorded)
    return difference(output_fingerprint(model) if old else fingerprint(model), recorded)


def output_fingerprint(model: nn.Module) -> str:
    """The identity of the first releases: a digest of the block names and output projections
    alone."""
    digest = hashlib.sha256()
    for block in find_attention(model):
        weight = plain_weight(block.out)
        if weight is None:
            weight = readout_weight(block.out, block.width)
            weight = weight.T if is_conv1d(block.out) else weight  # as it is stored
        digest.update(f"{block.name}/{block.units}/{weight.dtype}/{list(weight.shape)}".encode())
        digest.update(_bytes(weight))
    return digest.hexdigest()[:16]


def _named(model: nn.Module) -> Iterator[tuple[str, object]]:
    """All that a checkpoint of ``model`` would hold, by name; mostly tensors, the tied ones repeated."""
    held: Mapping[str, object] = model.state_dict(keep_vars=True)
    yield from held.items()


def _weights(model: nn.Module) -> Iterator[tuple[str, object]]:
    """As :func:`_named`, with what is offloaded."""
    for name, weight in _named(model):
        if isinstance(weight, Tensor) and weight.is_meta:
            path, _, own = name.rpartition(".")
            hook: Any = getattr(model.get_submodule(path), "_hf_hook", None)
            kept: Mapping[str, Tensor] | None = getattr(hook, "weights_map", None)
            if kept is None:
                raise ValueError(
                    f"the weights of `model` are not in memory ({name} is on the meta device); load it whole."
                )
            weight = kept[own]
        yield name, weight


def _shape(weight: object) -> str:
    return str(list(weight.shape)) if isinstance(weight, Tensor) else type(weight).__name__


def _digest(weight: object) -> str:
    """Of a weight's precision, shape and numbers."""
    if not isinstance(weight, Tensor):  # what quantisation holds besides: pairs of tensors, scales
        if isinstance(weight, (tuple, list)):
            parts = cast("tuple[object, ...]", weight)
            return hashlib.sha256("".join(_digest(p) for p in parts).encode()).hexdigest()
        return hashlib.sha256(repr(weight).encode()).hexdigest()
    digest = hashlib.sha256(f"{weight.dtype} {list(weight.shape)} ".encode())
    if weight.is_quantized:
        weight = weight.detach().dequantize()
    if hasattr(weight, "__tensor_flatten__"):  # a subclass that packs several tensors
        names = cast("tuple[list[str], object]", cast("Any", weight).__tensor_flatten__())[0]
        digest.update("".join(_digest(getattr(weight, name)) for name in names).encode())
    else:
        digest.update(_bytes(weight))
    return digest.hexdigest()


def _bytes(weight: Tensor) -> Any:
    """The numbers of a weight as they lie in memory, without a copy where that is the CPU's."""
    return weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
