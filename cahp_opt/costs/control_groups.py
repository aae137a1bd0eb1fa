"""The control groups that limit what a process in a container may take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """The folders of the control groups of this process, from its own up to the one that holds all.

    In a container the path of its own group may be that outside, and its folder the topmost one.

    Args:
        controller: ``cpu`` or ``memory``.
        root: of the file system, for tests.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            tops = [mounted, mounted / "unified"]
        elif controller in controllers.split(","):
            tops = [mounted / controllers, mounted / controller]
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for top in tops:
            for end in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:end])
