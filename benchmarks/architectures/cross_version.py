"""Sliced models written under one release of transformers and read under another.

    python benchmarks/architectures/cross_version.py --environments DIR --output FILE.json

Builds one virtual environment per release (kept in DIR and used again), lets each write every tiny
model of ``tests/tiny_models.py`` with random keep-sets and one block without heads, and lets each read
what every other wrote. A reader recomputes the outputs on the writer's inputs; how far they are from
the writer's is set beside how far those of the unpruned model are, saved and read by transformers
alone, because the releases also differ in their own arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RELEASES = ("4.57.6", "5.0.0", "5.24.0")
TORCH = "2.13.0"
PACKAGES = ("numpy", "safetensors", "pytest")
ROUNDING = 1e-5
"""Outputs of size 1 and more in float32; they differ by 0.1 and more when a head is wrong. Ten times the
difference of the unpruned model is allowed too, where that is larger."""


def main() -> None:
    """Compare all pairs of releases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environments", type=Path, required=True, help="folder of environments")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--releases", nargs="+", default=RELEASES, help="releases of transformers")
    given = parser.parse_args()
    pythons = {release: environment(given.environments, release) for release in given.releases}
    written = {r: given.environments / f"written-{r}" for r in given.releases}
    writers = {r: call(pythons[r], "write", written[r]) for r in given.releases}
    readers = {
        reader: {w: call(pythons[reader], "read", written[w]) for w in given.releases}
        for reader in given.releases
    }
    names = sorted({name for found in writers.values() for name in found})
    pairs = [
        {"written_by": w, "read_by": r, "models": len(found), **verdicts(found)}
        for r, by_writer in readers.items()
        for w, found in by_writer.items()
    ]
    record = {
        "provenance": {
            "torch": TORCH,
            "transformers": list(given.releases),
            "python": platform.python_version(),
            "dtype": "float32",
            "device": "cpu",
        },
        "rounding": ROUNDING,
        "models": names,
        "not_written": {r: {n: w for n, w in f.items() if w != "ok"} for r, f in writers.items()},
        "pairs": pairs,
        "differences": readers,
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for pair in pairs:
        print(json.dumps(pair))


def environment(folder: Path, release: str) -> Path:
    """The interpreter of an environment with this release of transformers."""
    home = folder / f"transformers-{release}"
    python = home / "bin" / "python"
    ready = home / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        wanted = [f"torch=={TORCH}", f"transformers=={release}", *PACKAGES]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
        ready.touch()
    return python


def call(python: Path, what: str, folder: Path) -> dict[str, Any]:
    """Run this file as a worker in another environment; its answer is the last line it prints."""
    variables = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [str(python), __file__, "--worker", what, str(folder)]
    done = subprocess.run(command, env=variables, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def verdicts(found: Mapping[str, Any]) -> dict[str, Any]:
    """How many models are the same, and which are not."""
    numbers = {name: d for name, d in found.items() if isinstance(d, dict)}
    same = {n for n, d in numbers.items() if d["sliced"] <= max(ROUNDING, 10 * d["dense"])}
    return {
        "bit_for_bit": sum(d["sliced"] == 0 for d in numbers.values()),
        "same": len(same),
        "largest": max((d["sliced"] for d in numbers.values()), default=None),
        "differ": sorted(numbers.keys() - same),
        "refused": {name: d for name, d in found.items() if name not in numbers},
    }


# --- in an environment -------------------------------------------------------------------------


def worker(what: str, folder: Path) -> None:
    """Write or read every model; print a JSON object with one entry for each."""
    import tiny_models
    import transformers

    logging: Any = transformers.logging
    logging.set_verbosity_error()
    families = [f for f in tiny_models.BUILDS if f.make is None]
    if what == "write":
        shutil.rmtree(folder, ignore_errors=True)
    else:
        families = [f for f in families if (folder / f.name / "outputs.safetensors").exists()]
    action = {"write": write, "read": read}[what]
    print(json.dumps({f.name: told(action, f, folder / f.name) for f in families}))


def told(action: Callable[[Any, Path], Any], family: Any, folder: Path) -> Any:
    """The answer of an action, or the first line of what it raised."""
    try:
        return action(family, folder)
    except BaseException as error:  # pytest's skip is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        line = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {line}".replace(f"{folder.parent}{os.sep}", "")


def write(family: Any, folder: Path) -> str:
    """Save a sliced and the unpruned model, the inputs and both outputs."""
    import numpy as np
    from safetensors.torch import save_file

    from cahp_opt.torch import find_attention, save_pretrained, slice_heads

    layers = family.config().to_dict().get("encoder_layers")
    # Releases differ in which of the two names they believe, so both must say the same.
    model = family.build(**({} if layers is None else {"num_hidden_layers": layers}))
    model.save_pretrained(str(folder / "dense"))
    model = type(model).from_pretrained(str(folder / "dense")).eval()  # Marian saves no positions
    batch = family.batch()
    space = find_attention(model).space
    kept = np.random.default_rng(zlib.crc32(family.name.encode())).random(space.n) < 0.6
    kept[space.slices[0]] = False
    kept[-1] = True
    small = slice_heads(model, kept, batch=batch)
    save_pretrained(small, folder / "sliced", overwrite=True)
    save_file(batch, folder / "inputs.safetensors")
    pairs = {"sliced": small, "dense": model}
    save_file(
        {f"{which}/{k}": v for which, m in pairs.items() for k, v in outputs_of(m, batch).items()},
        folder / "outputs.safetensors",
    )
    return "ok"


def read(family: Any, folder: Path) -> dict[str, float]:
    """The largest difference of the outputs from the writer's, of the sliced and unpruned model."""
    from safetensors.torch import load_file

    from cahp_opt.torch import from_pretrained

    batch = load_file(folder / "inputs.safetensors")
    expected = load_file(folder / "outputs.safetensors")
    small = from_pretrained(folder / "sliced").eval()
    dense = type(small).from_pretrained(str(folder / "dense")).eval()
    differences = {"sliced": 0.0, "dense": 0.0}
    for which, model in {"sliced": small, "dense": dense}.items():
        for name, value in outputs_of(model, batch).items():
            difference = (value - expected[f"{which}/{name}"]).abs().max().item()
            differences[which] = max(differences[which], difference)
    return differences


def outputs_of(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """All that the model returns at real tokens."""
    import tiny_models

    found = tiny_models.outputs(model, dict(batch)).items()
    return {name: value.contiguous() for name, value in found}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
