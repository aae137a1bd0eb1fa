"""Write docs/large-models.md from the results in benchmarks/results/scale.

python benchmarks/scale/report.py            rewrite it
python benchmarks/scale/report.py --check    fail if it is not what the results say
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.pages import records, write_or_check
from cahp_opt.cli.forecast_table import in_bytes
from cahp_opt.torch.calibration.chunks import chunks
from cahp_opt.torch.calibration.statistics_bytes import ReadShape, moments_bytes, sensitivity_bytes
from cahp_opt.torch.forecast.walk_passes import WalkForecast, fit_bytes
from cahp_opt.torch.recovery.layer_walk import Behind, Place

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "scale"
DOCS = ROOT / "docs"
PAGE = "large-models.md"
Record = Mapping[str, Any]

FULL, INNER, LAYERS = 4096, 14336, 32
TEXTS, LENGTH, BATCH = 2000, 128, 32
LIMITED = "-limited"
STAGES = ("calibrate", "order", "select", "slice", "refit")

HEAD = f"""# Large models

Written by `python benchmarks/scale/report.py` from `benchmarks/results/scale/`; never edit it by hand.

What calibrating, selecting and refitting take per layer of a Llama with grouped-query attention and random weights, in single precision on one
thread, measured by `benchmarks/scale/run.py` on few layers; and what follows for the shape of an 8B model: {LAYERS} layers,
{FULL} wide, 32 heads in 8 groups, {INNER} neurons. Times are seconds of the processor. For a run of your own, `--dry-run` computes passes,
memory and time beforehand ([Get started](start.md)).
"""


def main(arguments: Sequence[str]) -> int:
    return write_or_check({PAGE: page(records(RESULTS))}, DOCS, "large-models*", PAGE, arguments)


def wrapped(text: str) -> str:
    """A paragraph in lines of the usual length, between empty lines."""
    return "\n" + "\n".join(textwrap.wrap(text, 148, break_long_words=False)) + "\n"


def page(found: Mapping[str, Record]) -> str:
    """The whole page."""
    return "\n".join(
        [
            HEAD,
            *measured(found),
            *depth(found),
            *whole(found),
            *widths(found),
            *streams(),
            *provenance(found),
        ]
    )


def measured(found: Mapping[str, Record]) -> Iterator[str]:
    yield "## Measured\n"
    yield "Memory is the most that the process had in use during a stage.\n"
    yield "| wide | neurons | pruned | layers | tokens | stage | seconds | per layer | memory |"
    yield "|---:|---:|---|---:|---:|---|---:|---:|---:|"
    for one in sorted(
        (one for one in found.values() if one.get("memory") is None),
        key=lambda one: (one["shape"]["hidden"], one["shape"]["layers"]),
    ):
        shape = one["shape"]
        for name, stage in one["stages"].items():
            each = stage["seconds"] / shape["layers"]
            yield (
                f"| {shape['hidden']} | {shape['inner']} | {one['prune']} | {shape['layers']} | {one['tokens']} "
                f"| {name} | {stage['seconds']:.1f} | {each:.2f} | {in_bytes(stage['peak'])} |"
            )
    yield ""


def depth(found: Mapping[str, Record]) -> Iterator[str]:
    few, many, *limited = (
        found[f"512-1792-both-{layers}{end}"] for end in ("", LIMITED) for layers in (2, 4)
    )
    of_layer = sum(few["statistics"].values()) / 2
    yield "## With depth"
    yield wrapped(
        "What a stage needs beside what was there before it, with 2 and with 4 layers (512 wide, 1792 neurons, both kinds pruned). The "
        f"statistics of a layer are {in_bytes(of_layer)}; in one pass those of all layers are measured and there at once."
    )
    yield from needs(few, many, STAGES, ("before", "peak"))
    yield wrapped(
        f"With `--statistics-memory {limited[0]['memory']}` as many blocks are measured in a pass as fit into that, which includes the order of "
        "their neurons, and their statistics go to a disk. This is memory of the process alone: what it read of a file the system takes back when "
        "somebody needs the memory. Of the matrices that selecting makes of these the last 2 GiB are kept, less than a layer of an 8B "
        "model needs; here none were."
    )
    yield from needs(*limited, STAGES[:1] + STAGES[2:], ("own_before", "own_peak"))
    yield wrapped(
        "What calibrating still adds per layer are the residual streams and the weights of tokens that a refit takes from its passes, which grow with the "
        "texts; `--stream-memory` bounds the former. A refit holds the sums of one layer at a time."
    )


def needs(few: Record, many: Record, stages: Sequence[str], of: tuple[str, str]) -> Iterator[str]:
    """What stages need with 2 and 4 layers."""
    yield "| stage | 2 layers | 4 layers | more per layer |"
    yield "|---|---:|---:|---:|"
    for name in stages:
        small, large = (needed(one["stages"][name], of) for one in (few, many))
        more = max(large - small, 0) / 2
        yield f"| {name} | {in_bytes(small)} | {in_bytes(large)} | {in_bytes(more)} |"


def needed(stage: Mapping[str, int], of: tuple[str, str]) -> int:
    """The bytes that a stage took beside those before it."""
    before, peak = of
    return stage[peak] - stage[before]


def whole(found: Mapping[str, Record]) -> Iterator[str]:
    attention, neurons = ReadShape(FULL, FULL, True), ReadShape(INNER, FULL, False)
    yield f"## Memory of {LAYERS} layers"
    yield wrapped(
        "Computed from the shapes; tests compare those of statistics with the arrays. The refit is that of unpruned widths, at most."
    )
    yield f"| | a layer | {LAYERS} layers |"
    yield "|---|---:|---:|"
    rows = {
        "moments of attention": moments_bytes(attention),
        "sensitivity of attention": sensitivity_bytes(attention),
        "moments of neurons": moments_bytes(neurons),
        "sensitivity of neurons": sensitivity_bytes(neurons),
    }
    for name, size in rows.items():
        yield f"| {name} | {in_bytes(size)} | {in_bytes(LAYERS * size)} |"
    for name, width in (("attention", FULL), ("neurons", INNER)):
        fit = in_bytes(fit_bytes(width, FULL))
        yield f"| sums and solution of a refit, {name} | {fit} | {fit} |"
    sensitive = in_bytes(LAYERS * (sensitivity_bytes(attention) + sensitivity_bytes(neurons)))
    yield wrapped(
        "`cahp prune` measures the moments for embedders that are refitted, and otherwise the sensitivity. The statistics of heads alone fit into the "
        f"memory of a workstation. With those of neurons the sensitivity takes {sensitive} for all layers. `--statistics-memory` bounds it: the blocks "
        "are measured in several passes over the texts, forward through the whole model and backward to the first of the blocks, and the statistics "
        "lie on the disk of the output."
    )
    sizes = LAYERS * [sensitivity_bytes(attention), sensitivity_bytes(neurons)]
    yield "| memory for statistics | passes | most at once | on disk |"
    yield "|---:|---:|---:|---:|"
    for memory in (4, 8, 16, 32, math.inf):
        parts = chunks(sizes, memory * 2**30)
        most = in_bytes(max(sum(sizes[number] for number in part) for part in parts))
        told = f"{memory} GiB | {len(parts)} | {most} | {sensitive}"
        yield f"| {told if len(parts) > 1 else f'enough | 1 | {sensitive} | none'} |"
    limited = found[f"512-1792-both-4{LIMITED}"]
    matrix = 8 * limited["shape"]["inner"] ** 2
    times = needed(limited["stages"]["select"], ("own_before", "own_peak")) / matrix
    yield wrapped(
        f"Beside that there are the matrices of one block. Selecting took {times:.1f} times the Gram matrix of the widest block (measured with "
        f"{limited['shape']['inner']} neurons), which for {INNER} neurons is {in_bytes(times * 8 * INNER**2)}."
    )


def widths(found: Mapping[str, Record]) -> Iterator[str]:
    eighth, quarter = (found[f"{name}-both-2"] for name in ("512-1792", "1024-3584"))
    yield f"## Seconds of a layer, at {FULL} wide"
    yield wrapped(
        f"Both kinds, {quarter['tokens']} tokens: measured at an eighth and a quarter of the width, and extrapolated by the growth between them. "
        "Calibrating and the passes of the refit grow with the tokens too, the other stages do not."
    )
    yield f"| stage | 512 wide | 1024 wide | growth | {FULL} wide, extrapolated |"
    yield "|---|---:|---:|---:|---:|"
    for name in ("forward", *STAGES):
        small, large = (
            one["stages"][name]["seconds"] / one["shape"]["layers"] for one in (eighth, quarter)
        )
        growth = large / small
        yield f"| {name} | {small:.2f} | {large:.2f} | {growth:.1f} | {large * growth**2:,.0f} |"
    full = found["4096-14336-heads-2"]
    yield wrapped(
        f"Measured at {FULL} wide, with heads alone and {full['tokens']} tokens: a forward pass "
        f"{per_layer(full, 'forward')}, calibrating {per_layer(full, 'calibrate')}, selecting "
        f"{per_layer(full, 'select')} and refitting {per_layer(full, 'refit')} seconds per layer."
    )


def per_layer(one: Record, stage: str) -> str:
    return f"{one['stages'][stage]['seconds'] / one['shape']['layers']:.1f}"


def streams() -> Iterator[str]:
    places = [
        Place(f"{layer}", layer, "", behind)
        for layer in range(LAYERS)
        for behind in (Behind.ATTENTION, Behind.LAYER)
    ]
    sizes = [2 * FULL * LENGTH * BATCH] * -(-TEXTS // BATCH)
    yield "## Passes of a refit"
    yield wrapped(
        f"A refit runs every layer of the unpruned model once, as long as the residual streams of all texts are remembered. With {TEXTS} texts of {LENGTH} "
        f"tokens in half precision these are {in_bytes(sum(sizes))} for each of three streams. Texts beyond the memory run from the first layer "
        "on again for every layer, which is what takes long. Passes over the texts, to the end of the layers:"
    )
    yield "| memory of streams | texts remembered | unpruned model | pruned model |"
    yield "|---:|---:|---:|---:|"
    for memory in (3 * 2**28, 3 * 2**30, 3 * sum(sizes)):
        walk = WalkForecast(places, LAYERS, sizes, memory)
        yield (
            f"| {in_bytes(memory)} | {100 * walk.remembered:.0f} % | {walk.dense.whole:.1f} "
            f"| {walk.sliced.whole:.1f} |"
        )
    yield ""


def provenance(found: Mapping[str, Record]) -> Iterator[str]:
    machines = {
        f"{one['machine']['device']}, PyTorch {one['machine']['versions']['torch']}, {one['machine']['date']}"
        for one in found.values()
    }
    yield "## Where\n"
    yield from (f"Measured on {machine}." for machine in sorted(machines))
    yield ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
