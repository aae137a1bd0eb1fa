"""Statistics that stand block by block, taken apart and put together, and kept in a file until they are used."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cahp_opt.files.records import PathLike
from cahp_opt.space import HeadSpace
from cahp_opt.stats.by_block import ByBlock
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.statistic import Statistic


def of_single_blocks(stats: HeadStats) -> list[HeadStats]:
    """The statistics of every block alone.

    Raises:
        ValueError: if there are others than those that stand block by block.
    """
    for name, statistic in stats.statistics.items():
        if not isinstance(statistic, ByBlock):
            raise ValueError(f"`stats` has {name}, which is about all blocks together.")
    return [_alone(stats, number) for number in range(len(stats.space.blocks))]


def _alone(stats: HeadStats, number: int) -> HeadStats:
    found: dict[str, Statistic] = {}
    for name, statistic in stats.statistics.items():
        by_block: Any = statistic
        found[name] = type(by_block)([by_block.entries[number]])
    space = HeadSpace((stats.space.blocks[number],))
    facts = stats.model, stats.examples, stats.tokens
    return HeadStats(space, *facts, pooling=stats.pooling, statistics=found)


def of_all_blocks(parts: Sequence[HeadStats]) -> HeadStats:
    """The statistics of all blocks, from those of every block alone that the same examples gave.

    Args:
        parts: at least one.
    """
    first = parts[0]
    found: dict[str, Statistic] = {}
    for name in first.statistics:
        by_block: list[Any] = [part.statistics[name] for part in parts]
        found[name] = type(by_block[0])(entry for each in by_block for entry in each.entries)
    space = HeadSpace(tuple(block for part in parts for block in part.space.blocks))
    facts = first.model, first.examples, first.tokens
    return HeadStats(space, *facts, pooling=first.pooling, statistics=found)


def on_disk(stats: HeadStats, folder: PathLike | None = None) -> HeadStats:
    """The same statistics, whose arrays lie in a file without a name: the system reads what is used and may forget it
    again, and the file is gone when nobody holds them any more.

    Args:
        stats: the statistics.
        folder: with room for them; None for that of temporary files.

    Raises:
        OSError: if they cannot be written.
    """
    # Where a file that is in use cannot be removed, it stays.
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place:
        path = Path(place) / "statistics.safetensors"
        stats.save(path)
        return HeadStats.load(path)
