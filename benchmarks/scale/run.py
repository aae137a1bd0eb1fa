"""Memory and time per layer of calibrating, selecting and refitting a wide decoder with few layers.

    python benchmarks/scale/run.py --hidden 4096 --inner 14336 --heads 32 --groups 8 --layers 2 --prune heads
    python benchmarks/scale/run.py --hidden 1024 --inner 3584 --heads 8 --groups 2 --layers 4 --prune both
    python benchmarks/scale/run.py --hidden 512 --inner 1792 --heads 8 --groups 2 --layers 4 --prune both --memory 0.1

With ``--memory``, statistics of blocks take that much and lie in a file behind that, and no matrices of a block are remembered while
others are looked at: the 2 GiB that are otherwise kept are less than a layer of an 8B model needs.

The decoder is a Llama with random weights in single precision; texts are random tokens. Every run writes a record of its own,
from which ``benchmarks/scale/report.py`` computes what all layers of the whole model would take.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import facts
from cahp_opt.costs.prune import Prune
from cahp_opt.costs.target import Target
from cahp_opt.objectives import explained_variance
from cahp_opt.runs.measuring import MeasuringOptions
from cahp_opt.runs.method import Task
from cahp_opt.runs.objective_and_solver import ObjectiveAndSolver
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import Selection
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.neuron_order import in_order_of_price
from cahp_opt.stats.single_blocks import of_all_blocks, of_single_blocks
from cahp_opt.torch import Prunable, TokenWeights, find_prunable
from cahp_opt.torch.calibration.calibration import measure
from cahp_opt.torch.calibration.output_moments import HeadOutputs
from cahp_opt.torch.calibration.token_gradients import TokenGradients
from cahp_opt.torch.forecast.forecasting import multiplications
from cahp_opt.torch.pipeline.calibrating import Calibrated, calibrate_kinds
from cahp_opt.torch.recovery.refitting import refit_found
from cahp_opt.torch.running.undisturbed import evaluating
from cahp_opt.torch.slicing.slicing import slice_found

RESULTS = Path(__file__).resolve().parents[1] / "results" / "scale"
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
LIBC, MMAP_THRESHOLD = ctypes.CDLL("libc.so.6"), -3
Result = TypeVar("Result")


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    LIBC.mallopt(MMAP_THRESHOLD, 2**17)  # what is freed goes back to the system at once
    untyped: Any = torch
    untyped.manual_seed(0)
    stages: dict[str, dict[str, float]] = {}

    def stage(name: str, work: Callable[[], Result]) -> Result:
        """Run a stage: CPU seconds, bytes in use before it, and the most during it."""
        give_back()
        RESET.write_text("5")
        before, start = memory("VmRSS"), time.process_time()
        with sampled("RssAnon") as own:
            result = work()
        stages[name] = {
            "seconds": round(time.process_time() - start, 3),
            "before": before,
            "peak": memory("VmHWM"),
            "own_before": own[0],
            "own_peak": max(own),
        }
        print(name, stages[name], flush=True)
        return result

    model = stage("build", lambda: decoder(given))
    prunable = find_prunable(model, neurons=given.prune is Prune.BOTH)
    batches = [tokens(given, number) for number in range(given.batches)]
    stage("forward", lambda: forward(model, batches))
    weights = TokenWeights(prunable)
    if given.memory is None:
        collectors = [HeadOutputs(), TokenGradients(None)]
        stats: HeadStats = stage(
            "calibrate", lambda: measure(prunable, batches, collectors, token_weights=weights)
        )
        if given.prune is Prune.BOTH:
            by_block = of_single_blocks(stats)
            del stats
            stats = stage("order", lambda: in_order(by_block))
            prunable = prunable.grouped(stats.space)
    else:
        explained_variance._KEPT_BYTES = 0
        found = stage("calibrate", lambda: some_at_a_time(given, prunable, batches, weights))
        prunable, stats = found
        del found
    statistics = {n: stats.statistics[n].arrays() for n in ("moments", "sensitivity")}
    sizes = {n: sum(a.nbytes for a in arrays.values()) for n, arrays in statistics.items()}
    kept = stage("select", lambda: half(stats, prunable))
    small = stage("slice", lambda: slice_found(prunable, kept))
    wide = given.prune is Prune.BOTH
    stage(
        "refit",
        lambda: refit_found(small, prunable, batches, weighting=weights, feed_forward=wide),
    )
    record = {
        "shape": {**shape(given), "layers": given.layers, "vocabulary": given.vocabulary},
        "prune": given.prune.value,
        "memory": given.memory,
        "texts": given.batches * given.texts,
        "tokens": given.batches * given.texts * given.length,
        "multiplications": multiplications(model),
        "weights": sum(p.numel() * p.element_size() for p in model.parameters()),
        "statistics": sizes,
        "stages": stages,
        "machine": facts(torch.device("cpu"), ("torch", "transformers", "numpy")),
    }
    name = f"{given.hidden}-{given.inner}-{given.prune.value}-{given.layers}"
    name += "" if given.memory is None else "-limited"
    to = given.output / f"{name}.json"
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def arguments() -> Any:
    """The options."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, number in (
        ("hidden", 4096),
        ("inner", 14336),
        ("heads", 32),
        ("groups", 8),
        ("layers", 2),
        ("vocabulary", 512),
        ("texts", 4),
        ("length", 64),
        ("batches", 2),
    ):
        options.add_argument(f"--{name}", type=int, default=number)
    options.add_argument("--prune", type=Prune, default=Prune.HEADS, help="heads or both")
    options.add_argument("--memory", type=float, help="GiB for statistics; all of them without it")
    options.add_argument("--output", type=Path, default=RESULTS, help="folder of the records")
    return options.parse_args()


