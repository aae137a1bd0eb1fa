"""Which blocks are measured in one pass, so that their statistics fit into memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from cahp_opt.costs.free_memory import free_memory
from cahp_opt.files.records import PathLike
from cahp_opt.runs.measuring import Measuring, MeasuringOptions
from cahp_opt.torch.calibration.statistics_bytes import (
    ReadShape,
    moments_bytes,
    sensitivity_bytes,
)
from cahp_opt.torch.calibration.token_gradients import TokenGradients

_SHARE = 0.5  # of the memory that is free; beside the sums there are a batch and the matrices of one block


def sizes_by_block(measuring: Measuring) -> Mapping[str, Callable[[ReadShape], int]]:
    """The bytes of a block for every statistic that stands block by block."""
    found: dict[str, Callable[[ReadShape], int]] = {}
    if "moments" in measuring:
        found["moments"] = moments_bytes
    if TokenGradients.wanted(measuring) is not None:
        found["sensitivity"] = sensitivity_bytes
    return found


def block_bytes(shapes: Iterable[ReadShape], measuring: Measuring) -> list[int]:
    """The bytes of the statistics of every block, as far as they stand block by block."""
    sizes = sizes_by_block(measuring).values()
    return [sum(size(shape) for size in sizes) for shape in shapes]


def memory_for_statistics(amounts: MeasuringOptions) -> float:
    """The bytes that the statistics may take: what was given, or half of the memory that is free for each of the
    processes that a launcher started on this machine."""
    if amounts.statistics_bytes is not None:
        return amounts.statistics_bytes
    return _SHARE * free_memory() / int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def chunks(sizes: Sequence[int], most: float) -> list[range]:
    """The numbers of the blocks that are measured together: as many that follow each other as fit, and at least one.

    Args:
        sizes: the bytes of every block.
        most: bytes of those that are measured together.
    """
    found: list[range] = []
    start = taken = 0
    for number, size in enumerate(sizes):
        if number > start and taken + size > most:
            found.append(range(start, number))
            start, taken = number, 0
        taken += size
    return [*found, range(start, len(sizes))]


def check_room(needed: int, folder: PathLike | None) -> None:
    """Refuse statistics that a folder has no room for.

    Args:
        needed: their bytes.
        folder: made if it is not there; None for that of temporary files.

    Raises:
        ValueError: naming the way out.
    """
    place = Path(tempfile.gettempdir() if folder is None else folder)
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(
            f"the statistics take {needed / 2**30:.3g} GiB, more than fits into memory, and {place} has room for "
            f"{free / 2**30:.3g} GiB; give them more memory (`--statistics-memory`), an output folder on another disk, or "
            "prune heads alone (`--prune heads`)."
        )
