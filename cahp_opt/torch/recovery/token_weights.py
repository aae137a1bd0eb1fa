"""The weights of tokens in a refit."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from cahp_opt.runs.recovery import Weighting
from cahp_opt.torch.blocks.finder import Prunable, PrunableBlock, find_attention
from cahp_opt.torch.calibration.shares import Share
from cahp_opt.torch.calibration.token_flows import Flow, flows
from cahp_opt.torch.evaluation.fidelity import Fidelity, embeds_all_tokens, fidelity_of
from cahp_opt.torch.recovery.kept_streams import STREAM_BYTES, KeptStreams
from cahp_opt.torch.running.batches import Batch, inputs_of


class TokenWeights:
    """The weights of tokens, computed once and remembered; by :attr:`Weighting.SENSITIVITY` they are::

        w_t = sum over probes u of |g_t(u)|^2,    E[w_t] = tr(J_t' H J_t)

    with ``g_t(u) = J_t' u`` the gradient of the probed output by a block's output at token ``t``,
    ``[hidden]``, ``J_t`` the Jacobian of the model's output, and ``H`` the Hessian of the distance
    (see :meth:`Fidelity.probes`): twice the expected distance that random errors of variance 1 at
    the token make. A classifier that reads one token has weights of 0 elsewhere in its last block.

    By :attr:`Weighting.EQUAL` they are 1.

    They depend on the dense model and the batches alone, and cost more than the rest of a refit: give one
    of these to :func:`~cahp_opt.torch.calibrate` and to every :func:`~cahp_opt.torch.refit` of the same
    model on the same batches. The passes that give them also show the residual streams of the dense model,
    which are kept as long as all of them fit, so that a refit does not run it again. The dense model must not change
    in between.

    Args:
        dense: the dense model, or its blocks if they were found already; they run once per pass.
        fidelity: the distance; None for the one that fits the model's head.
        weighting: how tokens are weighed; by :attr:`Weighting.AUTO`, equally if the distance is one of embeddings of
            all tokens.
        seed: of the probes, together with each example's content.
        memory: bytes for residual streams of the dense model and of a refit together; 0 to keep none of the dense
            model.
    """

    def __init__(
        self,
        dense: nn.Module | Prunable,
        *,
        fidelity: Fidelity | None = None,
        weighting: Weighting = Weighting.AUTO,
        seed: int = 0,
        memory: int = STREAM_BYTES,
    ) -> None:
        self._blocks = dense if isinstance(dense, Prunable) else find_attention(dense)
        self.dense = self._blocks.model
        self._fidelity: Fidelity | None = None
        if weighting is not Weighting.EQUAL:
            self._fidelity = fidelity_of(self.dense) if fidelity is None else fidelity
            if weighting is Weighting.AUTO and embeds_all_tokens(self._fidelity):
                self._fidelity = None
        self._seed = seed
        self.taken: dict[int, list[Tensor]] = {}
        """The known weights of every block, ``[..., 1]``, by the position of the batch in the
        data."""
        self.seen: dict[int, Seen] = {}
        """What the passes were over, by the position of the batch in the data."""
        self.streams = KeptStreams(self._blocks, memory)
        """The residual streams of the dense model that were kept."""

    def apart(self) -> TokenWeights:
        """The same for other batches: it knows of none yet, and keeps no streams."""
        return TokenWeights(
            self._blocks,
            fidelity=self._fidelity,
            weighting=Weighting.SENSITIVITY if self.differentiates else Weighting.EQUAL,
            seed=self._seed,
            memory=0,
        )

    @property
    def differentiates(self) -> bool:
        """Whether weights come of gradients, and are not 1."""
        return self._fidelity is not None

    def of_blocks(self, numbers: range) -> TokenWeights:
        """The same of blocks that follow each other: it knows of every batch what is known of these, and keeps streams
        where this one does.

        Args:
            numbers: of the blocks.
        """
        found, own = copy(self), slice(numbers.start, numbers.stop)
        found.taken = {batch: by_block[own] for batch, by_block in self.taken.items()}
        return found

    def wants(self, number: int) -> bool:
        """Whether a pass over the batch at this position would show something that is not known yet."""
        return number not in self.taken if self.differentiates else self.streams.wants(number)

    @contextmanager
    def watching(self, batch: Batch, number: int) -> Generator[None]:
        """Keeps the residual streams of the pass over a batch that the dense model makes meanwhile, unless they are kept
        of the same pass already."""
        now = Seen(_digest(batch), _changes(self.dense))
        if self.seen.get(number) == now and not self.streams.wants(number):
            yield
            return
        with self.streams.watching(batch, number):
            yield
        self.seen[number] = now

    def check(self, batch: Batch, number: int) -> None:
        """Refuse a batch other than the one that stood at this position before, or a model that changed.

        Raises:
            ValueError: saying which.
        """
        before = self.seen.get(number)
        if before is None:
            return
        if before.digest != _digest(batch):
            raise ValueError(
                f"`weighting` was taken on other batches: batch {number} held other examples, or others of its inputs "
                "or its padding differed; take it again."
            )
        if before.changes not in (None, _changes(self.dense)):
            raise ValueError(
                "`weighting` was taken before the weights of `dense` were changed; take it again."
            )

    def take(self, batch: Batch, number: int) -> None:
        """Take the weights of one batch, if they are not known; arguments as for :meth:`of`."""
        if self._fidelity is not None and number not in self.taken:
            with self.watching(batch, number):
                found = flows(self._blocks, batch, self._fidelity, self._seed)
            self.remember(found, number)

    def remember(self, found: Sequence[Sequence[Flow]], number: int) -> None:
        """Keep the weights of one batch that went through the dense model already."""
        self.taken[number] = [
            torch.stack([f.gradient.square().sum(dim=-1, keepdim=True) for f in runs]).sum(dim=0)
            for runs in found
        ]

    def of(self, block: str, out: Tensor, batch: Batch, number: int) -> Tensor:
        """The weights at one block, shape ``[..., 1]`` for its output ``out [..., hidden]``.

        Args:
            block: its name; those of the nearest block are taken if the weights are of others alone, such
                as of attention.
            out: for its shape and device only.
            batch: the batch, on the dense model's device; the model is in evaluation mode.
            number: the position of the batch in the data.

        Raises:
            ValueError: if this position held a batch of another shape before.
        """
        if not self.differentiates:
            return out.new_ones(*out.shape[:-1], 1)
        self.take(batch, number)
        weights = self.taken[number][self._nearest(block)].to(out.device)
        if out.ndim == 2:  # flattened rows
            weights = weights.flatten(0, -2)
        if weights.shape[:-1] != out.shape[:-1]:
            raise ValueError(
                f"`weighting` was taken on other batches: batch {number} had rows "
                f"{list(weights.shape[:-1])} then, and has {list(out.shape[:-1])} now; take it again."
            )
        return weights

    def _nearest(self, name: str) -> int:
        """The block of a name, or the one in the same layer: with the longest common beginning of its
        path."""

        def common(block: PrunableBlock) -> tuple[bool, int]:
            pairs = zip(block.name.split("."), name.split("."), strict=False)
            return block.name == name, len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))

        return max(range(len(self._blocks)), key=lambda index: common(self._blocks.blocks[index]))


class Seen(NamedTuple):
    """What a pass was over.

    Args:
        digest: of the batch.
        changes: how often the weights of the model had been written to; None in another process.
    """

    digest: bytes
    changes: int | None


def _digest(batch: Batch) -> bytes:
    """A digest of all inputs of a batch as they stand, padding and positions included."""
    found = hashlib.sha256()
    for name, value in inputs_of(batch).items():
        if isinstance(value, Tensor):
            found.update(f"{name}{value.dtype}{[*value.shape]}".encode())
            found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.digest()


def _changes(model: nn.Module) -> int:
    return sum(p._version for p in model.parameters() if not p.is_inference())


def share_weights(weights: TokenWeights, own: TokenWeights) -> None:
    """Add up what all processes know of the weights of tokens, so that every process knows all.

    Args:
        weights: those of all batches, which are added to.
        own: those of the batches of this process, by their positions among these.
    """
    share = Share.here()
    untyped: Any = distributed
    taken = {
        share.number(number): [each.cpu() for each in by_block]
        for number, by_block in own.taken.items()
    }
    seen = {share.number(number): one._replace(changes=None) for number, one in own.seen.items()}
    found: list[Any] = [None] * share.processes
    untyped.all_gather_object(found, (taken, seen))
    for theirs, looked_at in found:
        weights.taken.update(theirs)
        weights.seen.update(looked_at)
