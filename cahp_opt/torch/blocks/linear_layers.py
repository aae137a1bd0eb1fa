"""Linear layers (plain, Conv1D, LoRA), and which of their tensors are cut by row or column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class NotLinearError(TypeError):
    """A module cannot be cut like a linear layer; the message says why."""


def member(module: object, name: str) -> object:
    """The attribute ``name`` of a module; None if there is none.

    What ``getattr`` finds. But a module that lacks it takes long to say so, and a search for layouts asks every
    module for dozens of names.
    """
    plain = isinstance(module, nn.Module) and type(module).__getattr__ is nn.Module.__getattr__
    if plain and not hasattr(type(module), name):
        own = vars(module)
        return own.get(name, own["_modules"].get(name, own["_parameters"].get(name)))
    return getattr(module, name, None)


def base_linear(module: nn.Module) -> nn.Module:
    """The plain linear layer inside a wrapper (a LoRA adapter, or a module that holds one layer)."""
    for inner in ("base_layer", "linear"):
        child = member(module, inner)
        if isinstance(child, nn.Module):
            return child
    return module


def is_conv1d(module: nn.Module) -> bool:
    """Whether ``module`` is GPT-2's linear layer with a transposed weight."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_linear(module: nn.Module) -> bool:
    """Whether ``module``, or the layer inside it, has the shape of a linear layer."""
    base = base_linear(module)
    return isinstance(base, nn.Linear) or is_conv1d(base)


def row_weight(module: nn.Module) -> Tensor:
    """The weight of a linear module, ``[output features, input features]`` (a view); without
    adapters."""
    base = base_linear(module)
    weight = base.weight
    if not isinstance(weight, Tensor):
        raise NotLinearError(f"{type(module).__name__} has no weight tensor")
    return weight.T if is_conv1d(base) else weight


def effective_weight(module: nn.Module) -> Tensor:
    """The weight, ``[output features, input features]``, with unmerged LoRA adapters added."""
    weight = row_weight(module)
    adapted: Any = module
    for name in _active(module):
        down: Tensor = adapted.lora_A[name].weight
        up: Tensor = adapted.lora_B[name].weight
        weight = weight + float(adapted.scaling[name]) * (up @ down)
    return weight


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of a linear module ``[output features]``, if it has one."""
    bias: object = getattr(base_linear(module), "bias", None)
    return bias if isinstance(bias, Tensor) else None


def row_tensors(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Path and axis of every tensor of a linear module with an entry per output feature."""
    check_linear(module)
    base, prefix = base_linear(module), _prefix(module)
    yield f"{prefix}weight", 1 if is_conv1d(base) else 0
    if bias_of(module) is not None:
        yield f"{prefix}bias", 0
    for name in _adapters(module):
        yield f"lora_B.{name}.weight", 0


def column_tensors(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Path and axis of every tensor of a linear module with an entry per input feature."""
    check_linear(module)
    yield f"{_prefix(module)}weight", 0 if is_conv1d(base_linear(module)) else 1
    for name in _adapters(module):
        yield f"lora_A.{name}.weight", 1


def check_linear(module: nn.Module) -> None:
    """Refuse anything that cannot be cut row by row: quantised, merged and re-parametrised layers.

    Raises:
        NotLinearError: saying why.
    """
    base = base_linear(module)
    weight: object = getattr(base, "weight", None)
    if type(weight).__name__ == "DTensor":  # whose module differs between releases of PyTorch
        raise NotLinearError(
            "is split over several devices (tensor parallelism, `tp_plan`), and heads are cut out of whole "
            "weights; slice the model before it is split"
        )
    if not (_known_class(base) and type(weight) is nn.Parameter and weight.is_floating_point()):
        raise NotLinearError(
            f"is a {type(module).__name__}, and only plain nn.Linear and Conv1D layers and LoRA adapters "
            "on them are understood; quantise after slicing"
        )
    if getattr(module, "merged", False):
        raise NotLinearError("has merged adapters; unmerge them, or merge and unload them for good")
    magnitude: object = getattr(module, "lora_magnitude_vector", None)
    embeddings: object = getattr(module, "lora_embedding_A", None)
    biased = any(bias_of(up) is not None for up in _children(module, "lora_B"))
    for found in (magnitude, embeddings):
        if isinstance(found, nn.Module) and len(list(found.parameters())):
            raise NotLinearError(
                "has an adapter whose weights depend on all rows (DoRA); merge and unload it first"
            )
    if biased:
        raise NotLinearError("has an adapter with its own bias; merge and unload it first")


def _known_class(module: nn.Module) -> bool:
    """Only layers known to compute ``x @ W.T + b``; a foreign subclass may do anything."""
    cls = type(module)
    if isinstance(module, nn.Linear):
        return cls.__module__.partition(".")[0] in ("torch", "transformers")
    return is_conv1d(module)


def _prefix(module: nn.Module) -> str:
    base = base_linear(module)
    return next((f"{name}." for name, child in module.named_children() if child is base), "")


def _adapters(module: nn.Module) -> list[str]:
    found: object = getattr(module, "lora_A", None)
    return list(found) if isinstance(found, nn.ModuleDict) else []


def _active(module: nn.Module) -> list[str]:
    if getattr(module, "disable_adapters", False):
        return []
    names: list[str] = list(getattr(module, "active_adapters", []))
    return [name for name in names if name in _adapters(module)]


def _children(module: nn.Module, name: str) -> list[nn.Module]:
    found: object = getattr(module, name, None)
    return list(found.values()) if isinstance(found, nn.ModuleDict) else []


def resize(module: nn.Module) -> dict[str, int]:
    """The counts that a module's own attributes must hold for the shapes of its weights."""
    base = base_linear(module)
    weight: object = getattr(base, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        return {}
    first, second = weight.shape
    if is_conv1d(base):
        sizes = {"nf": second, "nx": first}
    elif isinstance(base, nn.Embedding):
        sizes = {"num_embeddings": first, "embedding_dim": second}
    else:
        sizes = {"out_features": first, "in_features": second}
    return {name: size for name, size in sizes.items() if hasattr(module, name)}
