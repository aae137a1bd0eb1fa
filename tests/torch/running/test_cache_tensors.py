"""Which models can be asked for a cache, or for none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from cahp_opt.torch.running.batches import prepare
from cahp_opt.torch.running.cache_tensors import takes_cache


class Inner(nn.Module):
    """Takes what it is asked for."""

    def forward(self, x: Tensor, use_cache: bool = True) -> Tensor:
        return x + use_cache


class HandsOn(nn.Module):
    """Hands everything on."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_cache=True)
        self.inner = Inner()

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        y: Tensor = self.inner(x, **kwargs)
        return y


class Decides(HandsOn):
    """Never wants a cache, and says so itself, so that it must not be said to it."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        y: Tensor = self.inner(x, use_cache=False, **kwargs)
        return y


def test_a_model_that_decides_itself_is_not_asked() -> None:
    assert takes_cache(HandsOn()) and not takes_cache(Decides())
    for model in (HandsOn(), Decides()):
        batch = prepare({"x": torch.ones(2, 3)}, model, "batch", torch.device("cpu"))
        assert torch.equal(model(**batch), torch.ones(2, 3))
