"""What a piece of work costs, in forward passes of the model over examples."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cahp_opt.torch import find_attention


@dataclass
class Cost:
    """Seconds by the clock and of the processor, which other work on the machine does not lengthen as much,
    and examples that went through the model: a backward pass counts as two forward passes, and a run of
    some blocks as that share of one."""

    seconds: float = 0.0
    processor: float = 0.0
    examples: float = 0.0

    def told(self, texts: int) -> dict[str, float]:
        """For a record: the passes are over so many texts."""
        return {
            "seconds": round(self.seconds, 3),
            "processor": round(self.processor, 3),
            "passes": round(self.examples / texts, 3),
        }


@contextmanager
def counted(*models: nn.Module) -> Generator[Cost]:
    """Count what the models do while the context lasts; without models only time passes."""
    _finish()
    cost, start, busy = Cost(), time.perf_counter(), time.process_time()
    with ExitStack() as stack:
        for model in models:
            attention = find_attention(model)
            for block in attention:
                share = 1 / len(attention.blocks)
                hook = block.out.register_forward_hook(_Counter(cost, share))
                stack.callback(hook.remove)
        try:
            yield cost
        finally:
            _finish()
            cost.seconds = time.perf_counter() - start
            cost.processor = time.process_time() - busy


def _finish() -> None:
    """Wait for a GPU, whose work goes on after the calls that ask for it."""
    cuda: Any = torch.cuda
    if cuda.is_initialized():
        cuda.synchronize()


class _Counter:
    def __init__(self, cost: Cost, share: float) -> None:
        self._cost, self._share = cost, share

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        examples = self._share * output.shape[0]
        self._cost.examples += examples
        if output.requires_grad:
            hooked: Any = output
            hooked.register_hook(lambda gradient: self._backward(examples))

    def _backward(self, examples: float) -> None:
        self._cost.examples += 2 * examples
