"""The processors that a container is granted: threads are capped to them, and records tell them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tiny
import torch

from cahp_opt import HeadSpace
from cahp_opt.cli import main
from cahp_opt.costs.latency_table import LatencyTable
from cahp_opt.costs.processors import fitting_threads, granted
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.provenance import Provenance
from cahp_opt.space import Block
from cahp_opt.studies.promise import foreign
from cahp_opt.torch.latency.block_times import measure_latency


def machine(root: Path, groups: str, **files: str) -> Path:
    """A file system with control groups; names of files have ``__`` for slashes and ``_0_`` for dots."""
    written = {"proc__self__cgroup": groups, **files}
    for name, content in written.items():
        path = root / name.replace("__", "/").replace("_0_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n", encoding="utf-8")
    return root


TOP, OLD = "sys__fs__cgroup__", "sys__fs__cgroup__cpu,cpuacct__"
V1 = "4:memory:/docker/a\n2:cpu,cpuacct:/docker/a\n0::/"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {f"{TOP}cpu_0_max": "150000 100000"}, 1.5),  # in a container
        ("0::/", {f"{TOP}cpu_0_max": "max 100000"}, 0.0),
        ("0::/", {f"{TOP}cpu_0_max": "nonsense"}, 0.0),
        ("0::/a/b", {f"{TOP}a__b__cpu_0_max": "200000 100000"}, 2.0),
        (  # the narrowest of all groups around it
            "0::/a/b",
            {f"{TOP}a__b__cpu_0_max": "max 100000", f"{TOP}a__cpu_0_max": "50000 100000"},
            0.5,
        ),
        ("0::/../elsewhere", {f"{TOP}cpu_0_max": "300000 100000"}, 3.0),
        (
            V1,
            {
                f"{OLD}docker__a__cpu_0_cfs_quota_us": "250000",
                f"{OLD}docker__a__cpu_0_cfs_period_us": "100000",
            },
            2.5,
        ),
        (  # in a container, where the path is that outside
            V1,
            {f"{OLD}cpu_0_cfs_quota_us": "100000", f"{OLD}cpu_0_cfs_period_us": "50000"},
            2.0,
        ),
        (
            V1,
            {f"{OLD}cpu_0_cfs_quota_us": "-1", f"{OLD}cpu_0_cfs_period_us": "100000"},
            0.0,
        ),
        (
            "3:cpu:/",
            {
                "sys__fs__cgroup__cpu__cpu_0_cfs_quota_us": "100000",
                "sys__fs__cgroup__cpu__cpu_0_cfs_period_us": "100000",
            },
            1.0,
        ),
        ("", {}, 0.0),
    ],
)
def test_the_quota_is_read_from_control_groups(
    tmp_path: Path, groups: str, files: dict[str, str], expected: float
) -> None:
    assert granted(machine(tmp_path, groups, **files)) == expected


def test_without_control_groups_nothing_is_limited(tmp_path: Path) -> None:
    assert granted(tmp_path) == 0
    assert granted() >= 0


@pytest.mark.parametrize(
    ("quota", "processors", "expected"),
    [("100000", 8, 1), ("250000", 8, 2), ("20000", 8, 1), ("800000", 8, 4), ("max", 3, 3)],
)
def test_threads_fit_the_quota_and_the_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, processors: int, expected: int
) -> None:
    root = machine(tmp_path, "0::/", **{f"{TOP}cpu_0_max": f"{quota} 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)), raising=False)
    assert fitting_threads(4, root) == expected
    monkeypatch.delattr(os, "sched_getaffinity")
    assert fitting_threads(4, root) == (4 if quota == "max" else expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model."""
    folder = tmp_path_factory.mktemp("model")
    tiny.BERT.build(bare=True, num_hidden_layers=1).save_pretrained(folder)
    return str(folder)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("options", "environment", "threads", "note"),
    [
        ([], {}, 2, "note: 2 threads of 4, because control groups grant 2.5 of the processors"),
        (["--threads", "2"], {}, 2, ""),
        (["--threads", "3"], {}, 3, "note: 3 threads are stopped for a part of the time"),
        ([], {"OMP_NUM_THREADS": "4"}, 4, "note: 4 threads are stopped for a part of the time"),
    ],
)
def test_the_command_line_takes_no_more_threads_than_are_granted(
    folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    environment: dict[str, str],
    threads: int,
    note: str,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("cahp_opt.costs.processors.granted", lambda root=None: 2.5)
    monkeypatch.setattr("cahp_opt.torch.latency.model_times.granted", lambda: 2.5)
    torch.set_num_threads(4)
    size = ["--batch-size", "1", "--sequence-length", "4", "--repeats", "1", "--prune", "heads"]
    path = tmp_path / "profile.json"
    assert main(["latency", folder, "--output", str(path), *size, *options]) == 0
    told = capsys.readouterr().err
    assert note in told and (note or "threads" not in told)
    (table,) = Profile.load(path).latency.values()
    assert (table.provenance.threads, table.provenance.quota) == (threads, 2.5)


def test_a_table_tells_its_quota_and_one_of_before_is_read(tmp_path: Path) -> None:
    space = HeadSpace((Block("a", 2),))
    seconds = (np.array([0.0, 1.0, 2.0]),)
    facts = Provenance(device="a", threads=2, quota=1.0, spread=0.5)
    table = LatencyTable(space, 1.0, seconds, facts)
    (remark,) = table.remarks
    assert "2 threads where control groups grant 1 of the processors" in remark
    table.save(tmp_path / "table")
    assert LatencyTable.load(tmp_path / "table").provenance == facts
    data = table.to_json()
    del data["provenance"]["quota"]
    assert LatencyTable.from_json(space, data).provenance == replace(facts, quota=0.0)
    assert "noisy" in LatencyTable(space, 1.0, seconds, replace(facts, quota=2.0)).remarks[0]
    with pytest.raises(ValueError, match="`quota`"):
        replace(facts, quota=-1.0)
    for other, differs in ((2.0, True), (1.0, False), (0.0, False)):
        assert bool(foreign({"t": facts}, {"t": replace(facts, quota=other)})) is differs


def test_python_records_the_quota_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cahp_opt.torch.latency.model_times.granted", lambda: 1.5)
    table = measure_latency(tiny.BERT.build(), tiny.batch(padded=False), repeats=1)
    assert table.provenance.quota == 1.5
