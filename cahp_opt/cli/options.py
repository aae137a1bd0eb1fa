"""Options of several commands that the library itself knows nothing of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from cahp_opt.runs.names import Precision, Units
from cahp_opt.runs.options import option


@dataclass(frozen=True)
class ModelOptions:
    """The model of a command, and where it runs."""

    topic: ClassVar[str] = "Model and machine"

    model: str = field(metadata=option("MODEL", help="Folder or hub id of a model."))
    leave_out: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--leave-out",
            metavar="MODULE",
            help="Module of the checkpoint that the model's class does not have and that may be lost, such "
            "as cls.seq_relationship of a BERT for masked words; such checkpoints are refused otherwise. "
            "May be repeated.",
        ),
    )
    trust_remote_code: bool = field(
        default=False,
        metadata=option(
            "--trust-remote-code",
            help="Run the code that comes with the model, if you trust it; it is never run otherwise.",
        ),
    )
    threads: int | None = field(
        default=None,
        metadata=option(
            "--threads",
            min=1,
            help="Threads of the CPU. Default: as many as PyTorch sets, but no more than a container is "
            "granted.",
        ),
    )
    device: str | None = field(
        default=None,
        metadata=option(
            "--device", metavar="DEVICE", help="Such as cpu or cuda. Default: CUDA where available."
        ),
    )
    device_map: str | None = field(
        default=None,
        metadata=option(
            "--device-map",
            metavar="MAP",
            help="Spread the model over several devices, in place of --device: auto, balanced, balanced_low_0 or "
            "sequential, as transformers has them, or one device. Needs accelerate.",
        ),
    )
    precision: Precision | None = field(
        default=None,
        metadata=option(
            "--dtype",
            help="Precision of the weights. Default: float32 on a CPU, the checkpoint's own elsewhere.",
        ),
    )


@dataclass(frozen=True)
class MeasuredModel(ModelOptions):
    """A model whose units are found, rather than read from a selection."""

    units: Units = field(
        default=Units.AUTO,
        metadata=option(
            "--units",
            help="Units under grouped-query attention: auto for key/value heads with all their query "
            "heads; query-slots for query heads, the same number for every key/value head.",
        ),
    )
