"""Every tiny architecture on a device: slices, generation, reload, calibration, latency.

    python benchmarks/gpu/architectures.py --device cuda
    python benchmarks/gpu/architectures.py --device cpu --builds bert,t5 --output /tmp/cpu.json

Runs every build of ``tests/tiny_models.py`` in float32 (TensorFloat-32 is off) and bfloat16, with SDPA
where the model has it, and writes one row per build and dtype to
``benchmarks/results/architectures/<device>.json``. A check that fails is recorded with its sentence, and
the others go on. The exit code is 1 if any failed.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import numpy as np
import pytest
import torch
import transformers
from tiny_models import BUILDS, Family, outputs, to, uneven
from torch import Tensor

from benchmarks.machine import device_of, facts, slug
from cahp_opt.arrays import Bools
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.torch import (
    bypass_empty,
    calibrate,
    find_attention,
    from_pretrained,
    head_mask,
    measure_latency,
    save_pretrained,
    slice_heads,
)
from cahp_opt.torch.evaluation.fidelity import ClassLogits, Fidelity, PooledEmbedding
from cahp_opt.torch.latency.model_times import device_name

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "architectures"
DTYPES = (torch.float32, torch.bfloat16)
PACKAGES = ("cahp-opt", "torch", "transformers", "accelerate", "numpy", "safetensors")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
"""Of outputs, relative to their largest value where that is above one; what the matrix of tests allows.
A wrong head makes 0.1 and more, and the mask must change more than twice as much as is allowed."""
SAME_STATS = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
"""Of moments and salience, relative to their largest value. Rounding to bfloat16 alone moves outputs of
these models by up to 0.03."""
SCORES = 1e-4
TOKENS = 9
REPEATS = 3
"""Of timed runs: enough to see that timing works, too few for a table to be used."""
FIDELITY: dict[str, Fidelity] = {"torch-encoder": PooledEmbedding(), "timm-vit": ClassLogits()}
"""What fits models that are not of transformers, which do not say what they return."""

Tensors = dict[str, Tensor]
Numbers = dict[str, Any]


class CheckFailed(Exception):
    """A check found a difference; the sentence says which."""


def require(holds: bool, sentence: str) -> None:
    """Raise the sentence unless it holds."""
    if not holds:
        raise CheckFailed(sentence)


def close(what: str, value: float, allowed: float) -> float:
    """``value``, if it is at most ``allowed``; NaN is not."""
    require(value <= allowed, f"{what}: {value:.3g}, and {allowed:.3g} is allowed")
    return value


class Case:
    """One build in one dtype on one device, dense and sliced."""

    def __init__(self, family: Family, device: torch.device, dtype: torch.dtype) -> None:
        self.family, self.device, self.dtype = family, device, dtype
        self.model: Any = family.build().to(device=device, dtype=dtype)
        if getattr(self.model, "_supports_sdpa", False):
            self.model.set_attn_implementation("sdpa")
        space = find_attention(self.model).space
        # The first block, because lengths of caches are read there; not the only one of a model.
        self.empty = 0 if len(space.blocks) > 1 else None
        self.kept: Bools = uneven(space, empty=self.empty, seed=len(family.name))
        self.tolerance = TOLERANCE[dtype]

    @property
    def implementation(self) -> str | None:
        """Of attention, as transformers names it; None for a model that is not of transformers."""
        found: object = getattr(getattr(self.model, "config", None), "_attn_implementation", None)
        return found if isinstance(found, str) else None

    @functools.cached_property
    def batches(self) -> dict[str, Tensors]:
        """Without padding and, where there can be padding, with it."""
        ways = {"plain": False, "padded": True} if self.family.pads else {"plain": False}
        return {
            way: {k: v.to(self.device) for k, v in to(batch, self.dtype).items()}
            for way, batch in ((w, self.family.batch(padded=p)) for w, p in ways.items())
        }

    @property
    def batch(self) -> Tensors:
        """The one with padding where there can be padding."""
        return list(self.batches.values())[-1]

    @functools.cached_property
    def small(self) -> Any:
        """The sliced model, which :func:`slice_heads` has checked in its own way."""
        return slice_heads(self.model, self.kept, batch=self.batch)

    def generate(self, model: Any, **options: Any) -> Any:
        """Greedy tokens and their scores, always as many."""
        prompt = {k: v.to(self.device) for k, v in self.family.prompt().items()}
        options |= {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
        options |= {"return_dict_in_generate": True, "output_scores": True}
        return model.generate(**prompt, pad_token_id=0, **options)

    @functools.cached_property
    def generated(self) -> Any:
        """What the masked model generates."""
        with head_mask(self.model, self.kept):
            return self.generate(self.model)

    def generates_the_same(self, model: Any, **options: Any) -> float:
        """The largest difference of the scores; the tokens must be equal."""
        found, expected = self.generate(model, **options), self.generated
        require(
            torch.equal(found.sequences, expected.sequences),
            f"the tokens differ from those of the masked model with {options or 'the cache'}",
        )
        pairs = zip(found.scores, expected.scores, strict=True)
        return close("scores", max(difference({"": a}, {"": b}) for a, b in pairs), SCORES)


def difference(found: Tensors, expected: Tensors) -> float:
    """The largest difference, relative to the largest value where that is above one; infinite for NaN."""
    require(found.keys() == expected.keys() and bool(expected), "the outputs are not the same ones")
    worst = 0.0
    for name, value in expected.items():
        mine = found[name]
        require(
            mine.shape == value.shape and mine.dtype is value.dtype and mine.device == value.device,
            f"{name!r} is {mine.dtype} {list(mine.shape)} on {mine.device}, and should be "
            f"{value.dtype} {list(value.shape)} on {value.device}",
        )
        # Scores of forbidden tokens are minus infinity on both sides.
        equal = mine == value
        scale = max(1.0, float(value[value.isfinite()].double().abs().amax()))
        apart = (mine.double() - value.double()).abs().masked_fill(equal, 0).amax()
        worst = max(worst, math.inf if bool(apart.isnan()) else float(apart) / scale)
    return worst


# --- the checks -----------------------------------------------------------------------------------


def check_slice(case: Case) -> Numbers:
    """The sliced model computes what the masked one does, and not what the dense one does."""
    numbers: Numbers = {}
    for way, batch in case.batches.items():
        with head_mask(case.model, case.kept):
            masked = outputs(case.model, batch)
        dense = outputs(case.model, batch)
        numbers[f"{way}_effect"] = effect = difference(dense, masked)
        require(effect > 2 * case.tolerance, f"the mask changes the outputs by {effect:.3g} only")
        found = difference(outputs(case.small, batch), masked)
        numbers[f"{way}_difference"] = close(f"masked and sliced, {way}", found, case.tolerance)
    ghosts = [block.ghost for block in find_attention(case.small).attention]
    wanted = [case.empty == index for index in range(len(ghosts))]
    require(ghosts == wanted, f"the empty blocks are {ghosts}, and should be {wanted}")
    devices = {str(p.device) for p in (*case.small.parameters(), *case.small.buffers())}
    require(devices == {str(case.device)}, f"the sliced model lies on {sorted(devices)}")
    return numbers


def check_generation(case: Case) -> Numbers:
    """Greedy decoding of the sliced model equals that of the masked one, token by token."""
    return {
        "tokens": int(case.generated.sequences.numel()),
        "scores_difference": case.generates_the_same(case.small),
        "scores_difference_without_cache": case.generates_the_same(case.small, use_cache=False),
    }


def check_reload(case: Case) -> Numbers:
    """A model loaded from disk straight onto the device has the same weights to the bit."""
    placed = importlib.util.find_spec("accelerate") is not None  # transformers wants it for maps
    options: dict[str, Any] = {"attn_implementation": case.implementation}
    if placed:
        options["device_map"] = {"": case.device}
    with tempfile.TemporaryDirectory() as scratch:
        save_pretrained(case.small, Path(scratch) / "pruned")
        loaded: Any = from_pretrained(Path(scratch) / "pruned", **options)
        loaded = loaded if placed else loaded.to(case.device)
        saved = dict(case.small.named_parameters())
        found = dict(loaded.named_parameters())
        require(saved.keys() == found.keys(), "the names of the weights differ")
        for name, weight in found.items():
            require(weight.device == case.device, f"{name} is on {weight.device}")
            # The loader keeps some weights in float32 whatever dtype is asked for.
            same = torch.equal(weight, saved[name].to(weight.dtype))
            require(same and weight.dtype in (case.dtype, torch.float32), f"{name} differs")
        # Kernels round by how weights lie in memory, and casting the dense model cast buffers, too.
        apart = difference(outputs(loaded, case.batch), outputs(case.small, case.batch))
        close("outputs of the reloaded model", apart, case.tolerance)
    return {"device_map": placed, "weights": len(found), "difference": apart}


def check_calibration(case: Case) -> Numbers:
    """Statistics on the device equal those of the same weights in float32 on the CPU."""
    fidelity = FIDELITY.get(case.family.name)
    here = calibrate(case.model, [case.batch], fidelity=fidelity)
    model = copy.deepcopy(case.model).to(device="cpu", dtype=torch.float32)
    batch = {k: v.cpu() for k, v in to(case.batch, torch.float32).items()}
    there = calibrate(model, [batch], fidelity=fidelity)
    require(here.examples == there.examples and here.tokens == there.tokens, "counts differ")
    allowed = SAME_STATS[case.dtype]
    numbers: Numbers = {"moments_difference": close("moments", moments_apart(here, there), allowed)}
    salience = here.salience.sum
    require(bool(np.isfinite(salience).all() and salience.any()), "the salience is empty")
    # Probes are drawn from the outputs: rounded to bfloat16 they are other draws.
    if case.dtype is torch.float32:
        apart = relative(salience, there.salience.sum)
        numbers["salience_difference"] = close("salience", apart, allowed)
    return numbers


def moments_apart(one: HeadStats, other: HeadStats) -> float:
    """The largest relative difference of the moments of any block."""
    worst = 0.0
    for a, b in zip(one.moments, other.moments, strict=True):
        require(a.count == b.count, f"{a.count} rows were counted, and {b.count} on the CPU")
        found = [relative(a.sum, b.sum), relative(a.scatter, b.scatter)]
        worst = max(worst, *(math.inf if math.isnan(x) else x for x in found))
    return worst


def relative(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference relative to the largest value."""
    return float(np.abs(one - other).max() / np.abs(other).max())


