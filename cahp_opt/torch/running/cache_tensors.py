"""The tensors of a key/value cache, and the attention blocks that they belong to."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache

CACHE_NAMES = ("cache", "past_key_values")
"""Names of the cache in a model's output, in newer and older releases of transformers."""


def takes_cache(model: nn.Module) -> bool:
    """Whether the forward of ``model`` can be asked for a cache, or for none, by ``use_cache``."""
    if not hasattr(getattr(model, "config", None), "use_cache"):
        return False
    forward = type(model).forward
    parameters = inspect.signature(forward).parameters
    if "use_cache" in parameters:
        return True
    rest = next((n for n, p in parameters.items() if p.kind is p.VAR_KEYWORD), None)
    return rest is not None and not _hands_it_on_itself(forward, rest)


@lru_cache(
    maxsize=256
)  # asked for every batch, and reading the source takes longer than a small one
def _hands_it_on_itself(forward: Callable[..., object], rest: str) -> bool:
    """Whether a call in ``forward`` sets ``use_cache`` and hands on ``rest`` too, where it would come twice."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(forward))))
    except (OSError, TypeError, SyntaxError):  # no source
        return False
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        handed = {k.value.id for k in call.keywords if not k.arg and isinstance(k.value, ast.Name)}
        if rest in handed and any(k.arg == "use_cache" for k in call.keywords):
            return True
    return False


def cache_of(output: object) -> object:
    """The cache in a model's output; None if there is none."""
    returned = (getattr(output, name, None) for name in CACHE_NAMES)
    return next((found for found in returned if found is not None), None)


def bytes_of(tensor: Tensor) -> int:
    """The bytes of a tensor's entries, ``[...]``."""
    return tensor.numel() * tensor.element_size()


def tensors_in(container: object) -> Iterator[Tensor]:
    """Every tensor of keys, values or states in a cache, ``[batch, ...]``, each once.

    Tensors with fewer than two axes are left out: they are counters of some releases of
        transformers.
    """
    seen, waiting = set[int](), [container]
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, Tensor):
            if found.ndim > 1:
                yield found
        elif isinstance(found, Mapping):
            waiting += cast("Mapping[object, object]", found).values()
        elif isinstance(found, list | tuple):
            waiting += cast("list[object]", found)
        elif type(found).__module__.startswith("transformers.") and not isinstance(
            found, nn.Module
        ):
            waiting += getattr(found, "__dict__", {}).values()


def cache_bytes(
    model: nn.Module, sites: Sequence[nn.Module], inputs: Mapping[str, Any]
) -> tuple[list[int], int] | None:
    """Bytes of the cache that one forward pass over ``inputs`` leaves.

    A tensor belongs to the block during whose run it appears in the cache that the block was given.

    Args:
        model: in evaluation mode.
        sites: its attention sites, one for each block.
        inputs: keyword arguments for the model, without ``use_cache``.

    Returns:
        The bytes of every block, and those that belong to none; None if the model returns no cache.
    """
    # The tensors themselves are kept, because the id of one that is gone is given to another.
    owners: dict[int, tuple[Tensor, int]] = {}

    def listener(b: int) -> Callable[..., None]:
        def listen(
            site: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], _: object
        ) -> None:
            for value in (*args, *kwargs.values()):
                if isinstance(value, Cache):
                    for tensor in tensors_in(value):
                        owners.setdefault(id(tensor), (tensor, b))

        return listen

    asked = {"use_cache": True} if takes_cache(model) else {}
    with ExitStack() as stack, torch.no_grad():
        for b, site in enumerate(sites):
            hook = site.register_forward_hook(listener(b), with_kwargs=True)
            stack.callback(hook.remove)
        try:
            output = model(**{**inputs, **asked})
        except ValueError as error:  # encoders of T5 refuse a cache
            if "use_cache" not in str(error):
                raise
            return None
        cache = cache_of(output)
    own, outside = [0] * len(sites), 0
    for tensor in tensors_in(cache):
        if id(tensor) in owners:
            own[owners[id(tensor)][1]] += bytes_of(tensor)
        else:
            outside += bytes_of(tensor)
    return (own, outside) if any(own) or outside else None
