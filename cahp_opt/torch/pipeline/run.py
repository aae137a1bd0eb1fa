"""The state of a run: the model, its texts as batches, and the options of every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cahp_opt.progress import Stages
from cahp_opt.runs.kinds import Kinds
from cahp_opt.runs.media import Medium
from cahp_opt.runs.plan import Applying, Reading
from cahp_opt.runs.text_counts import TextCounts
from cahp_opt.runs.texts import Example, TextSplit
from cahp_opt.selection import Selection
from cahp_opt.space import Unit
from cahp_opt.stats.pooling import Pooling
from cahp_opt.torch.blocks.finder import Prunable, find_attention, find_prunable
from cahp_opt.torch.checkpoints.sentence_files import SentenceFiles
from cahp_opt.torch.evaluation.fidelity import Fidelity, fidelity_of
from cahp_opt.torch.pipeline.profiles import timed_batches
from cahp_opt.torch.pipeline.rehearsing import rehearse_judging, rehearse_recovery, rehearse_saving
from cahp_opt.torch.recovery.token_weights import TokenWeights
from cahp_opt.torch.running.batches import batch_size
from cahp_opt.torch.texts.encoding import Encoded
from cahp_opt.torch.texts.reading import encode_examples
from cahp_opt.torch.texts.rehearsal import rehearse_texts
from cahp_opt.torch.texts.scored_pairs import PAIR_NOTE, are_scored_pairs, calibration_texts

Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Named:
    """A model, what makes its inputs, and the name it was loaded by.

    Args:
        name: a folder or a hub id.
        model: the model.
        tokenizer: its tokenizer; of a model of images or recordings its
            :class:`~cahp_opt.torch.checkpoints.processors.Preparation`.
        pooling: how it embeds texts; None for the pooling that the files beside it state.
        kinds: the kinds of blocks that are pruned.
        blocks: the blocks, if they were found already; None to find those of the kinds.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    pooling: Pooling | None = None
    kinds: Kinds = field(default_factory=Kinds)
    blocks: Prunable | None = None

    @cached_property
    def prunable(self) -> Prunable:
        """The prunable blocks of the model, found on first use."""
        return find_kinds(self.model, self.kinds) if self.blocks is None else self.blocks

    def settled(self) -> Named:
        """The model with kinds of blocks that it has: attention alone, where no feed-forward part is
        understood, unless the user named the neurons.

        Raises:
            ValueError: if the user did.
        """
        kinds = self.kinds
        if not kinds.prune.neurons or self.prunable.feed_forward:
            return self
        why = _lacks_neurons(self.prunable, kinds.unit)
        if kinds.asked:
            raise ValueError(
                f"`--prune {kinds.prune.value}` is about feed-forward parts, and {why}; give `--prune heads`."
            )
        return replace(self, kinds=kinds.without_neurons(why))


def find_kinds(model: nn.Module, kinds: Kinds) -> Prunable:
    """The blocks of a model of some kinds, the neurons grouped as they stand.

    Raises:
        UnsupportedModelError: as :func:`~cahp_opt.torch.find_prunable`.
        ValueError: if the neurons cannot be put into such groups.
    """
    return find_prunable(
        model,
        heads=kinds.prune.heads,
        neurons=kinds.prune.neurons,
        unit=kinds.unit if kinds.prune.heads else None,
        neuron_group=kinds.neuron_group if kinds.prune.neurons else None,
    )


def _lacks_neurons(prunable: Prunable, unit: Unit | None) -> str:
    """A clause on why no feed-forward part of a model is pruned."""
    of_attention = find_attention(prunable.model, unit=unit).skipped
    others = [each for each in prunable.skipped if each not in of_attention]
    why = f" ({others[0][0]}: {others[0][1]})" if others else ""
    return f"no feed-forward part of this model is understood{why}"


@dataclass(frozen=True, eq=False)
class EncodedTexts:
    """Texts as batches of tensors ``[batch, tokens]``, or images or recordings as what the model reads.

    Args:
        calibration: to calibrate and refit on.
        held_out: to judge by.
        notes: sentences that the user should read.
        counts: how many texts and tokens of both these are.
        medium: what they are.
    """

    calibration: Batches = ()
    held_out: Batches = ()
    notes: tuple[str, ...] = ()
    counts: TextCounts = TextCounts()
    medium: Medium = Medium.TEXT

    @property
    def labelled(self) -> bool:
        """Whether all texts to calibrate on have labels."""
        return all("labels" in batch for batch in self.calibration)

    @property
    def number(self) -> int:
        """The number of texts to calibrate and refit on."""
        return sum(map(batch_size, self.calibration))

    @staticmethod
    def of(
        named: Named, texts: TextSplit, reading: Reading, seed: int, fidelity: Fidelity
    ) -> EncodedTexts:
        """The batches, ``[batch, tokens]``, of some texts.

        Raises:
            ValueError: if the model cannot be run on them, or its outputs not be compared.
        """

        paired = are_scored_pairs(texts, fidelity)

        def encoded(part: Sequence[Example], scored: bool = False) -> Encoded:
            return encode_examples(
                part, named.tokenizer, named.model, reading, seed, scored_pairs=scored
            )

        held_out = Encoded([], TextCounts())
        if texts.held_out:
            held_out = encoded(texts.held_out, paired)
        found = encoded(calibration_texts(texts) if paired else texts.calibration)
        rehearse_texts(named.prunable, found.batches[0], fidelity, texts.medium)
        counts = found.counts + held_out.counts
        notes = (*texts.notes, *counts.notes(), *([PAIR_NOTE] if paired else []))
        return EncodedTexts(found.batches, held_out.batches, notes, counts, texts.medium)


