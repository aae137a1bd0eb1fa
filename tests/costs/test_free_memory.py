"""The memory that is free, of the machine and in a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from cahp_opt.costs.free_memory import free_memory

MACHINE = {"proc/meminfo": "MemTotal:       900 kB\nMemFree:  5 kB\nMemAvailable:  100 kB\n"}
A, B = "sys/fs/cgroup/a", "sys/fs/cgroup/memory"
V2 = {
    "proc/self/cgroup": "0::/a",
    f"{A}/memory.current": "50000",
    f"{A}/memory.stat": "anon 3",
}
V1 = {
    "proc/self/cgroup": "4:memory:/b\n0::/",
    f"{B}/memory.usage_in_bytes": "9000",
    f"{B}/memory.stat": "cache 1",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (MACHINE, 102400),
        ({**MACHINE, **V2, f"{A}/memory.max": "max"}, 102400),
        ({**MACHINE, **V2, f"{A}/memory.max": "70000"}, 20000),
        (
            {
                **MACHINE,
                **V2,
                f"{A}/memory.max": "70000",
                f"{A}/memory.stat": "anon 3\ninactive_file 4000",
            },
            24000,
        ),
        ({**MACHINE, **V2, f"{A}/memory.max": "40000"}, 0),
        ({**MACHINE, **V1, f"{B}/memory.limit_in_bytes": "10000"}, 1000),
        (
            {**MACHINE, **V1, f"{B}/memory.limit_in_bytes": str(2**63 - 4096)},
            102400,
        ),
    ],
)
def test_free_is_what_both_the_machine_and_its_groups_leave(
    files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    assert free_memory(tmp_path) == expected


def test_a_machine_that_does_not_tell_has_all_of_its_memory(tmp_path: Path) -> None:
    assert free_memory(tmp_path) >= free_memory() > 2**20