def check_bypass(case: Case) -> Numbers:
    """Skipping the empty block changes nothing, in generation neither."""
    small = copy.deepcopy(case.small)
    before = {way: outputs(small, batch) for way, batch in case.batches.items()}
    numbers: Numbers = {"skipped": bypass_empty(small, case.batch)}
    require(numbers["skipped"] <= 1, f"{numbers['skipped']} blocks are skipped, and one is empty")
    apart = [difference(outputs(small, case.batches[way]), found) for way, found in before.items()]
    numbers["difference"] = close("outputs with the block skipped", max(apart), case.tolerance)
    if numbers["skipped"] and generates(case):
        numbers["scores_difference"] = case.generates_the_same(small)
    return numbers


def check_latency(case: Case) -> Numbers:
    """Timing works, knows what it timed, and gives times that are times."""
    table = measure_latency(case.model, case.batch, repeats=REPEATS)
    told = table.provenance
    name, dtype = device_name(case.device), str(case.dtype).removeprefix("torch.")
    require((told.device, told.dtype) == (name, dtype), f"it says {told.dtype} on {told.device!r}")
    unpruned = table.predict(table.space.units)
    times = np.concatenate([np.asarray(s) for s in table.seconds])
    sane = bool(np.isfinite(times).all() and (times >= 0).all()) and 0 < unpruned < 60
    require(sane, f"the times are not times: {unpruned} s for the unpruned model")
    return {"unpruned_seconds": unpruned, "table_error": told.error, "spread": told.spread}


