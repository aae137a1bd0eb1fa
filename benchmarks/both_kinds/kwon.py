"""Kwon et al. 2022 on encoders like BERT: which heads and neurons stay, and the masks that repair the rest.

Written from the paper, "A Fast Post-Training Pruning Framework for Transformers" (arXiv 2204.09656); the arithmetic is
in ``kwon_masks.py``. Masks of kept units are multiplied into the columns of the output layers, so that the sliced model
computes what the masked one does, as fast as any slice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.both_kinds.kwon_masks import DAMP, Latency, fitted, rearranged, searched, tuned
from cahp_opt import LatencyTable
from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.blocks.linear_layers import row_weight
from cahp_opt.torch.running.batches import Batch, inputs_of
from cahp_opt.torch.running.gates import gated

EXAMPLES = 2048
"""Labelled texts of the paper's samples."""
_LAYER = re.compile(r"(.*\.layer\.\d+)\.")


def slopes(prunable: Prunable, batches: Sequence[Batch]) -> list[Floats]:
    """The gradient of every example's task loss by the mask of every unit, for each block ``[examples, units]``.

    Args:
        prunable: blocks of a classifier.
        batches: labelled.
    """
    model: Any = prunable.model
    found = list[Tensor]()
    for batch in batches:
        gates = torch.ones(len(batch["labels"]), prunable.space.n, requires_grad=True)
        with gated(prunable, gates):
            logits = model(**inputs_of(batch)).logits
        loss = functional.cross_entropy(logits, batch["labels"], reduction="sum")
        found.append(torch.autograd.grad(loss, gates)[0])
    every = torch.cat(found).numpy()
    return [every[:, where].astype(np.float64) for where in prunable.space.slices]


@dataclass(frozen=True, eq=False)
class Fisher:
    """The empirical Fisher matrices of the masks of every block.

    Args:
        matrices: for every block ``[units, units]``.
        heads: which blocks are heads, bool ``[blocks]``; the others are neurons.
    """

    matrices: Sequence[Floats]
    heads: Bools

    @staticmethod
    def of(prunable: Prunable, batches: Sequence[Batch]) -> Fisher:
        """The means over labelled examples of the products of their gradients, as of :func:`slopes`."""
        found = [one.T @ one / len(one) for one in slopes(prunable, batches)]
        return Fisher(found, prunable.space.of_attention)

    def searched(self, limit: float, head: Latency, neuron: Latency) -> list[Bools]:
        """Which units stay, for every block bool ``[units]``, as by :func:`kwon_masks.searched`."""
        diagonal = [np.diag(one) for one in self.matrices]
        return searched(diagonal, self.heads, limit, head, neuron)

    def rearranged(self, kept: Sequence[Bools]) -> list[Bools]:
        """As many units of every block, as by :func:`kwon_masks.rearranged`."""
        return [rearranged(one, own) for one, own in zip(self.matrices, kept, strict=True)]


def within(fisher: Fisher, table: LatencyTable, limit: float) -> list[Bools]:
    """Which single heads and neurons stay if a model may take so many seconds.

    The latencies that the search plans with are lines fitted to the table, one for each kind. So that they cost the
    method nothing where they are wrong, it plans with the largest limit whose outcome keeps to the table.

    Args:
        fisher: of single heads and neurons.
        table: of heads, and of groups of neurons, equal in all blocks of a kind.
        limit: of the whole model, in seconds.

    Returns:
        For every block bool ``[units]``.

    Raises:
        ValueError: if no limit gives such masks.
    """
    sizes = np.array([len(one) for one in fisher.matrices])
    width = sizes // table.space.units
    head, neuron = (
        fitted(width[b] * np.arange(1, table.space.units[b] + 1), np.mean(costs, axis=0)[1:])
        for kind in (True, False)
        for b, costs in [_of_kind(table, fisher.heads == kind)]
    )
    best: list[Bools] | None = None
    low, high = 0.0, table.dense
    for _ in range(24):
        middle = (low + high) / 2
        try:
            found = fisher.searched(middle, head, neuron)
        except ValueError:  # too short for any masks
            low = middle
            continue
        if seconds(table, [int(own.sum()) for own in found], sizes) <= limit:
            best, low = found, middle
        else:
            high = middle
    if best is None:
        raise ValueError(f"`limit` is {limit:.3g} s, which no masks of this search keep to.")
    return fisher.rearranged(best)