@dataclass(frozen=True, eq=False, kw_only=True)
class PruningRun:
    """A checked run: nothing in it will be refused after the long work.

    Args:
        named: the unpruned model.
        applying: how the selection is applied.
        texts: to calibrate and refit on, and to judge by; none without texts.
        timed: by name of the workload, the batch that is timed, tensors ``[batch, tokens]``.
        fidelity: how outputs are compared; None if nothing is compared.
        weights: the weights of tokens in the refit, taken once; None without a refit.
        beside: the files of sentence-transformers that go along.
        folder: the temporary folder that the files are written to.
        output: the folder that it becomes.
        stages: shows the stages.
        notes: sentences that the user should read; every stage adds its own.
    """

    named: Named
    applying: Applying
    texts: EncodedTexts
    timed: Mapping[str, Mapping[str, Tensor]]
    fidelity: Fidelity | None
    weights: TokenWeights | None
    beside: SentenceFiles
    folder: Path
    output: Path
    stages: Stages
    notes: list[str] = field(default_factory=lambda: list[str]())

    @property
    def model(self) -> nn.Module:
        """The unpruned model."""
        return self.named.model

    @property
    def prunable(self) -> Prunable:
        """Its prunable blocks."""
        return self.named.prunable

    def over(self, prunable: Prunable) -> PruningRun:
        """The same run with the neurons of its blocks in other groups."""
        return replace(self, named=replace(self.named, blocks=prunable))

    def grouped(self, selection: Selection) -> PruningRun:
        """The same run with the neurons in the groups that a selection is made of."""
        if selection.space == self.prunable.space:
            return self
        return self.over(self.prunable.grouped(selection.space))

    @property
    def probe(self) -> Mapping[str, Tensor]:
        """A batch to compare outputs on, tensors ``[batch, tokens]``: of texts if there are any."""
        return next(chain(self.texts.held_out, self.texts.calibration, self.timed.values()))

    @staticmethod
    def start(
        named: Named,
        texts: TextSplit | None,
        applying: Applying,
        *,
        folder: Path,
        output: Path,
        stages: Stages,
    ) -> PruningRun:
        """Refuse a run that could not be timed, recovered, judged or saved in the end.

        Args:
            named: as above.
            texts: to calibrate and refit on, and to judge by; None for neither.
            applying: as above.
            folder: as above.
            output: as above.
            stages: as above.

        Raises:
            ValueError: naming the way out.
            OSError: if nothing can be written to the folder.
        """
        fidelity, encoded, weights = None, EncodedTexts(), None
        if texts or named.pooling:
            fidelity = fidelity_of(named.model, named.pooling)
            if texts:
                if texts.medium is not Medium.TEXT:  # files take long: a few are tried first
                    few = replace(
                        texts,
                        calibration=texts.calibration[: applying.reading.batch_size],
                        held_out=(),
                    )
                    tried = EncodedTexts.of(named, few, applying.reading, applying.seed, fidelity)
                    rehearse_recovery(
                        named.prunable, applying.recovery.recovery, tried.calibration[0]
                    )
                encoded = EncodedTexts.of(named, texts, applying.reading, applying.seed, fidelity)
        rehearse_saving(named.prunable, named.tokenizer, folder)
        beside = SentenceFiles.of(named.model)
        timed = timed_batches(named.model, applying.workloads, named.tokenizer)
        if encoded.calibration:
            if fidelity is not None:
                rehearse_judging(named.model, fidelity, encoded.calibration[0])
            rehearse_recovery(named.prunable, applying.recovery.recovery, encoded.calibration[0])
            recovery = applying.recovery
            if recovery.recovery.refits:
                weights = TokenWeights(
                    named.prunable,
                    fidelity=fidelity,
                    weighting=recovery.weighting,
                    seed=applying.seed,
                    memory=recovery.stream_bytes if recovery.feed_forward else 0,
                )
        return PruningRun(
            named=named,
            applying=applying,
            texts=encoded,
            timed=timed,
            fidelity=fidelity,
            weights=weights,
            beside=beside,
            folder=folder,
            output=output,
            stages=stages,
            notes=[*encoded.notes, *filter(None, [beside.note])],
        )
