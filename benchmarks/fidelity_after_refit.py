"""How close the refitted model is to the dense one, for each way of selecting, in one run.

    python benchmarks/fidelity_after_refit.py --units 36

all-MiniLM-L6-v2 (72 units) and the text of Python's own reference: every method keeps the same number
of units, is refitted on the same texts, and is judged on the same held-out texts.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

from cahp_opt import Budget, Problem, select
from cahp_opt.demo import demo_model, demo_texts
from cahp_opt.objectives import ExplainedVariance, Modular, Quadratic
from cahp_opt.runs.recovery import Weighting
from cahp_opt.runs.texts import split
from cahp_opt.solvers import DynamicProgram, Greedy, RandomSubset, TopK
from cahp_opt.torch import TokenWeights, calibrate, refit, slice_heads
from cahp_opt.torch.evaluation.evaluation import evaluate
from cahp_opt.torch.latency.model_times import device_name
from cahp_opt.torch.texts.encoding import encode

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--units", type=int, default=36, help="units kept, of 72")
    options.add_argument("--texts", type=int, default=1500, help="texts to calibrate and refit on")
    options.add_argument("--held-out", type=int, default=256, help="texts to judge by")
    options.add_argument("--random", type=int, default=5, help="random keep-sets")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--seed", type=int, default=0, help="of the split of the texts")
    given = options.parse_args()

    torch.set_num_threads(given.threads)
    folder = demo_model()
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = split(demo_texts(), most=given.texts, held_out=given.held_out, seed=given.seed)
    calibration, held_out = (
        encode(part, tokenizer, model, batch_size=32, max_length=128, seed=given.seed)
        for part in (texts.calibration, texts.held_out)
    )
    stats = calibrate(
        model,
        calibration,
        densities=(0.5,),
        gradient_examples=256,
        sensitivity_examples=given.texts,
        seed=given.seed,
    )
    budget = Budget.heads(stats.space, given.units, minimum=1)
    explained, salience = ExplainedVariance.from_stats(stats), Modular.from_stats(stats)
    output = ExplainedVariance.from_sensitivity(stats)
    methods = [
        ("explained output, dynamic program", output, DynamicProgram(), 0),
        ("explained variance, dynamic program", explained, DynamicProgram(), 0),
        ("explained variance, greedy", explained, Greedy(), 0),
        ("salience, top-k", salience, TopK(), 0),
        (
            "Gauss-Newton at density 0.5, greedy",
            Quadratic.from_stats(stats, shrinkage=0),
            Greedy(),
            0,
        ),
        *(("random", salience, RandomSubset(), seed) for seed in range(given.random)),
    ]
    weights, rows = TokenWeights(model, weighting=Weighting.SENSITIVITY), []
    for name, objective, solver, seed in methods:
        selection = select(Problem(objective, budget), solver, seed=seed)
        small = slice_heads(model, selection)
        before = evaluate(model, small, held_out).figures
        refit(small, model, calibration, weighting=weights, feed_forward=False)
        after = evaluate(model, small, held_out).figures
        rows.append(
            {
                "method": name,
                "seed": seed,
                "kept per block": selection.counts.tolist(),
                "gap": selection.gap,
                "before": dict(before),
                "after": dict(after),
            }
        )
        print(
            f"{name:<38} {rows[-1]['kept per block']} {dict(before)} -> {dict(after)}", flush=True
        )
    record = {
        "benchmark": "fidelity after refit",
        "model": "all-MiniLM-L6-v2",
        "units": given.units,
        "texts": len(texts.calibration),
        "held out": len(texts.held_out),
        "seed": given.seed,
        "device": device_name(torch.device("cpu")),
        "threads": given.threads,
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("cahp-opt", "torch", "transformers")},
        },
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"fidelity_after_refit_{given.units}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
