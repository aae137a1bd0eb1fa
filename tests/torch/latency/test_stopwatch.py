"""What the stopwatch does to memory while it times."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
from scripts import ONE_FILE

MAPPED = f"""{ONE_FILE}
import ctypes

import torch

from cahp_opt.torch.latency.stopwatch import Work, interleaved

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_int) for name in names.split()]

library = ctypes.CDLL(None)
library.mallinfo.restype = Info
found = []

def run():
    before = library.mallinfo().hblks
    part = torch.empty(24 << 20, dtype=torch.uint8)
    found.append(library.mallinfo().hblks - before)
    return part

kept = run()  # freeing it would raise what glibc keeps
interleaved({{"one": Work(run)}}, device=torch.device("cpu"), repeats=2)
print(*found)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others return memory otherwise")
def test_memory_is_not_mapped_anew_for_every_run() -> None:
    """glibc takes large blocks from the system one by one, until it has learnt to keep them.

    In a process of its own, because what was freed before changes what it keeps.
    """
    done = subprocess.run([sys.executable, "-c", MAPPED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *timed = map(int, done.stdout.split())
    assert first == 1 and timed == [0] * 4
