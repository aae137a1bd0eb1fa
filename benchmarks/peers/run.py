"""Facility location and graph cut against apricot-select and submodlib: one matrix, one run.

    python benchmarks/peers/run.py                     # n = 1 000, 5 000 and 16 128; some minutes
    python benchmarks/peers/run.py --sizes 1000 250

Makes an environment of its own for the peers, draws points from Gaussian clusters, and lets every
library select from the same float32 similarity, each in a process of its own with a time limit. The
value of every choice is computed by the same code in double precision. Results are printed and
written to ``benchmarks/results/peers.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = {"apricot": "apricot-select", "submodlib": "submodlib-py"}
SIZES = ((1_000, 250), (5_000, 1_250), (16_128, 4_000))
OBJECTIVES = ("facility location", "graph cut")


def similarity(n: int, seed: int = 0) -> np.ndarray:
    """``exp(-d^2 / 32)`` of points from Gaussian clusters in 32 dimensions; symmetric to the bit."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(8, n // 100), 32))
    points = centres[rng.integers(len(centres), size=n)] + 0.5 * rng.normal(size=(n, 32))
    points = points.astype(np.float32)
    squares = np.einsum("nd,nd->n", points, points)
    matrix = np.empty((n, n), dtype=np.float32)
    step = 1024
    for a in range(0, n, step):
        block = matrix[a : a + step]
        np.matmul(points[a : a + step], points.T, out=block)
        block *= -2
        block += squares
        block += squares[a : a + step, None]
        np.maximum(block, 0, out=block)
        block /= -32
        np.exp(block, out=block)
    for a in range(0, n, step):
        for b in range(a, n, step):
            upper, lower = matrix[a : a + step, b : b + step], matrix[b : b + step, a : a + step]
            lower[:] = np.maximum(upper, upper.T) if a == b else upper.T
    np.fill_diagonal(matrix, 1)
    return matrix


def environment(folder: Path) -> tuple[Path, list[str]]:
    """A Python with the peers installed, and the names of those that could be."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    present: list[str] = []
    for module, package in PEERS.items():
        installed = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", package],
            capture_output=True,
            text=True,
        )
        if installed.returncode == 0:
            present.append(module)
        else:
            print(f"{package} cannot be installed here: {installed.stderr.strip()[-300:]}")
    return python, present


def measure(
    python: Path, library: str, matrix: Path, keep: int, objective: str, limit: float
) -> dict[str, Any]:
    """One library's result; its failure or its running out of time is a result too."""
    command = [str(python), str(HERE / "worker.py"), library, str(matrix), str(keep), objective]
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=limit,
            env={**os.environ, "PYTHONPATH": path} if library == "cahp_opt" else None,
        )
    except subprocess.TimeoutExpired:
        return {"library": library, "error": f"not done after {limit:.0f} s"}
    if done.returncode:
        return {"library": library, "error": done.stderr.strip()[-500:]}
    return json.loads(done.stdout.splitlines()[-1])


def provenance(python: Path, present: list[str]) -> dict[str, Any]:
    """Where and with what this was measured."""
    code = "import importlib.metadata as m, sys; print(*[p + '==' + m.version(p) for p in sys.argv[1:]])"
    packages = ["numpy", "numba", *(PEERS[p] for p in present)] if present else ["numpy"]
    versions = subprocess.run(
        [str(python), "-c", code, *packages], capture_output=True, text=True
    ).stdout.split()
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = lines[0].split(":")[1].strip() if lines else cpu
    return {
        "device": cpu,
        "cores": os.cpu_count(),
        "load_average_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads": {k: os.environ[k] for k in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")},
        "python": platform.python_version(),
        "own_numpy": np.__version__,
        "peer_packages": versions,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", help="pairs of n and units to keep")
    parser.add_argument("--venv", type=Path, default=None, help="environment of the peers to reuse")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds per measurement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "peers.json")
    arguments = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = str(arguments.threads)
    flat = arguments.sizes
    sizes = tuple(zip(flat[::2], flat[1::2], strict=True)) if flat else SIZES
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        python, present = environment(arguments.venv or Path(scratch) / "venv")
        facts = provenance(python, present)
        for n, keep in sizes:
            file = Path(scratch) / f"similarity-{n}.npy"
            np.save(file, similarity(n))
            for objective in OBJECTIVES:
                print(f"\n{objective}, n = {n}, keep {keep}")
                for library in ("cahp_opt", *present):
                    own = library == "cahp_opt"
                    result = measure(
                        Path(sys.executable) if own else python,
                        library,
                        file,
                        keep,
                        objective,
                        arguments.time_limit,
                    )
                    results.append({"objective": objective, "n": n, "keep": keep, **result})
                    print(line(result), flush=True)
            file.unlink()
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            record = {"provenance": facts, "results": results}
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nwritten to {arguments.out}")


def line(result: dict[str, Any]) -> str:
    """One result for people."""
    if "error" in result:
        return f"  {result['library']:<10} {result['error']}"
    return (
        f"  {result['library']:<10} {result['total_seconds']:8.2f} s   "
        f"(processor {result['processor_seconds']:7.2f} s)   value {result['value']:.9g}   "
        f"peak memory {result['peak_bytes'] / 2**30:.2f} GiB"
    )


if __name__ == "__main__":
    main()
