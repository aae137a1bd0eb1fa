"""The texts of one seed, and what is measured on them once for all methods."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import (
    load_file,  # pyright: ignore[reportUnknownVariableType]
    save_file,  # pyright: ignore[reportUnknownVariableType]
)

from cahp_opt.files.records import whole_file
from cahp_opt.files.store import Row, digest
from cahp_opt.runs.measuring import Measuring
from cahp_opt.runs.method import Needs
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.torch.pipeline.calibrating import Calibrated, calibrate_kinds
from cahp_opt.torch.recovery.token_weights import TokenWeights
from cahp_opt.torch.running.preparing import prepared
from cahp_opt.torch.running.undisturbed import evaluating
from cahp_opt.torch.studies.bench import Batches, Bench
from cahp_opt.torch.studies.code_digests import code_of_statistics


class Draw:
    """The texts of one seed.

    Args:
        bench: the model.
        seed: the seed.
        needs: what all methods need together.
    """

    def __init__(self, bench: Bench, seed: int, needs: Needs) -> None:
        self.bench, self.seed, self.needs = bench, seed, needs
        self.examples = bench.drawn(seed)

    @cached_property
    def key(self) -> str:
        """A digest of what the model reads of the texts, and of the seed."""
        return digest((self.bench.read_key(self.examples, lambda: self.batches), self.seed))

    @cached_property
    def batches(self) -> Batches:
        """The texts as batches, ``[batch, tokens]``."""
        return self.bench.encoded(self.examples, self.seed)

    @property
    def statistics_key(self) -> object:
        """What the statistics of all methods depend on."""
        return self.key_of(self.needs)

    def key_of(self, needs: Needs) -> object:
        """What the statistics that somebody needs depend on: nothing that others need beside them."""
        measured = (sorted(needs.statistics), needs.densities, self.bench.plan.measuring)
        return self.bench.key, self.key, measured, self.needs.refitted, code_of_statistics()

    def grouped_key(self, needs: Needs) -> object:
        """The same, with the order in which the neurons were put into groups."""
        space = self.calibrated.stats.space
        return self.key_of(needs), None if space == space.unordered() else digest(space.to_json())

    def measure(self) -> Row:
        """Measure what all cells of the seed share, unless it is there: the statistics, and the weights of tokens.

        Returns:
            The seconds that it took.

        Raises:
            Busy: if another process does.
        """
        store = self.bench.store
        statistics, weights = self._statistics_path, self._weights_path

        def make() -> Row:
            began = time.monotonic()
            with whole_file(statistics) as to:
                self._calibrate(to)
            calibrated = time.monotonic()
            if weights is not None:
                with whole_file(weights) as to:
                    self._weigh(to)
            done = time.monotonic()
            return {"seconds": {"calibrate": calibrated - began, "weigh": done - calibrated}}

        row = store.row("measured", (self.statistics_key, str(weights)), make, wait=False)
        store.file(statistics, self._calibrate, wait=False)  # if somebody removed it
        if weights is not None:
            store.file(weights, self._weigh, wait=False)
        return row

    @cached_property
    def calibrated(self) -> Calibrated:
        """The statistics, and the blocks with their neurons in groups of those that are worth as much."""
        stats = HeadStats.load(self._statistics_path)
        return Calibrated(self.bench.prunable.grouped(stats.space), stats)

    @cached_property
    def weights(self) -> TokenWeights | None:
        """What tokens count in a refit; None for 1 each."""
        if self._weights_path is None:
            return None
        found = self._fresh
        for name, tensor in load_file(self._weights_path).items():
            number, block = map(int, name.split("."))
            found.taken.setdefault(number, [])
            of_batch = found.taken[number]
            of_batch.extend([torch.empty(0)] * (block + 1 - len(of_batch)))
            of_batch[block] = tensor.to(self.bench.device)
        return found

    @property
    def _statistics_path(self) -> Path:
        return self.bench.store.path("statistics", self.statistics_key, "safetensors")

    @property
    def _weights_path(self) -> Path | None:
        if not (self.bench.plan.refits and self._fresh.differentiates):
            return None
        key = self.bench.key, self.key, code_of_statistics()
        return self.bench.store.path("weights", key, "safetensors")

    @cached_property
    def _fresh(self) -> TokenWeights:
        bench = self.bench
        weighting = bench.plan.recovering.weighting
        return TokenWeights(
            bench.prunable, fidelity=bench.fidelity, weighting=weighting, seed=self.seed, memory=0
        )

    def _calibrate(self, to: Path) -> None:
        bench, needs = self.bench, self.needs
        measuring: Measuring = needs.measuring(bench.plan.measuring)
        found = calibrate_kinds(
            bench.prunable,
            self.batches,
            measuring,
            token_weights=self._fresh if bench.plan.refits else None,
            fidelity=bench.fidelity,
            seed=self.seed,
            folder=to.parent,
        )
        found.stats.save(to)

    def _weigh(self, to: Path) -> None:
        """Calibration took the weights of the batches that it differentiated; the others follow."""
        weights, model = self._fresh, self.bench.named.model
        with evaluating(model):
            for number, batch in enumerate(prepared(self.batches, model)):
                weights.take(batch, number)
        tensors = {
            f"{number}.{block}": tensor.detach().cpu().contiguous()
            for number, blocks in weights.taken.items()
            for block, tensor in enumerate(blocks)
        }
        save_file(tensors, to)


def draw_of(bench: Bench, seed: int, needs: Needs) -> Draw:
    """The draw of a seed; only those of the last seed are kept, one for every order of neurons.

    Args:
        bench: the model.
        seed: the seed.
        needs: what all methods need together.
    """
    kept = [each for each in bench.last if isinstance(each, Draw) and each.seed == seed]
    for draw in kept:
        if draw.needs == needs:
            return draw
    draw = Draw(bench, seed, needs)
    bench.last = [*(each for each in kept if each.needs.refitted != needs.refitted), draw]
    return draw