def _of_kind(table: LatencyTable, blocks: Bools) -> tuple[int, list[Floats]]:
    """The first of some blocks, and the costs of all of them."""
    numbers = np.flatnonzero(blocks).tolist()
    return numbers[0], [table.costs[b] for b in numbers]


def seconds(table: LatencyTable, kept: Sequence[int] | Ints, sizes: Sequence[int] | Ints) -> float:
    """The time by a table of a model with numbers of units between those that the table has.

    Args:
        table: the table.
        kept: units kept in every block, finer than the table's.
        sizes: such units in every block.
    """
    found = table.fixed
    for costs, count, size in zip(table.costs, kept, sizes, strict=True):
        found += float(np.interp(count * (len(costs) - 1) / size, np.arange(len(costs)), costs))
    return max(table.least, found)


class _Stop(Exception):
    """The layer was run as far as is needed."""


class _Layer(NamedTuple):
    """One layer of an encoder: it, and by block its output layer and the norm behind it."""

    module: nn.Module
    outs: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]


def tune(
    small: Prunable, dense: Prunable, batches: Sequence[Batch], damp: float = DAMP
) -> list[Floats]:
    """Tune the masks of a sliced model layer by layer, and multiply them into its weights (section 4.3).

    What a block of the sliced model adds to its own input should make up for what the unpruned model has behind that
    block. If a mask is out of range, that block and those behind it keep masks of 1.

    Args:
        small: the blocks of the sliced model, attention and feed-forward by turns.
        dense: those of the model it was sliced from.
        batches: texts; labels are not needed.
        damp: of the least squares.

    Returns:
        The masks of the kept units of every block.

    Raises:
        ValueError: for a model whose layers are not those of BERT.
    """
    masks = [np.ones(len(block.cut.kept)) for block in small]
    entries = [_entry(dense.model, _layers(dense)[0].module, batch) for batch in batches]
    theirs, mine = [entry.hidden for entry in entries], [entry.hidden for entry in entries]
    number = 0
    with torch.no_grad():
        for whole, thin in zip(_layers(dense), _layers(small), strict=True):
            wanted = list[list[Tensor]]()
            for i, entry in enumerate(entries):
                with _behind(whole.norms) as sums:
                    theirs[i] = entry.through(whole.module, theirs[i])
                wanted.append([entry.real(one) for one in sums])
            for place in range(len(thin.outs)):
                if len(masks[number]):
                    block = _Sums.over(thin, place, entries, mine, [one[place] for one in wanted])
                    found = block.tuned(small.blocks[number].columns, damp)
                    if found is None:
                        return masks
                    masks[number] = found
                number += 1
            mine = [
                entry.through(thin.module, one) for entry, one in zip(entries, mine, strict=True)
            ]
    return masks


class _Entry(NamedTuple):
    """How a batch reaches the first layer: hidden states, what else the layer is told, and its real tokens."""

    hidden: Tensor
    rest: tuple[Any, ...]
    named: dict[str, Any]
    mask: Tensor | None

    def through(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """The hidden states behind a layer."""
        out: Any = layer(hidden, *self.rest, **self.named)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

    def real(self, values: Tensor) -> Tensor:
        """The values of real tokens, ``[tokens, width]``."""
        return values.flatten(0, -2) if self.mask is None else values[self.mask]


def _entry(model: nn.Module, layer: nn.Module, batch: Batch) -> _Entry:
    caught = list[tuple[tuple[Any, ...], dict[str, Any]]]()

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args, kwargs))
        raise _Stop

    hook = layer.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**inputs_of(batch))
    except _Stop:
        pass
    finally:
        hook.remove()
    (hidden, *rest), named = caught[0]
    mask = batch.get("attention_mask")
    return _Entry(hidden, tuple(rest), named, None if mask is None else mask.bool())


