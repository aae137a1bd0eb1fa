"""Skipping blocks without kept units.

Slicing leaves such a block a *ghost* (see surgery.py): one unit whose output is multiplied by zeros.
Its result is known beforehand: the bias of the output projection, at every position. Of attention a
:class:`Bypass` returns that without computing anything, and gives the cache the number of
positions, because lengths are read from it. The form of a forward's return value is learned from a
run. Feed-forward parts are skipped layer by layer (see neuron_bypass.py). A bypass that does not reproduce
the run is not used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache

from cahp_opt.torch.blocks.blocks import (
    AttentionBlock,
    FeedForwardBlock,
    Prunable,
    PrunableBlock,
    submodules,
)
from cahp_opt.torch.blocks.finder import blocks_cut
from cahp_opt.torch.blocks.linear_layers import base_linear
from cahp_opt.torch.running.batches import Batch
from cahp_opt.torch.running.trials import Trial, make_trials
from cahp_opt.torch.running.undisturbed import evaluating
from cahp_opt.torch.slicing.neuron_bypass import is_free, is_skipped, skip, unskip
from cahp_opt.torch.slicing.rewritten_forward import OwnWidth
from cahp_opt.torch.slicing.skipped_attention import Bypass, backend_of

_CACHE_ARGUMENTS = ("cache", "past_key_values")
"""Arguments by which a model takes a cache."""

_CANNOT_RUN = (RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError)
"""Errors of model code on an unexpected None, shape or cache entry."""


def bypass_empty(model: nn.Module | Prunable, batch: object | None = None) -> int:
    """Let blocks without kept units, attention and feed-forward parts, return at once what they add.

    That holds in evaluation mode, and as long as the weights of such a block are zero, which every run
    checks: a block that is trained, or whose weights are replaced or merged with an adapter's, runs as
    ever. What was compiled or exported keeps to what was true then.
    :func:`~cahp_opt.torch.from_pretrained` does this by itself where the model runs on small random inputs,
    and latency is measured so; :func:`~cahp_opt.torch.slice_heads` does not, because a fresh slice is
    often trained or exported.

    Every block is verified: the model runs on ``batch``, with and without padding, and where it has a
    cache in two steps, as it is and with the bypass. If anything differs, the block stays as it is,
    which is correct too but takes the time of one unit. Copies and pickles of the model skip as it
    does. The cache gets keys and values of width 1 from a skipped block.

    Args:
        model: a sliced model, or its blocks; changed in place, but none of its weights.
        batch: keyword arguments for the model to verify with; None for small random inputs.

    Returns:
        The number of blocks that are skipped now.

    Raises:
        UnsupportedModelError: if the model's blocks are not understood.
        ValueError: if ``batch`` cannot be used, or none is given and none can be made.
    """
    prunable = blocks_cut(model)
    model = prunable.model
    ghosts = [block for block in prunable if block.ghost]
    free = [block for block in ghosts if _is_free(block)]
    if free:
        trials = make_trials(model, batch)
        before = _Reference.of(model, free, trials)
        try:
            fitting = [block for block in free if _install(block, before)]
            if not before.holds(model, free, trials):
                for block in fitting:
                    _remove(block)
                for block in fitting:
                    if _install(block, before) and not before.holds(model, free, trials):
                        _remove(block)
        except BaseException:  # after Ctrl-C too, nothing that was not verified stays
            for block in free:
                _remove(block)
            raise
    return sum(map(_is_skipped, ghosts))


def bypass_where_possible(prunable: Prunable) -> int:
    """:func:`bypass_empty`, of a model that is loaded, or timed as such: where it runs on made-up inputs.

    Args:
        prunable: the blocks of a sliced model, as they are by now.

    Returns:
        The number of blocks that are skipped; 0 if nothing can be verified.
    """
    absent = any(parameter.is_meta for parameter in prunable.model.parameters())
    if absent or not any(block.ghost for block in prunable):
        return 0
    try:
        return bypass_empty(prunable)
    except ValueError:  # no inputs can be made up, or the model does not run on them
        return 0


def bypass_unverified(prunable: Prunable, batch: Batch) -> None:
    """:func:`bypass_empty` for a model without weights, whose time is estimated: no numbers can be compared.

    Attention is skipped if its module returns what the output projection returns, and not, for example, a
    norm of that.

    Args:
        prunable: the blocks of the sliced model, which runs on tensors without values.
        batch: keyword arguments for the model.
    """
    ghosts = [block for block in prunable if block.ghost and _is_free(block)]
    made = dict[int, object]()

    def note(out: nn.Module, args: object, output: object) -> None:
        made[id(out)] = output

    handles = [block.out.register_forward_hook(note) for block in ghosts]
    try:
        run = _run(prunable.model, ghosts, Trial(batch, bare=False), _one_step)
    finally:
        for handle in handles:
            handle.remove()
    returned = {id(call.module): call.output for call in run.calls}
    for block in ghosts:
        inside = any(module is block.out for module in block.module.modules())
        output = returned.get(id(block.module))
        values = cast("tuple[object, ...]", output if isinstance(output, tuple) else (output,))
        if (
            isinstance(block, FeedForwardBlock)
            or not inside
            or any(_is_same_memory(value, made.get(id(block.out))) for value in values)
        ):
            _install(block, _Reference([run], [run]))


def _is_same_memory(one: object, other: object) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return False
    mine, theirs = (cast("Any", tensor.untyped_storage())._cdata for tensor in (one, other))
    return bool(mine == theirs)


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a block's module."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclass(frozen=True, eq=False)
class _Run:
    """The record of one run.

    Args:
        calls: of the blocks' modules.
        outputs: of the blocks' sites and of the model.
        lengths: of the cache, after every step.
    """

    calls: list[_Call]
    outputs: list[object]
    lengths: list[int]


@dataclass(frozen=True, eq=False)
class _Reference:
    """The model without any bypass: plain runs, and runs of two steps with a cache."""

    plain: list[_Run]
    cached: list[_Run]

    @classmethod
    def of(
        cls, model: nn.Module, blocks: Sequence[PrunableBlock], trials: list[Trial]
    ) -> _Reference:
        """Run the model as it is."""
        plain = [_run(model, blocks, trial, _one_step) for trial in trials]
        try:
            cached = [_run(model, blocks, trial, _two_steps) for trial in trials]
        except _CANNOT_RUN:  # then a bypass leaves calls with a cache to the stock forward
            cached = []
        return cls(plain, cached if any(run.lengths for run in cached) else [])

    def holds(self, model: nn.Module, blocks: Sequence[PrunableBlock], trials: list[Trial]) -> bool:
        """Whether the model, with bypasses now, runs and does the same."""
        try:
            again = [_run(model, blocks, trial, _one_step) for trial in trials]
            if self.cached:
                again += [_run(model, blocks, trial, _two_steps) for trial in trials]
        except _CANNOT_RUN:
            return False
        return all(_same_run(a, b) for a, b in zip([*self.plain, *self.cached], again, strict=True))


def _run(
    model: nn.Module,
    blocks: Sequence[PrunableBlock],
    trial: Trial,
    steps: Callable[[nn.Module, Batch], Iterator[tuple[object, Cache | None]]],
) -> _Run:
    run = _Run([], [], [])

    def called(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        run.calls.append(_Call(module, args, kwargs, output))

    def left(module: nn.Module, args: object, output: object) -> None:
        run.outputs.append(_copied(output))

    # Not the output projections: a bypass makes way for what listens there.
    handles = [
        b.module.register_forward_hook(called, with_kwargs=True)
        for b in blocks
        if isinstance(b, AttentionBlock)
    ]
    handles += [b.site.register_forward_hook(left) for b in blocks]
    try:
        with evaluating(model), torch.no_grad():
            for output, cache in steps(trial.part_of(model), trial.batch):
                run.outputs.extend(_tensors(output))
                if cache is not None:
                    run.lengths.append(int(cache.get_seq_length()))
    finally:
        for handle in handles:
            handle.remove()
    return run


def _one_step(model: nn.Module, batch: Batch) -> Iterator[tuple[object, None]]:
    yield model(**batch), None


def _two_steps(model: nn.Module, batch: Batch) -> Iterator[tuple[object, Cache]]:
    """The first tokens, and the others with a cache of the first; nothing if there is no cache."""
    accepted = inspect.signature(type(model).forward).parameters
    argument = next((name for name in _CACHE_ARGUMENTS if name in accepted), None)
    prefix = "decoder_" if "decoder_input_ids" in batch else ""
    ids: object = batch.get(f"{prefix}input_ids")
    if argument is None or "use_cache" not in accepted or not isinstance(ids, Tensor):
        return
    half = ids.shape[1] // 2
    mask = f"{prefix}attention_mask"
    tokens = {k: v for k, v in batch.items() if _like(v, ids) and k.startswith(prefix)}
    first = {**batch, **{k: v[:, :half] for k, v in tokens.items()}}
    rest = {**batch, **{k: v[:, half:] for k, v in tokens.items() if k != mask}}
    output: Any = model(**{**first, "use_cache": True})
    if not isinstance(output, Mapping):
        return
    values = cast("Mapping[str, object]", output)
    cache = next((value for value in values.values() if isinstance(value, Cache)), None)
    if half and cache is not None:
        yield output, cache
        yield model(**{**rest, "use_cache": True, argument: cache}), cache


def _like(value: object, ids: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == ids.shape


def _tensors(output: object) -> list[Tensor]:
    if isinstance(output, Mapping):
        output = tuple(cast("Mapping[str, object]", output).values())
    values = cast("tuple[object, ...]", output if isinstance(output, tuple) else (output,))
    return [v.clone() for v in values if isinstance(v, Tensor) and v.is_floating_point()]


def _copied(output: object) -> object:
    """A copy of the output, because the model may change its tensors in place later."""
    if isinstance(output, tuple):
        return tuple([_copied(value) for value in cast("tuple[object, ...]", output)])
    return output.clone() if isinstance(output, Tensor) else output


def _same_run(one: _Run, other: _Run) -> bool:
    return (
        one.lengths == other.lengths
        and len(one.outputs) == len(other.outputs)
        and all(_same(a, b) for a, b in zip(one.outputs, other.outputs, strict=True))
    )


def _same(one: object, other: object) -> bool:
    """Whether ``other`` equals ``one``, but for places of a tuple where it is None."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if not one.is_floating_point() or not one.numel():
            return torch.equal(one, other)
        finite = one[torch.isfinite(one)].abs()
        scale = float(finite.max()) if finite.numel() else 0.0
        allowed = 16 * torch.finfo(one.dtype).eps * scale
        return torch.allclose(one, other, rtol=0, atol=allowed, equal_nan=True)
    if isinstance(one, tuple) and isinstance(other, tuple):
        mine, theirs = cast("tuple[object, ...]", one), cast("tuple[object, ...]", other)
        pairs = zip(mine, theirs, strict=False)
        return len(mine) == len(theirs) and all(b is None or _same(a, b) for a, b in pairs)
    return not isinstance(one, Tensor) and not isinstance(other, Tensor)


