"""Statistics: a record of one's own goes wherever those of the library go."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from records_by_hand import SPACE, make_stats

from cahp_opt import HeadSpace, HeadStats, RecordError
from cahp_opt.arrays import Bools, Floats
from cahp_opt.stats import head_stats
from cahp_opt.stats.pooling import Pooling
from cahp_opt.stats.registry import STATISTICS
from cahp_opt.stats.signatures import Signatures
from cahp_opt.stats.statistic import Arrays
from cahp_opt.stats.totals import PerPair, PerUnit

EARLIER = Path(__file__).parents[1] / "earlier"


@dataclass(frozen=True, eq=False)
class Largest:
    """The largest value of every unit, which adds up in a way of its own."""

    value: Floats

    def arrays(self) -> Arrays:
        return {"value": self.value}

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Largest:
        return cls(arrays["value"])

    def __add__(self, other: Largest) -> Largest:
        return Largest(np.maximum(self.value, other.value))

    def restricted(self, space: HeadSpace, kept: Bools) -> Largest:
        del space
        return Largest(self.value[kept])

    def check(self, name: str, space: HeadSpace) -> None:
        if self.value.shape != (space.n,):
            raise ValueError(f"`{name}` must have one value per unit.")


def with_largest(*values: float) -> HeadStats:
    stats, largest = make_stats(), Largest(np.array(values))
    return replace(stats, statistics={"largest": largest, **stats.statistics})


def largest(stats: HeadStats) -> list[float]:
    found = stats.statistic("largest", Largest)
    assert found is not None
    return [float(value) for value in found.value]


def test_a_new_statistic_is_a_record_and_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(head_stats, "STATISTICS", {**STATISTICS, "largest": Largest})
    stats = with_largest(1, 5, 2, 4, 3)
    assert list(stats.statistics) == [*make_stats().statistics, "largest"]
    assert largest(stats + with_largest(2, 2, 2, 2, 9)) == [2, 5, 2, 4, 9]
    assert largest(stats.restricted(np.array([True, False, False, True, True]))) == [1, 4, 3]
    stats.save(tmp_path / "stats")
    for again in (
        HeadStats.load(tmp_path / "stats"),
        copy.deepcopy(stats),
        pickle.loads(pickle.dumps(stats)),
    ):
        assert (
            largest(again) == [1, 5, 2, 4, 3] and again.statistics.keys() == stats.statistics.keys()
        )
    with pytest.raises(ValueError, match="calibrated with different options"):
        _ = stats + make_stats()
    with pytest.raises(ValueError, match="`largest` must have one value per unit"):
        with_largest(1, 2)


def test_a_statistic_that_is_not_known_is_not_lost_in_silence(tmp_path: Path) -> None:
    with_largest(1, 5, 2, 4, 3).save(tmp_path / "stats")
    with pytest.raises(RecordError, match="does not know: largest; read it with the release"):
        HeadStats.load(tmp_path / "stats")


def test_a_statistic_is_asked_for_by_its_name_and_class() -> None:
    stats = make_stats()
    assert stats.statistic("salience", PerUnit) is stats.salience
    assert stats.without("signatures").statistic("signatures", Signatures) is None
    with pytest.raises(TypeError, match="`salience` is a PerUnit, not a PerPair"):
        stats.statistic("salience", PerPair)


def test_densities_that_differ_do_not_add_up() -> None:
    one, two = make_stats(), make_stats()
    few = {1.0: two.gauss_newton[1.0]}
    other = HeadStats(SPACE, "model", 20, 200, gauss_newton=few, statistics=two.statistics)
    with pytest.raises(ValueError, match=r"densities \[0.5, 1.0\] and \[1.0\] cannot be added"):
        _ = one + other


def in_file(path: Path) -> tuple[object, bytes]:
    """The header, whose metadata have no order, and all bytes of the arrays."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def test_statistics_are_written_as_they_always_were(tmp_path: Path) -> None:
    """The file was written before statistics were a protocol, from what ``make_stats`` makes."""
    file = EARLIER / "statistics_of_all_kinds.safetensors"
    made = replace(make_stats(), pooling=Pooling.CLS)
    for name, stats in (("read", HeadStats.load(file)), ("made", made)):
        stats.save(tmp_path / name)
        assert in_file(tmp_path / name) == in_file(file)