@contextmanager
def _behind(norms: Sequence[nn.Module]) -> Generator[list[Tensor]]:
    """What reaches these norms while the context lasts."""
    found = list[Tensor]()

    def listen(module: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(args[0])

    hooks = [norm.register_forward_pre_hook(listen) for norm in norms]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class _Sums:
    """The sums over tokens that the least squares of one block is made of.

    Args:
        weight: of its output layer, ``[hidden, width]``; a view.
        inner: of products of its inputs, ``[width, width]``.
        outer: of products of its inputs with what it should write, ``[width, hidden]``.
    """

    weight: Tensor
    inner: Tensor
    outer: Tensor

    @staticmethod
    def over(
        layer: _Layer,
        place: int,
        entries: Sequence[_Entry],
        hidden: Sequence[Tensor],
        wanted: Sequence[Tensor],
    ) -> _Sums:
        """Of the block in that place of a layer of the sliced model.

        Args:
            layer: the layer.
            place: 0 for attention, 1 for the feed-forward part.
            entries: how the batches reach it.
            hidden: what they bring there.
            wanted: the stream behind the block in the unpruned model, for every batch ``[tokens, hidden]``.
        """
        weight = row_weight(layer.outs[place])
        width = weight.shape[1]
        sums = _Sums(
            weight,
            torch.zeros(width, width, dtype=torch.float64),
            torch.zeros(width, len(weight), dtype=torch.float64),
        )
        for entry, one, want in zip(entries, hidden, wanted, strict=True):
            inputs, reached = _until(layer, place, entry, one)
            written = inputs @ weight.T
            missing = want - (reached - written)  # without the bias and what comes past the block
            sums.inner += inputs.T @ inputs
            sums.outer += inputs.T @ missing
        return sums

    def tuned(self, columns: Ints, damp: float) -> Floats | None:
        """Tune, and multiply the masks into the weight; None, and nothing changes, if they are out of range."""
        weight = self.weight.double()
        member = np.eye(int(columns.max()) + 1)[columns]  # which column is of which unit
        gram = member.T @ (self.inner * (weight.T @ weight)).numpy() @ member
        target = member.T @ (self.outer * weight.T).sum(dim=1).numpy()
        masks = tuned(gram, target, damp)
        if masks is not None:
            self.weight *= torch.from_numpy(masks[columns]).to(self.weight.dtype)
        return masks


def _until(layer: _Layer, place: int, entry: _Entry, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The input of a block's output layer and what reaches the norm behind it, at real tokens."""
    found = list[Tensor]()

    def listen(stop: bool) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            found.append(entry.real(args[0]))
            if stop:
                raise _Stop

        return hook

    hooks = [
        layer.outs[place].register_forward_pre_hook(listen(False)),
        layer.norms[place].register_forward_pre_hook(listen(True)),
    ]
    try:
        entry.through(layer.module, hidden)
    except _Stop:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    inputs, reached = found
    return inputs, reached


def _layers(prunable: Prunable) -> list[_Layer]:
    """The layers of an encoder, each with its two blocks.

    Raises:
        ValueError: for a model whose layers are not those of BERT.
    """
    modules = dict(prunable.model.named_modules())
    paths = {id(module): path for path, module in modules.items()}
    found = dict[str, list[tuple[nn.Module, nn.Module]]]()
    for block in prunable:
        path = paths[id(block.out)]
        match = _LAYER.match(path)
        norm = modules.get(f"{path.rpartition('.')[0]}.LayerNorm")
        if match is None or norm is None:
            raise ValueError(
                f"block {block.name!r} has no norm beside {path!r}, as the layers of BERT have; the baseline of "
                "Kwon et al. is written for encoders like it."
            )
        found.setdefault(match[1], []).append((block.out, norm))
    return [
        _Layer(modules[path], tuple(o for o, _ in pairs), tuple(n for _, n in pairs))
        for path, pairs in found.items()
    ]
