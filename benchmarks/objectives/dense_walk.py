"""Refitting many sliced copies of one model: its own residual stream is computed once."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import nn

from cahp_opt.torch import refitting
from cahp_opt.torch.attention import Attention
from cahp_opt.torch.batching import Batch
from cahp_opt.torch.walking import Point, Walk


class DenseWalk:
    """A walk of the dense model that remembers the stream after every block, for the same batches.

    Args:
        model: the dense model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._walk: Walk | None = None
        self._points: dict[tuple[int, int], Point] = {}

    def to(self, block: int, batch: Batch, number: int) -> Point:
        """As :meth:`Walk.to`, but residual and output come added up, as the residual alone."""
        if (block, number) not in self._points:
            assert self._walk is not None, "inside of `remembered` only"
            found = self._walk.to(block, batch, number)
            stream = found.residual + found.out
            self._points[block, number] = Point(stream, found.heads[..., :0], torch.zeros(()))
        return self._points[block, number]

    @contextmanager
    def remembered(self) -> Generator[None]:
        """Refits in this context walk the dense model no more than once in all."""

        def walk(model: nn.Module, attention: Attention, memory: int) -> Walk | DenseWalk:
            if model is not self._model:
                return Walk(model, attention, memory)
            self._walk = self._walk or Walk(model, attention, memory)
            return self

        with patch.object(refitting, "Walk", walk):
            yield