def shape(given: Any) -> dict[str, int]:
    """The widths of a layer."""
    return {name: getattr(given, name) for name in ("hidden", "inner", "heads", "groups")}


def decoder(given: Any) -> LlamaForCausalLM:
    """A Llama of this shape with random weights."""
    config = LlamaConfig(
        vocab_size=given.vocabulary,
        hidden_size=given.hidden,
        intermediate_size=given.inner,
        num_attention_heads=given.heads,
        num_key_value_heads=given.groups,
        num_hidden_layers=given.layers,
    )
    made: Any = LlamaForCausalLM(config)
    model: LlamaForCausalLM = made.eval()
    return model


def tokens(given: Any, seed: int) -> dict[str, Tensor]:
    """A batch of random tokens, without padding."""
    numbers = torch.Generator().manual_seed(seed)
    size = (given.texts, given.length)
    ids = torch.randint(0, given.vocabulary, size, generator=numbers)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def forward(model: LlamaForCausalLM, batches: list[dict[str, Tensor]]) -> None:
    """One forward pass over all batches."""
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            model(**batch)


def in_order(by_block: list[HeadStats]) -> HeadStats:
    """The statistics of all blocks with the neurons in order; those of a block are not there twice for long."""
    for number in range(len(by_block)):
        by_block[number] = in_order_of_price(by_block[number])
    return of_all_blocks(by_block)


def some_at_a_time(
    given: Any, prunable: Prunable, batches: list[dict[str, Tensor]], weights: TokenWeights
) -> Calibrated:
    """The same statistics with the neurons in order, of as many blocks at a time as fit."""
    amounts = MeasuringOptions(gradient_examples=0, statistics_memory=given.memory)
    measuring = amounts.of({"moments", "sensitivity"})
    found = calibrate_kinds(
        prunable, batches, measuring, token_weights=weights, folder=given.output
    )
    return found._replace(stats=found.stats.without("salience"))


def half(stats: HeadStats, prunable: Prunable) -> Selection:
    """The selection of half of the heads, and of the neurons where they are pruned."""
    heads = sum(block.units for block in prunable.attention) // 2
    target = Target(heads=heads, neurons=0.5 if prunable.feed_forward else None)
    task = Task(target.numbers(stats.space), Recovery.REFIT)
    return ObjectiveAndSolver.suiting(Recovery.REFIT, None, None, embeds=False).chooser(
        stats, task
    )(task.budget)


def give_back() -> None:
    """Give memory that is not used any more back to the system, so that what is in use can be seen."""
    gc.collect()
    LIBC.malloc_trim(0)


@contextmanager
def sampled(line: str) -> Iterator[list[int]]:
    """Bytes of this process at the begin and every 5 ms from then on."""
    found, ended = [memory(line)], threading.Event()

    def look() -> None:
        while not ended.wait(0.005):
            found.append(memory(line))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


def memory(line: str) -> int:
    """Bytes of this process, as the system counts them: VmRSS for now, VmHWM for the most since it was reset, RssAnon for
    now without what is in files, which the system gives up when somebody needs the memory."""
    told = STATUS.read_text(encoding="utf-8")
    return 1024 * int(told.partition(f"{line}:")[2].split()[0])


if __name__ == "__main__":
    main()
