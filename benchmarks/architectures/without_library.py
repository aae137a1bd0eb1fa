"""Folders of pruned models, opened with transformers where this library is not installed.

    python benchmarks/architectures/without_library.py --environments DIR
    python benchmarks/architectures/without_library.py --environments DIR --releases 4.57.6 --builds bert gpt2

Builds one virtual environment per release of transformers (kept in DIR and used again), and lets the library,
from this checkout, write tiny models of ``tests/tiny_models.py`` there: uneven heads and neurons, one block of
attention and one feed-forward part empty. Then the environment alone loads every folder by its Auto class with
``trust_remote_code=True``, and compares outputs and generated tokens with the writer's. Prints
a line for each, and exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RELEASES = ("4.57.6", "5.0.0", "5.12.1", "5.24.0")
BUILDS = (
    *("bert", "roberta", "distilbert", "deberta-v2", "modernbert", "mpnet", "albert", "electra"),
    *("gpt2", "llama-gqa", "mistral", "qwen2", "qwen3", "gpt-neox", "opt", "phi3", "gemma2"),
    *("gemma3", "bloom", "falcon", "falcon-mqa", "gpt-oss", "bart", "marian", "t5", "umt5"),
    *("whisper", "vit", "deit", "beit", "swin", "clip"),
)
NEW_TOKENS = 8


def main() -> int:
    """Write and read under every release."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--environments", type=Path, required=True, help="folder of environments")
    parser.add_argument("--releases", nargs="+", default=RELEASES, help="releases of transformers")
    parser.add_argument("--builds", nargs="+", default=BUILDS, help="names in tests/tiny_models.py")
    given = parser.parse_args()
    from cross_version import environment

    bad = 0
    for release in given.releases:
        python = environment(given.environments.resolve(), release)
        folder = given.environments.resolve() / f"folders-{release}"
        shutil.rmtree(folder, ignore_errors=True)
        library = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
        _call(python, ["--write", str(folder), *given.builds], library)
        bad += _call(python, ["--read", str(folder), *given.builds], None)
    return int(bad > 0)


def _call(python: Path, arguments: list[str], library: str | None) -> int:
    """Run this file in another environment, with the library's folders on its path or without."""
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    variables |= {} if library is None else {"PYTHONPATH": library}
    variables["HF_MODULES_CACHE"] = str(Path(arguments[1]) / "modules")
    return subprocess.run([str(python), __file__, *arguments], env=variables).returncode


# --- in an environment -------------------------------------------------------------------------


def write(folder: Path, names: list[str]) -> None:
    """Save the models, with inputs and outputs."""
    import tiny_models
    import transformers
    from safetensors.torch import save_file

    from cahp_opt.torch import from_pretrained, save_pretrained

    logging: Any = transformers.logging
    logging.set_verbosity_error()
    for name in names:
        family = tiny_models.named(name)
        try:
            small = tiny_models.sliced(family, neurons=bool(family.inner))
            save_pretrained(small, folder / name)
            small = from_pretrained(folder / name).eval()
        except BaseException as error:  # pytest's skip is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "why.txt").write_text(f"{type(error).__name__}: {error}")
            continue
        batch = family.batch()
        found = {f"input/{key}": value for key, value in batch.items()}
        found |= {f"output/{key}": value for key, value in _outputs(small, batch).items()}
        if family.generates:
            prompt = family.prompt()
            found |= {f"prompt/{key}": value for key, value in prompt.items()}
            found["tokens"] = _generated(small, prompt)
        save_file({k: v.contiguous().clone() for k, v in found.items()}, folder / name / "expected")


def read(folder: Path, names: list[str]) -> int:
    """Load the folders and compare; the number of those that differ or do not load."""
    import importlib.util

    import torch
    import transformers
    from safetensors.torch import load_file

    assert importlib.util.find_spec("cahp_opt") is None, "the library is there"
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bad = 0
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, no cahp_opt:")
    for name in names:
        place = folder / name
        if (place / "why.txt").is_file():
            print(f"  {name}: not written: {(place / 'why.txt').read_text().splitlines()[0]}")
            continue
        expected = load_file(place / "expected")
        auto, cls = _way_in(place)
        begun = time.perf_counter()
        try:
            loader: Any = getattr(transformers, auto)
            model = loader.from_pretrained(str(place), trust_remote_code=True).eval()
            seconds = time.perf_counter() - begun
            outputs = _outputs(model, _part(expected, "input"))
            wanted = _part(expected, "output")
            differing = [k for k, v in wanted.items() if not torch.equal(v, outputs[k])]
            largest = max(float((v - outputs[k]).abs().max()) for k, v in wanted.items())
            told = f"{auto} gives {cls} in {seconds:.2f} s; largest difference {largest:g}"
            if "tokens" in expected:
                made = _generated(model, _part(expected, "prompt"))
                same = torch.equal(made, expected["tokens"])
                told += f"; {made.shape[0]} x {NEW_TOKENS} generated tokens {'equal' if same else 'DIFFER'}"
                differing += [] if same else ["tokens"]
        except Exception as error:
            told = f"{type(error).__name__}: {error}".splitlines()[0]
            differing = ["everything"]
        bad += bool(differing)
        print(f"  {name}: {told}", flush=True)
    return bad


def _way_in(place: Path) -> tuple[str, str]:
    """The Auto class of the folder's card that gives the class that was saved, and that class."""
    config = json.loads((place / "config.json").read_text())
    cls = config["architectures"][0]
    card = (place / "README.md").read_text()
    autos = [auto for auto, name in config["auto_map"].items() if name.endswith(f".{cls}")]
    return next(auto for auto in autos if f"import {auto}\n" in card), cls


def _part(tensors: Mapping[str, Any], which: str) -> dict[str, Any]:
    return {k.partition("/")[2]: v for k, v in tensors.items() if k.startswith(f"{which}/")}


def _outputs(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    with torch.no_grad():
        found = model(**batch)
    return {k: v for k, v in found.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}


def _generated(model: Any, prompt: Mapping[str, Any]) -> Any:
    import torch

    with torch.no_grad():
        return model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(Path(sys.argv[2]), sys.argv[3:])
    elif sys.argv[1:2] == ["--read"]:
        sys.exit(read(Path(sys.argv[2]), sys.argv[3:]))
    else:
        sys.exit(main())
