"""The peak rates of a device, from which times are estimated without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from types import MappingProxyType

from cahp_opt.files.records import PathLike, read_json, reading, write_json

_KIND, _VERSION = "cahp-hardware", 1


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Peak rates of a device, measured by :func:`cahp_opt.torch.measure_hardware` or from a data sheet.

    Args:
        name: of the device.
        flops_per_second: floating-point operations per second of a large matrix product (an addition and
            a multiplication are two), by precision, such as ``float32`` or ``bfloat16``.
        bytes_per_second: read and written by a large copy, together.
        launch_seconds: from the start of one small operation to the start of the next, with what the
            framework does in between.
        runs_ahead: whether operations are launched while earlier ones still run, as on a GPU; if not,
            every launch adds to the time.

    Raises:
        ValueError: for an empty name, no precision, or a number that is not finite and above 0.
    """

    name: str
    flops_per_second: Mapping[str, float]
    bytes_per_second: float
    launch_seconds: float
    runs_ahead: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("`name` is empty; say which device this is.")
        if not self.flops_per_second:
            raise ValueError("`flops_per_second` is empty; it needs at least one precision.")
        if not isinstance(self.runs_ahead, bool):
            raise ValueError(f"`runs_ahead` must be true or false, got {self.runs_ahead!r}.")
        numbers = {f"flops_per_second[{key!r}]": v for key, v in self.flops_per_second.items()}
        numbers |= {name: getattr(self, name) for name in ("bytes_per_second", "launch_seconds")}
        for name, number in numbers.items():
            if not (isfinite(number) and number > 0):
                raise ValueError(f"`{name}` must be finite and above 0, got {number}.")
        object.__setattr__(self, "flops_per_second", MappingProxyType(dict(self.flops_per_second)))

    def save(self, path: PathLike) -> None:
        """Write the record as JSON."""
        body = {
            "name": self.name,
            "flops_per_second": dict(self.flops_per_second),
            "bytes_per_second": self.bytes_per_second,
            "launch_seconds": self.launch_seconds,
            "runs_ahead": self.runs_ahead,
        }
        write_json(path, _KIND, _VERSION, body)

    @staticmethod
    def load(path: PathLike) -> Hardware:
        """Read a record.

        Raises:
            RecordError: if the file is not a usable record.
            OSError: if it cannot be read.
        """
        data = read_json(path, _KIND, _VERSION)
        with reading(path):
            return Hardware(
                name=data["name"],
                flops_per_second=data["flops_per_second"],
                bytes_per_second=data["bytes_per_second"],
                launch_seconds=data["launch_seconds"],
                runs_ahead=data["runs_ahead"],
            )