def _is_free(block: PrunableBlock) -> bool:
    """Whether a bypass may be put there: a forward of a module's own belongs to something else, such as a
    device map; or it is a bypass."""
    if isinstance(block, FeedForwardBlock):
        return is_free(block)
    return isinstance(vars(block.module).get("forward"), OwnWidth | None)


def _is_skipped(block: PrunableBlock) -> bool:
    if isinstance(block, FeedForwardBlock):
        return is_skipped(block)
    return isinstance(vars(block.module).get("forward"), Bypass)


def _install(block: PrunableBlock, reference: _Reference) -> bool:
    """Put a bypass on a block, if what it returned can be given without running it."""
    if isinstance(block, FeedForwardBlock):
        skip(block)
        return True
    return isinstance(block, AttentionBlock) and _install_attention(block, reference)


def _install_attention(block: AttentionBlock, reference: _Reference) -> bool:
    """Put a bypass on attention, if what its module returned can be given without running it."""
    calls = (call for run in reference.plain for call in run.calls if call.module is block.module)
    call = next(calls, None)
    if call is None or base_linear(block.out) is not block.out:
        return False
    parameters = list(inspect.signature(type(block.module).forward).parameters)
    states: object = call.args[0] if call.args else call.kwargs.get(parameters[1])
    alone, several = isinstance(call.output, Tensor), isinstance(call.output, tuple)
    if not isinstance(states, Tensor) or not (alone or several):
        return False
    values = (call.output,) if alone else cast("tuple[Any, ...]", call.output)
    lead = states.shape[:-1]
    fits = [isinstance(v, Tensor) and v.ndim > 1 and v.shape[:-1] == lead for v in values]
    # Other tensors are attention weights with the eager backend; with others they are biases that
    # following blocks may ask for, and the comparison shows whether they can do without.
    others = sum(value is not None for value in values) - 1
    if sum(fits) != 1 or (others and backend_of(block.module) in (None, "eager")):
        return False
    width = values[fits.index(True)].shape[-1]
    entries = None if alone else tuple(fits)
    path = next(name for name, module in submodules(block.site) if module is block.out)
    cached, backend = bool(reference.cached), backend_of(block.module)
    bypass = Bypass(block.module, block.site, path, width, entries, cached, backend)
    vars(block.module)["forward"] = bypass
    return True


def _remove(block: PrunableBlock) -> None:
    if isinstance(block, FeedForwardBlock):
        unskip(block)
        return
    bypass: object = vars(block.module).get("forward")
    if isinstance(bypass, Bypass):
        del vars(block.module)["forward"]
        if bypass.plain is not None:
            vars(block.module)["forward"] = bypass.plain
