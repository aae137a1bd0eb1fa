"""Blind sweep: every model type of the installed transformers, tiny and random, sliced and compared.

Each type runs in a process of its own (forked, so that torch is imported once) with a limit on time and
memory. The journal next to the result makes an interrupted sweep go on where it stopped.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import importlib.metadata
import json
import logging
import multiprocessing
import os
import platform
import re
import resource
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
import transformers
from judging import Status, judge, model_types
from shrinking import Sizes

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "architectures"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="model types, separated by commas")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=int, default=90, help="processor seconds for one type")
    parser.add_argument("--memory", type=float, default=6.0, help="GiB for one type")
    parser.add_argument("--journal", type=Path, help="JSON lines; types in it are not run again")
    parser.add_argument(
        "--earlier",
        type=Path,
        help="an earlier result under the same release: types that could not be built then are taken over, "
        "others are built with the sizes that worked",
    )
    parser.add_argument("--build-only", action="store_true", help="build and run, without slicing")
    parser.add_argument("--note", default="", help="a sentence for the provenance")
    options = parser.parse_args()
    _preload()
    RESULTS.mkdir(parents=True, exist_ok=True)
    version = transformers.__version__
    journal = options.journal or RESULTS / f"sweep_{version}.jsonl"
    rows = _read(journal)
    only = [name for name in options.only.split(",") if name]
    types = only or model_types()
    options.sizes = {}
    earlier = json.loads(options.earlier.read_text())["types"] if options.earlier else []
    for row in earlier:
        if "sizes" in row:
            options.sizes[row["type"]] = Sizes(**row["sizes"])
        elif row["status"] == Status.NOT_BUILT.value:
            rows.setdefault(row["type"], row)
    todo = [t for t in types if only or t not in rows]
    _run(todo, rows, journal, options)
    for row in earlier:  # the sizes that worked have as many of one as of the other
        if "with_groups" in row and rows.get(row["type"], {}).get("status") == row["status"]:
            rows[row["type"]].setdefault("with_groups", row["with_groups"])
    _print(rows, types)
    if not only and not options.build_only:
        write(rows, version, options.note)


def _preload() -> None:
    """Import what every type needs, once, before forking."""
    for module in ("cahp_opt.torch", "transformers.models.llama.modeling_llama"):
        importlib.import_module(module)


def _run(todo: list[str], rows: dict[str, Any], journal: Path, options: Any) -> None:
    context = multiprocessing.get_context("fork")
    running: dict[str, tuple[Any, Any, float]] = {}
    waiting = list(reversed(todo))
    with journal.open("a", encoding="utf-8") as lines:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                name = waiting.pop()
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(name, there, options))
                process.start()
                there.close()
                running[name] = process, here, time.monotonic()
            for name, (process, here, start) in list(running.items()):
                row = _answer(process, here, start, options.timeout)
                if row is not None:
                    del running[name]
                    rows[name] = row = {"type": name, **row}
                    row["seconds"] = round(time.monotonic() - start, 1)
                    lines.write(json.dumps(row) + "\n")
                    lines.flush()
                    print(f"{name}: {row['status']} {row['reason'][:160]}", flush=True)
            time.sleep(0.02)


def _answer(process: Any, here: Any, start: float, timeout: float) -> dict[str, Any] | None:
    late = time.monotonic() - start > 10 * timeout  # the machine may be busy with other work
    if here.poll():
        try:
            row: dict[str, Any] = here.recv()
        except EOFError:
            process.join()
            reason = f"its process died with exit code {process.exitcode}"
            if process.exitcode == -signal.SIGXCPU:
                reason = f"not done within {timeout} s of processor time"
            row = {"status": Status.NOT_BUILT.value, "reason": reason}
        process.join(5)
        return row
    if late:
        process.kill()
        process.join()
        return {"status": Status.NOT_BUILT.value, "reason": f"not done within {10 * timeout} s"}
    return None


def _child(name: str, there: Any, options: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    transformers.logging.set_verbosity_error()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + int(options.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    spent = int(time.process_time())  # a fork starts at zero, but let that not matter
    resource.setrlimit(resource.RLIMIT_CPU, (spent + options.timeout, spent + options.timeout + 5))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        row = judge(name, build_only=options.build_only, sizes=options.sizes.get(name))
    except Exception as error:  # a defect of the sweep itself; it must be seen, not end the sweep
        row = {
            "status": Status.NOT_BUILT.value,
            "reason": f"{type(error).__name__}: {str(error)[:300]}",
        }
    there.send(row)


def _read(journal: Path) -> dict[str, Any]:
    if not journal.exists():
        return {}
    rows = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    return {row["type"]: row for row in rows}


def _print(rows: dict[str, Any], types: list[str]) -> None:
    counts = collections.Counter(rows[t]["status"] for t in types if t in rows)
    both = sum(has_both(rows[t]) for t in types if t in rows)
    print(dict(counts), f"{both} with both kinds")


def write(rows: dict[str, Any], version: str, note: str) -> None:
    """The result as JSON."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    counts = collections.Counter(row["status"] for row in rows.values())
    result = {
        "provenance": {
            "transformers": version,
            "versions": {name: _version(name) for name in ("cahp-opt", "torch", "numpy")},
            "python": platform.python_version(),
            "device": cpu[1] if cpu else platform.machine(),
            "dtype": "float32",
            "date": time.strftime("%Y-%m-%d"),
            "note": note,
        },
        "summary": {status.value: counts.get(status.value, 0) for status in Status},
        "neurons": dict(
            collections.Counter(
                row["neurons"]["status"] for row in rows.values() if "neurons" in row
            )
        ),
        "both kinds": sum(has_both(row) for row in rows.values()),
    }
    lines = ",\n".join("  " + json.dumps(rows[name]) for name in sorted(rows))
    path = RESULTS / f"sweep_{version}.json"
    head = json.dumps(result, indent=1).removesuffix("\n}")
    path.write_text(f'{head},\n "types": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    print(path.relative_to(ROOT))


def has_both(row: dict[str, Any]) -> bool:
    """Whether heads and neurons of a type were cut, and in one slice."""
    neurons = row.get("neurons", {}).get("status")
    return "both" not in row and row["status"] == neurons == Status.PASSED.value


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "source"


if __name__ == "__main__":
    main()
