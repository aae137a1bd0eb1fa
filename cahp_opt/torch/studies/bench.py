"""The model of a study in one process, and what all cells share."""

from __future__ import annotations

import hashlib
import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cahp_opt.costs.budget import Budget
from cahp_opt.costs.prune import Prune
from cahp_opt.files.store import Store, digest
from cahp_opt.runs.limits import Limit
from cahp_opt.runs.media import Medium
from cahp_opt.runs.method import Task
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.texts import Example, TextSplit
from cahp_opt.space import HeadSpace
from cahp_opt.torch.evaluation.evaluation import Judge
from cahp_opt.torch.evaluation.fidelity import embeds_all_tokens, fidelity_of
from cahp_opt.torch.latency.model_times import device_name
from cahp_opt.torch.pipeline.run import Named
from cahp_opt.torch.running.batches import device_of
from cahp_opt.torch.studies.recipe import Recipe, content
from cahp_opt.torch.studies.workers import WorkerNumber
from cahp_opt.torch.texts.encoding import Encoded
from cahp_opt.torch.texts.reading import encode_examples
from cahp_opt.torch.texts.scored_pairs import PAIR_NOTE, are_scored_pairs, calibration_texts

Batches = Sequence[Mapping[str, Tensor]]

_LOADING = threading.Lock()


class Bench:
    """The model, and what all cells of a study share in a process.

    Args:
        recipe: the study.

    Raises:
        ModelError: if the model cannot be loaded.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.plan = recipe, recipe.plan
        self.alone = threading.RLock()
        """Held while the model runs: threads of one process take turns."""
        self._worker = WorkerNumber(recipe.folder)
        model, processor = recipe.source.load(self._worker.number)
        self.named = Named(recipe.source.name, model, processor, recipe.pooling, recipe.kinds)
        self.prunable = self.named.prunable
        self.fidelity = fidelity_of(model, recipe.pooling)
        self.device = device_of(model)
        self.store = Store(recipe.folder, described(self.device))
        self.last: Sequence[object] = ()
        """What the last job left behind for the next: its draws."""

    @property
    def key(self) -> object:
        """What every result depends on."""
        space = self.prunable.space.unordered().to_json()
        return self.recipe.identity, repr(self.fidelity), space

    @cached_property
    def paired(self) -> bool:
        """Whether the texts are scored pairs, each text of which is embedded by itself."""
        texts = self.recipe.texts
        return are_scored_pairs(TextSplit(texts.pool, texts.held_out), self.fidelity)

    def drawn(self, seed: int) -> tuple[Example, ...]:
        """The examples of a seed; of scored pairs their texts, without those that are judged on.

        Raises:
            ValueError: if no text is left.
        """
        texts = self.recipe.texts
        examples = texts.draw(seed)
        if self.paired:
            examples = tuple(calibration_texts(TextSplit(examples, texts.held_out)))
        return examples

    @cached_property
    def held_out(self) -> Encoded:
        """What the models are judged on, as batches ``[batch, tokens]``."""
        return self._encoded(self.recipe.texts.held_out, 0, scored_pairs=self.paired)

    @cached_property
    def held_out_key(self) -> str:
        """A digest of what the models are judged on."""
        return self.read_key(self.recipe.texts.held_out, lambda: self.held_out.batches)

    @cached_property
    def judge(self) -> Judge:
        """Judges models on the held-out examples; the unpruned model runs on them once."""
        return Judge(self.named.model, self.held_out.batches, self.fidelity)

    @cached_property
    def few(self) -> Batches:
        """A batch of the first draw, ``[batch, tokens]``, to try the model on."""
        return self.encoded(self.drawn(self.plan.seeds[0])[: self.plan.reading.batch_size], 0)

    @property
    def labelled(self) -> bool:
        """Whether the texts have labels that the model takes."""
        return all("labels" in batch for batch in self.few)

    def encoded(self, examples: Sequence[Example], seed: int) -> Batches:
        """The batches, ``[batch, tokens]``, of some examples."""
        return self._encoded(examples, seed).batches

    def read_key(self, examples: Sequence[Example], batches: Callable[[], Batches]) -> str:
        """A digest of what the model reads of some examples: tokens and labels, or files and how they are prepared.

        Args:
            examples: the examples.
            batches: gives them as batches, ``[batch, tokens]``; of files they take long.

        Raises:
            OSError: if a file cannot be read.
        """
        if self.recipe.texts.medium is Medium.TEXT:
            return digest([_content(batch) for batch in batches()])
        files = [hashlib.sha256(Path(each.text).read_bytes()).hexdigest() for each in examples]
        return digest((examples, files, self.plan.reading, repr(self.named.tokenizer)))

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on how the texts were read, and on the limits of the figures for them."""
        paired = [PAIR_NOTE] if self.paired else []
        return (*self.held_out.counts.notes(), *paired, *self.judge.notes)

    def _encoded(
        self, examples: Sequence[Example], seed: int, *, scored_pairs: bool = False
    ) -> Encoded:
        named, reading = self.named, self.plan.reading
        return encode_examples(
            examples, named.tokenizer, named.model, reading, seed, scored_pairs=scored_pairs
        )

    def task(self, limit: Limit, recovery: Recovery, seed: int, space: HeadSpace) -> Task:
        """What a method is asked for.

        Raises:
            BudgetError: if nothing meets the limit.
        """
        budget = limit.target.budget(space, self.recipe.profile, self.recipe.identity)
        kind = limit.target.prune
        if kind is not Prune.BOTH:  # what the limit does not count stays
            counted = space.of_attention if kind is Prune.HEADS else ~space.of_attention
            budget &= Budget(space, (), np.where(counted, 0, space.units).tolist())
        return self.within(budget, recovery, seed)

    def within(self, budget: Budget, recovery: Recovery, seed: int) -> Task:
        """What a method is asked for within a budget."""
        return Task(
            budget,
            recovery,
            embeds=embeds_all_tokens(self.fidelity),
            labelled=self.labelled,
            seed=seed,
            time_limit=self.plan.time_limit,
        )

    def limit_key(self, limit: Limit) -> object:
        """What a choice depends on through its limit."""
        goals, profile = limit.target.goals, self.recipe.profile
        return limit.target, content(profile) if goals and profile is not None else None


def _content(batch: Mapping[str, Tensor]) -> object:
    """All of a batch as plain values, its numbers as a digest."""
    return [
        (
            name,
            str(each.dtype),
            list(each.shape),
            hashlib.sha256(each.numpy().tobytes()).hexdigest(),
        )
        for name, each in sorted(batch.items())
    ]


def bench_of(recipe: Recipe) -> Bench:
    """The bench of a study in this process, made on first use.

    Raises:
        ModelError: if the model cannot be loaded.
    """
    with _LOADING:
        return _bench(recipe)


@lru_cache(maxsize=1)
def _bench(recipe: Recipe) -> Bench:
    return Bench(recipe)


def described(device: torch.device) -> str:
    """A device as results state it."""
    threads = torch.get_num_threads()
    on = f", {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else ""
    return (
        f"{device_name(device)}{on}, torch {torch.__version__}, Python {platform.python_version()}"
    )