def generates(case: Case) -> bool:
    """Whether tokens can be compared: in bfloat16 rounding decides between likely ones."""
    return case.family.generates and case.dtype is torch.float32


def of_transformers(case: Case) -> bool:
    """Whether it can be saved: only models of transformers can."""
    return case.family.make is None


def always(case: Case) -> bool:
    """For every build."""
    del case
    return True


CHECKS: Mapping[str, tuple[Callable[[Case], Numbers], Callable[[Case], bool]]] = {
    "slice": (check_slice, always),
    "generate": (check_generation, generates),
    "reload": (check_reload, of_transformers),
    "calibrate": (check_calibration, always),
    "bypass": (check_bypass, always),
    "latency": (check_latency, always),
}
"""By name, what is checked and for which builds."""


# --- running them ---------------------------------------------------------------------------------


def row_of(family: Family, device: torch.device, dtype: torch.dtype) -> Numbers:
    """All checks of one build in one dtype."""
    start = time.perf_counter()
    row: Numbers = {"build": family.name, "dtype": str(dtype).removeprefix("torch.")}
    found: dict[str, Numbers] = {}
    try:
        case = Case(family, device, dtype)
        row["attention"] = case.implementation
        row["units"], row["kept"] = len(case.kept), int(case.kept.sum())
        row["empty_block"] = case.empty
        for name, (check, applies) in CHECKS.items():
            if applies(case):
                found[name] = attempt(check, case)
    except pytest.skip.Exception as reason:  # this transformers does not have the class
        return {**row, "outcome": "skipped", "why": str(reason), "checks": {}}
    except Exception as error:
        found["build"] = {"outcome": "failed", "why": sentence(error)}
    bad = any(result["outcome"] == "failed" for result in found.values())
    row["outcome"] = "failed" if bad else "passed"
    row["seconds"] = round(time.perf_counter() - start, 2)
    return {**row, "checks": found}


