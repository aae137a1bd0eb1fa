"""How a sliced model differs from the one that its stock class builds, module by module.

Nothing here knows an architecture. Numbers, shapes, frozen weights, hooks on arguments and views of the configuration
are recorded; the record is tried on the stock model, and compared. Where something else is left
that differs, the record says that this library is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import transformers
from torch import nn

from cahp_opt.torch.blocks.blocks import submodules
from cahp_opt.torch.slicing.argument_hooks import ArgumentHook, KeepHeads
from cahp_opt.torch.slicing.config_view import counts_of
from cahp_opt.torch.slicing.modeling_cahp import NEEDS, apply_record, whole_numbers
from cahp_opt.torch.slicing.rewritten_forward import OwnWidth
from cahp_opt.torch.slicing.shared_bias import same_place
from cahp_opt.torch.slicing.skipped_attention import Bypass
from cahp_opt.torch.slicing.skipped_neurons import BiasAlone, FewNeurons
from cahp_opt.torch.slicing.width_rewriting import WIDTH


def record_of(
    stock: nn.Module, sliced: nn.Module, saved: nn.Module | None = None
) -> dict[str, Any]:
    """What the modelling file has to change in a stock model.

    Args:
        stock: a newly built model of the class; it becomes like ``sliced``.
        sliced: another one, sliced; both may be on the meta device.
        saved: the model of which the record states which blocks it skips; None for none.

    Returns:
        The entry :data:`~cahp_opt.torch.slicing.modeling_cahp.ENTRY` of the configuration, as JSON; with
        :data:`~cahp_opt.torch.slicing.modeling_cahp.NEEDS` where the file does not suffice.
    """
    record: dict[str, Any] = {
        "architecture": type(sliced).__name__,
        "transformers": transformers.__version__,
    }
    changes: list[dict[str, Any]] = []
    modules: dict[str, int] = {}
    for path, change in _changes(stock, sliced):
        if change not in changes:
            changes.append(change)
        modules[path] = changes.index(change)
    whole = {**record, "changes": changes, "modules": modules}
    try:
        apply_record(stock, whole)
        left = next(_differences(stock, sliced), None)
    except ValueError as error:
        left = str(error)
    if left is not None:
        return {**record, NEEDS: left}
    return whole if saved is None else {**whole, **_skips(saved)}


def _changes(stock: nn.Module, sliced: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """By path, what differs and can be recorded."""
    there = dict(submodules(stock))
    for path, module in submodules(sliced):
        source, origin = there.get(path), None
        if source is None:
            like = (p for p, m in there.items() if type(m) is type(module) and same_place(p, path))
            origin = next(like, None)
            if origin is None:
                continue
            source = there[origin]
        change = _change(source, module)
        if origin is not None:
            change["copied"] = origin
        if change:
            change["known"] = sorted(whole_numbers(source))
            yield path, change


def _change(stock: nn.Module, module: nn.Module) -> dict[str, Any]:
    """What differs in one module; empty if nothing does."""
    mine, stocks = whole_numbers(module), whole_numbers(stock)
    own, theirs = (dict(m.named_parameters(recurse=False)) for m in (module, stock))
    both = own.keys() & theirs.keys()
    change = {
        "numbers": {n: [stocks[n], v] for n, v in mine.items() if n in stocks and stocks[n] != v},
        "shapes": {
            n: list(w.shape) for n, w in own.items() if n in both and _resized(w, theirs[n])
        },
        "frozen": [n for n, w in own.items() if n in both and _frozen(w, theirs[n])],
        "arguments": {hook.name: _heads(hook) for hook in _argument_hooks(module)},
        "width": _own_width(module),
        "config": _counts(module),
    }
    return {name: found for name, found in change.items() if found}


def _resized(weight: nn.Parameter, stock: nn.Parameter) -> bool:
    return weight.shape != stock.shape


def _frozen(weight: nn.Parameter, stock: nn.Parameter) -> bool:
    return stock.requires_grad and not weight.requires_grad


def _own_width(module: nn.Module) -> dict[str, Any] | None:
    """The width that the forward of a module takes, and the words by which that is rewritten."""
    forward: object = vars(module).get("forward")
    if not isinstance(forward, OwnWidth):
        return None
    return {"heads": getattr(module, WIDTH), "words": list(astuple(forward.words))}


def _counts(module: nn.Module) -> dict[str, int] | None:
    return counts_of(getattr(module, "config", None))


def _heads(hook: ArgumentHook) -> list[Any] | None:
    """The heads that a hook keeps and how many there were; None if it drops its argument."""
    return [list(hook.ids), hook.heads] if isinstance(hook, KeepHeads) else None


def _argument_hooks(module: nn.Module) -> list[ArgumentHook]:
    hooks: dict[int, object] = vars(module)["_forward_pre_hooks"]
    return [hook for hook in hooks.values() if isinstance(hook, ArgumentHook)]


def _differences(changed: nn.Module, sliced: nn.Module) -> Iterator[str]:
    """In what a stock model with the recorded changes still differs from the sliced one, in words."""
    there = dict(submodules(changed))
    for path, module in submodules(sliced):
        other = there.get(path)
        if other is None:
            yield f"{path} is not in the stock class"
            continue
        for word, mine, stocks in (
            ("is a", type(module).__name__, type(other).__name__),
            ("runs", _forward(module), _forward(other)),
            ("has numbers", whole_numbers(module), whole_numbers(other)),
            ("has weights", _tensors(module), _tensors(other)),
            ("has hooks", _hooks(module), _hooks(other)),
            ("sees counts", _counts(module), _counts(other)),
        ):
            if mine != stocks:
                yield f"{path} {word} {mine}, and not {stocks}"


def _forward(module: nn.Module) -> str:
    forward: object = vars(module).get("forward")
    if forward is None:
        return "its own forward"
    return f"another forward, {getattr(forward, '__name__', type(forward).__name__)}"


def _tensors(module: nn.Module) -> dict[str, tuple[list[int], bool]]:
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return {name: (list(tensor.shape), tensor.requires_grad) for name, tensor in tensors}


def _hooks(module: nn.Module) -> tuple[list[tuple[str, str, Any]], int, int]:
    """What hooks do to arguments, and how many hooks are before and after the module."""
    told = [(type(hook).__name__, hook.name, _heads(hook)) for hook in _argument_hooks(module)]
    own = vars(module)
    return told, len(own["_forward_pre_hooks"]), len(own["_forward_hooks"])


def _skips(model: nn.Module) -> dict[str, Any]:
    """What is needed to skip the blocks without units that a model skips, by path."""
    paths = {module: path for path, module in submodules(model)}
    attention: dict[str, Any] = {}
    neurons: dict[str, Any] = {}
    for module, path in paths.items():
        forward: object = vars(module).get("forward")
        if isinstance(forward, Bypass):
            attention[path] = {
                "site": paths[forward.site],
                "out": ".".join(forward.path),
                "width": forward.width,
                "entries": forward.entries and list(forward.entries),
                "cached": forward.cached,
                "backend": forward.backend,
            }
        elif isinstance(forward, FewNeurons):
            part = forward.part
            out: object = vars(part.out).get("forward")
            if isinstance(out, BiasAlone):
                facts = {"out": part.paths[-1], "stored": out.stored, "hidden": out.hidden}
                found: dict[str, Any] = neurons.setdefault(
                    paths[part.site], {**facts, "ins": dict[str, int]()}
                )
                inside = next(p for p in part.paths if part.site.get_submodule(p) is module)
                found["ins"][inside] = forward.width
    skipped = {"attention_skipped": attention, "neurons_skipped": neurons}
    return {name: facts for name, facts in skipped.items() if facts}
