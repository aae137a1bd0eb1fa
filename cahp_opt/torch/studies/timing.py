"""Times of pruned models beside the unpruned one: once for every set of counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cahp_opt.costs.checks import Check
from cahp_opt.costs.latency_table import LatencyTable
from cahp_opt.costs.provenance import Provenance
from cahp_opt.files.store import Row
from cahp_opt.progress import Progress, silent
from cahp_opt.torch.blocks.fingerprint import structure
from cahp_opt.torch.latency.measured_selection import here, time_pairs
from cahp_opt.torch.pipeline.profiles import timed_batches
from cahp_opt.torch.slicing.timing_copies import timing_copy
from cahp_opt.torch.studies.bench import Bench

Counts = tuple[int, ...]


class Timer:
    """Times models that keep some numbers of units, in turns with the unpruned model.

    Args:
        bench: the model.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench, plan = bench, bench.plan
        model, named = bench.named.model, bench.named
        self._batches: Mapping[str, Mapping[str, Tensor]] = timed_batches(
            model, plan.workloads, named.tokenizer
        )
        wanted = {w.name: Provenance(phase=w.phase, execution=w.execution) for w in plan.workloads}
        self._facts = here(model, wanted, self._batches)
        self._repeats = max(workload.repeats for workload in plan.workloads)

    def times(self, counts: Counts, progress: Progress = silent) -> dict[str, Check]:
        """By name of the workload, the times of both models, and what was predicted of them.

        Args:
            counts: units kept per block.
            progress: called once per round.
        """
        row = self._bench.store.row(
            "times", self._key(counts), lambda: self._time(counts, progress)
        )
        profile = self._bench.recipe.profile
        tables: Mapping[str, LatencyTable] = {}
        if profile is not None:
            tables = profile.restricted(self._bench.prunable.space).latency
        found = dict[str, Check]()
        for name, told in row["times"].items():
            predicted: dict[str, Any] = {}
            if name in tables:
                table = tables[name]
                predicted = {"predicted": table.predict(counts), "dense_predicted": table.dense}
            found[name] = Check(**{**told, **predicted})
        return found

    def _time(self, counts: Counts, progress: Progress) -> Row:
        space = self._bench.prunable.space
        kept = space.join({b.name: range(k) for b, k in zip(space.blocks, counts, strict=True)})
        model, small = self._bench.named.model, timing_copy(self._bench.prunable, kept)
        found = time_pairs(
            model, small, self._facts, self._batches, repeats=self._repeats, progress=progress
        )
        return {"times": {name: vars(check) for name, check in found.items()}}

    def _key(self, counts: Counts) -> object:
        bench = self._bench
        how = bench.plan.workloads, self._facts, torch.get_num_threads()
        return structure(bench.named.model), bench.key, counts, how


def distinct_counts(all_counts: Sequence[Counts]) -> list[Counts]:
    """Every set of counts once."""
    return list(dict.fromkeys(all_counts))
