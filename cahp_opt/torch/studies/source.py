"""Where the processes of a study get the model from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from cahp_opt.runs.media import Medium
from cahp_opt.runs.names import Precision
from cahp_opt.torch.checkpoints.model_loading import device_named, load_model, load_tokenizer
from cahp_opt.torch.checkpoints.processors import load_processor
from cahp_opt.torch.running.main_input import medium_of


@dataclass(frozen=True)
class Source:
    """The model of a study: by its name, which every process loads by itself, or as an object that is sent to them.

    Args:
        name: a folder or a hub id; of an object the name of its class.
        device: as for :func:`~cahp_opt.torch.checkpoints.model_loading.load_model`. Where it is None or ``cuda``
            and there are several GPUs, the workers of a machine take them in turns.
        precision: of the weights.
        leave_out: modules of the checkpoint that may be lost.
        trust_remote_code: run the code that comes with the model.
        threads: of the CPU, in every process; None for those that PyTorch has.
        loaded: the model and what makes its inputs, in the process that loaded it.
        sent: whether these go to other processes with the source, because there is nothing to load.
        device_map: in place of ``device``, as for :func:`~cahp_opt.torch.checkpoints.model_loading.load_model`.
    """

    name: str
    device: str | None = None
    precision: Precision | None = None
    leave_out: tuple[str, ...] = ()
    trust_remote_code: bool = False
    threads: int | None = None
    loaded: tuple[nn.Module, Any] | None = field(default=None, repr=False, compare=False)
    sent: bool = False
    device_map: str | None = None

    def __reduce__(self) -> tuple[Callable[..., Source], tuple[Any, ...]]:
        """Another process loads the model itself, if it can."""
        own = {**vars(self), "loaded": self.loaded if self.sent else None}
        return _made, (own,)

    def load(self, number: int) -> tuple[nn.Module, Any]:
        """The model and what makes its inputs.

        Args:
            number: which of the machine's workers this is.

        Raises:
            ModelError: if it cannot be loaded.
        """
        if self.loaded is not None:
            return self.loaded
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        model = load_model(
            self.name,
            device=None if self.device_map else device_of_worker(self.device, number),
            device_map=self.device_map,
            precision=self.precision,
            leave_out=self.leave_out,
            trust_remote_code=self.trust_remote_code,
        )
        medium = medium_of(model)
        if medium in (None, Medium.TEXT):
            return model, load_tokenizer(self.name, trust_remote_code=self.trust_remote_code)
        return model, load_processor(self.name, medium, trust_remote_code=self.trust_remote_code)

    def holding(self, model: nn.Module, processor: Any) -> Source:
        """The same source with the model that was loaded from it."""
        return replace(self, loaded=(model, processor))


def _made(fields: dict[str, Any]) -> Source:
    return Source(**fields)


def device_of_worker(device: str | None, number: int) -> str | None:
    """The device of a worker: of several GPUs the one in its turn.

    Args:
        device: the device that was asked for; None for the usual one.
        number: which of the machine's workers it is.
    """
    gpus = torch.cuda.device_count() if device_named(device).type == "cuda" else 0
    return f"cuda:{number % gpus}" if gpus > 1 and device in (None, "cuda") else device
