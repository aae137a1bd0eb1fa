"""The matrix of architectures under several versions of transformers, each in its own environment.

    python benchmarks/architectures/versions.py                    # the four versions; 5 minutes each
    python benchmarks/architectures/versions.py 5.6.2 --keep .venv-matrix

Makes an environment with the CPU build of torch, this project and one version of transformers, runs
the tests there that record for the support table, and writes what passed for which architecture, with
versions, device and date, to ``benchmarks/results/architectures/<version>.json``. Prints the failures,
and exits with 1 if there are any. ``support.py`` makes the table of these files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "architectures"
VERSIONS = ("4.57.6", "5.0.0", "5.12.1", "5.24.0")
TORCH = "2.13.0"
TESTS = ("tests/torch/test_matrix.py", "tests/torch/checkpoints/test_ecosystem.py")


def environment(folder: Path, transformers: str, torch: str) -> Path:
    """The interpreter of an environment with these versions; one that is there is completed."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    wanted = [f"torch=={torch}", f"transformers=={transformers}", "pytest>=8", "hypothesis>=6.100"]
    # One resolution for all, so that transformers' own limits on its dependencies hold.
    install = [str(python), "-m", "pip", "install", "--quiet", *wanted, "-e", f"{ROOT}[ecosystem]"]
    subprocess.run(install, check=True)
    return python


def run(python: Path, tests: list[str], target: Path) -> dict[str, Any]:
    """Run the tests and return what they recorded.

    Raises:
        SystemExit: if they could not be run at all.
    """
    target.unlink(missing_ok=True)
    # Old versions warn about things that are no business of the matrix.
    command = [str(python), "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider"]
    command += ["-m", "support", "--tb=short", "--support-json", str(target), *tests]
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **quiet}, capture_output=True, text=True
    )
    if done.returncode not in (0, 1) or not target.is_file():
        raise SystemExit(f"the tests did not run:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    record: dict[str, Any] = json.loads(target.read_text())
    return record


def failures(record: dict[str, Any]) -> list[str]:
    """One line for every check that failed."""
    return [
        f"{build}: {check}: {found['why']}"
        for build, checks in record["builds"].items()
        for check, found in checks.items()
        if found["outcome"] == "failed"
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("versions", nargs="*", default=list(VERSIONS), help="of transformers")
    parser.add_argument("--torch", default=TORCH, help="version of torch")
    parser.add_argument("--keep", type=Path, help="folder in which the environments stay")
    parser.add_argument(
        "--tests", nargs="+", default=list(TESTS), help="files with tests that record"
    )
    arguments = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as scratch:
        for version in arguments.versions:
            folder = (arguments.keep or Path(scratch)).resolve() / version
            python = environment(folder, version, arguments.torch)
            record = run(python, arguments.tests, RESULTS / f"{version}.json")
            found = failures(record)
            bad += len(found)
            print(f"transformers {version}: {len(record['builds'])} builds, {len(found)} failures")
            print("".join(f"  {line}\n" for line in found), end="", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
