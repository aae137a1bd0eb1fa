"""How long pruning takes, in forward passes of the unpruned model over the same texts, in one run.

    python benchmarks/time_to_prune.py                                      the encoder of `cahp demo`
    python benchmarks/time_to_prune.py --checkpoint MODEL --data train.tsv  a classifier and labelled texts

Heads and neurons, refitted with the default method at 0.6 of the prunable weights. Seconds are processor time of
one thread, so that they hardly depend on what else runs; docs/how-recovery.md has the table.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import facts, load
from cahp_opt import Budget
from cahp_opt.demo import demo_model, demo_texts, random_words
from cahp_opt.methods import Default
from cahp_opt.runs.measuring import MeasuringOptions
from cahp_opt.runs.method import Task
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.sources import texts_in
from cahp_opt.runs.texts import Example, split
from cahp_opt.space import HeadSpace
from cahp_opt.stats.neuron_order import in_order_of_price
from cahp_opt.torch import TokenWeights, find_prunable, refit, slice_heads
from cahp_opt.torch.evaluation.evaluation import evaluate
from cahp_opt.torch.evaluation.fidelity import embeds_all_tokens, fidelity_of
from cahp_opt.torch.pipeline.calibrating import calibrate_kinds
from cahp_opt.torch.running.batches import inputs_of
from cahp_opt.torch.texts.encoding import encode_and_count

RESULTS = Path(__file__).parent / "results" / "time_to_prune"
_SHARE = 0.6  # of the prunable weights
_HELD_OUT = 256


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--checkpoint", type=Path, help="a classifier; the demo's encoder without")
    options.add_argument("--data", type=Path, help="its texts, a table with labels")
    options.add_argument("--texts", type=int, default=1500, help="texts to calibrate and refit on")
    given = options.parse_args()
    torch.set_num_threads(1)
    record = measured(given.checkpoint, given.data, given.texts)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{record['model']}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")


def measured(checkpoint: Path | None, data: Path | None, texts: int) -> dict[str, Any]:
    """The record of one run; ``data`` is read where there is a ``checkpoint``."""
    auto: Any = transformers.AutoModel
    if checkpoint is not None:
        auto = transformers.AutoModelForSequenceClassification
    folder = demo_model() if checkpoint is None else checkpoint
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    fitted, held_out = _texts(data, texts, tokenizer)
    encoded, judged = (
        encode_and_count(part, tokenizer, model, batch_size=32, max_length=128)
        for part in (fitted, held_out)
    )
    batches, clock = encoded.batches, _Clock()

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                model(**inputs_of(batch))

    forward()  # the first pass finds memory
    with clock.stage("forward"):
        forward()
    whole, fidelity, method = find_prunable(model), fidelity_of(model), Default()
    weights = TokenWeights(whole, fidelity=fidelity)

    def task(budget: Budget) -> Task:
        return Task(
            budget,
            Recovery.REFIT,
            embeds=embeds_all_tokens(fidelity),
            labelled=checkpoint is not None,
        )

    needs = method.needs(task(Budget(whole.space)))
    with clock.stage("calibrate"):
        whole, stats = calibrate_kinds(
            whole,
            batches,
            needs.measuring(MeasuringOptions()),
            token_weights=weights,
            fidelity=fidelity,
        )
    with clock.stage("of which order neurons"):
        in_order_of_price(needs.of(stats))
    budget = _budget(whole.space, model.config)
    with clock.stage("select"):
        selection = method.chooser(stats, task(budget))(budget)
    small = slice_heads(whole, selection)
    before = evaluate(model, small, judged.batches, fidelity).figures
    with clock.stage("refit"):
        refit(small, whole, batches, weighting=weights)
    after = evaluate(model, small, judged.batches, fidelity).figures
    return {
        "benchmark": "time to prune",
        "model": Path(folder).name if checkpoint else "all-MiniLM-L6-v2",
        "texts": len(fitted),
        "tokens": sum(int(batch["attention_mask"].sum()) for batch in batches),
        "kept per block": selection.counts.tolist(),
        "gap": selection.gap,
        "before": dict(before),
        "after": dict(after),
        "stages": clock.stages,
        "load": load(),
        **facts(torch.device("cpu"), ("cahp-opt", "torch", "transformers", "numpy")),
    }


def _texts(
    data: Path | None, texts: int, tokenizer: Any
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Texts to fit on, and to judge by; without ``data`` those of the demonstration."""
    if data is not None:
        found = split(texts_in(data), most=texts, held_out=_HELD_OUT, seed=0)
        return tuple(found.calibration), tuple(found.held_out)
    found = split(demo_texts(), most=texts // 2, held_out=_HELD_OUT, seed=0)
    words = random_words(tokenizer.get_vocab(), texts - texts // 2)
    return (*found.calibration, *words), tuple(found.held_out)


def _budget(space: HeadSpace, config: Any) -> Budget:
    """A share of the weights of all heads and neurons."""
    hidden, inner = config.hidden_size, config.intermediate_size
    each = [(4 * hidden**2 if b.unit.of_attention else 2 * hidden * inner) for b in space.blocks]
    costs = [np.linspace(0, cost, b.units + 1) for cost, b in zip(each, space.blocks, strict=True)]
    return Budget.table(space, costs, _SHARE * sum(each), name="weights")


class _Clock:
    """The stages so far, with seconds, forward passes, and the peak of memory at their end."""

    def __init__(self) -> None:
        self.stages = dict[str, dict[str, float]]()

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time what runs inside."""
        began = time.process_time()
        yield
        taken = time.process_time() - began
        forward = self.stages.get("forward", {"seconds": taken})["seconds"]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.stages[name] = {"seconds": taken, "passes": taken / forward, "peak MB": peak}
        print(f"{name:<24}{taken:8.2f} s {taken / forward:7.2f} passes {peak:7.0f} MB", flush=True)


if __name__ == "__main__":
    main()
