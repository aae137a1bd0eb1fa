"""One environment for this library and its peers, and runs in it, each in a process of its own."""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("apricot-select", "submodlib-py", "latence-solver", "abess")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")


def make(folder: Path) -> Path:
    """A Python that has what this library depends on, and every peer that can be installed."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    own: list[str] = ast.literal_eval(_field("dependencies"))
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *own], check=True)
    for package in PEERS:
        command = [str(python), "-m", "pip", "install", "--quiet", package]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{package} cannot be installed here: {done.stderr.strip()[-300:]}")
    return python


def run(python: Path, script: Path, arguments: list[str], limit: float) -> dict[str, Any]:
    """The line of JSON that a script prints last; its failure, or no end in time, is a result too.

    Args:
        python: of the environment.
        script: what to run.
        arguments: for the script.
        limit: seconds on the clock.
    """
    command = [str(python), str(script), *arguments]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=path)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {limit:.0f} s"}
    if done.returncode:
        return {"error": done.stderr.strip()[-500:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def provenance(python: Path) -> dict[str, Any]:
    """Where and with what something is measured."""
    code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    versions: Mapping[str, str] = json.loads(done.stdout)
    device = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        device = lines[0].split(":")[1].strip() if lines else device
    return {
        "device": device,
        "cores": os.cpu_count(),
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "threads": int(os.environ[THREADS[0]]),
        "python": platform.python_version(),
        "cahp-opt": ast.literal_eval(_field("version")),
        "versions": {p: versions.get(p, "absent") for p in ("numpy", "numba", *PEERS)},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _field(name: str) -> str:
    """What this project's ``pyproject.toml`` says of itself, on one line."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf"^{name} = (.+)$", text, re.MULTILINE)
    assert found, name
    return found[1]
