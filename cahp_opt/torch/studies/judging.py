"""Slicing, recovering and judging one choice."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cahp_opt.files.records import whole_file
from cahp_opt.files.store import Row
from cahp_opt.progress import Stages
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import Selection
from cahp_opt.studies.scores import Scores
from cahp_opt.torch.pipeline.repairing import repair
from cahp_opt.torch.slicing.slicing import slice_found
from cahp_opt.torch.studies.code_digests import code_of_judging, code_of_recoveries
from cahp_opt.torch.studies.draws import Draw


class Judged(NamedTuple):
    """How a pruned model does.

    Args:
        scores: on the held-out examples.
        seconds: of every stage.
        device: where it was made.
    """

    scores: Scores
    seconds: dict[str, float]
    device: str


def judged(draw: Draw, selection: Selection, recovery: Recovery) -> Judged:
    """Slice, recover and judge the model, unless that was done.

    Raises:
        Busy: if another process does.
        SliceError: if the slice computes something else than the masked model.
    """
    store, key = draw.bench.store, _key(draw, selection, recovery)
    path = store.path("scores", key, "safetensors")

    def make() -> Row:
        stages = Stages()
        with whole_file(path) as to:
            _judge(draw, selection, recovery, stages, to)
        return {"seconds": stages.seconds}

    row = store.row("judged", key, make, wait=False)
    store.file(path, lambda to: _judge(draw, selection, recovery, Stages(), to), wait=False)
    return Judged(Scores.load(path), row["seconds"], row["device"])


def _judge(draw: Draw, selection: Selection, recovery: Recovery, stages: Stages, to: Path) -> None:
    bench = draw.bench
    dense = bench.prunable.grouped(selection.space)
    probe = draw.batches[0]
    with stages.stage("slice"):
        small = slice_found(dense, selection, batch=probe)
    repair(
        small,
        dense,
        draw.batches,
        bench.plan.recovered(recovery),
        weights=draw.weights if recovery.refits else None,
        fidelity=bench.fidelity,
        seed=draw.seed,
        stages=stages,
    )
    with stages.stage("judge"):
        bench.judge(small.model).save(to)


def _key(draw: Draw, selection: Selection, recovery: Recovery) -> object:
    """What the scores depend on: of a model that is left as sliced, no text and no seed."""
    how: object = None
    if recovery is not Recovery.NONE:
        options = draw.bench.plan.recovered(recovery)
        how = draw.key, repr(options), code_of_recoveries()
    return draw.bench.key, draw.bench.held_out_key, units_left(selection), how, code_of_judging()


def units_left(selection: Selection) -> list[tuple[str, list[int]]]:
    """By name of the block, the single units that stay: heads, or neurons whatever their groups."""
    found = list[tuple[str, list[int]]]()
    for block, ids in zip(selection.space.blocks, selection.heads().values(), strict=True):
        if block.order is None:
            found.append((f"{block.name} of {block.units}", list(ids)))
            continue
        wide = len(block.order) // block.units
        neurons = [n for i in ids for n in block.order[i * wide : (i + 1) * wide]]
        found.append((block.name, sorted(neurons)))
    return found