def attempt(check: Callable[[Case], Numbers], case: Case) -> Numbers:
    """The outcome of one check with its numbers, or with why it failed."""
    try:
        return {"outcome": "passed", **{k: short(v) for k, v in check(case).items()}}
    except Exception as error:  # any: the others are to run all the same
        return {"outcome": "failed", "why": sentence(error)}


def sentence(error: Exception) -> str:
    """What went wrong, in one line."""
    message = " ".join(str(error).split())[:500]
    return message if isinstance(error, CheckFailed) else f"{type(error).__name__}: {message}"


def short(value: Any) -> Any:
    """Three digits of a float."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


@contextmanager
def full_precision() -> Generator[None, None, None]:
    """Float32 is float32 inside: no TensorFloat-32 in products and convolutions."""
    cudnn = cast("Any", torch.backends.cudnn)
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]


def provenance(device: torch.device) -> Numbers:
    """What the rows were measured on."""
    dtypes = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    return {**facts(device, PACKAGES), "dtypes": dtypes, "tf32": False}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print a line per row, and write the file after each, so that an interrupt loses one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--builds", default="", help="names, separated by commas; all by default")
    parser.add_argument("--output", type=Path, help="JSON file to write, or a folder for it")
    given = parser.parse_args(arguments)
    device = device_of(given.device)
    wanted = [name for name in given.builds.split(",") if name]
    known = {family.name: family for family in BUILDS}
    if unknown := sorted(set(wanted) - known.keys()):
        parser.error(f"`--builds` names {unknown}; there are {', '.join(known)}")
    if wanted and given.output is None:
        parser.error("`--builds` needs `--output`: a part must not replace the result of all")
    path = given.output or RESULTS
    if path.suffix != ".json":
        path /= f"{slug(device_name(device))}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"provenance": provenance(device), "complete": False, "rows": []}
    families = [known[name] for name in wanted or known]
    with full_precision():
        for family in families:
            for dtype in DTYPES:
                row = row_of(family, device, dtype)
                record["rows"].append(row)
                record["complete"] = len(record["rows"]) == len(families) * len(DTYPES)
                path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                print(f"{row['build']:16} {row['dtype']:9} {row['outcome']}", flush=True)
                for name, result in row["checks"].items():
                    if result["outcome"] == "failed":
                        print(f"    {name}: {result['why']}", flush=True)
    bad = sum(row["outcome"] == "failed" for row in record["rows"])
    print(f"{len(record['rows'])} rows, {bad} failed; written to {path}")
    return int(bad > 0)


if __name__ == "__main__":
    quiet: Any = transformers.utils.logging
    quiet.disable_progress_bar()
    quiet.set_verbosity_error()
    sys.exit(main())
