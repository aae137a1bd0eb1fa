"""The result of calibration: additive statistics of the heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from cahp_opt.arrays import Bools, scatter_about_mean
from cahp_opt.files.array_records import read_arrays, write_arrays
from cahp_opt.files.records import PathLike, reading
from cahp_opt.identity import difference
from cahp_opt.space import Block, HeadSpace
from cahp_opt.stats.moments import BlockMoments, Moments
from cahp_opt.stats.pooling import Pooling, in_words
from cahp_opt.stats.registry import STATISTICS
from cahp_opt.stats.sensitivity import BlockSensitivity, Sensitivity
from cahp_opt.stats.signatures import Signatures
from cahp_opt.stats.statistic import COUNT, Arrays, Statistic, below, counted, joined
from cahp_opt.stats.totals import PairsByDensity, PerPair, PerUnit, Total

_KIND, _VERSION = "cahp-stats", 2
_ABOUT_ZERO = 1  # the version whose second moments are about zero

Kind = TypeVar("Kind", bound=Statistic)


@dataclass(frozen=True, eq=False, init=False)
class HeadStats:
    """The calibration statistics of the heads of one model; ``a + b`` pools two runs.

    Args:
        space: the blocks.
        model: identity of the model's weights, as in :mod:`cahp_opt.identity`, so that statistics
            of two models never mix.
        examples: calibration examples seen.
        tokens: real (unpadded) tokens seen.
        salience: sum over examples of ``|d loss / d gate|`` at the unpruned model, shape ``[n]``
            (Michel et al. 2019); without labels the loss is a random probe of the output.
        gauss_newton: by density of the random masks, the sum over examples of ``g g'``, shape
            ``[n, n]``, where ``g`` is the gate gradient of a probe of the output: its mean is the
            Gauss-Newton matrix of the fidelity distance. Density 1 is the unpruned model.
        moments: for every block the second moments of its head outputs; empty if not measured.
        divergence: sum over examples of the Jensen-Shannon divergence (nats) between the attention
            maps of two units, shape ``[n, n]``; free of NaN: pairs that cannot be compared hold ln
            2 per example, the maximum.
        signatures: attention maps by class of the labelled examples; None if not measured.
        fisher: by density of the random masks, the sum over labelled examples of ``g g'``, shape
            ``[n, n]``, where ``g`` is the gate gradient of the example's task loss: its mean is the
            empirical Fisher matrix. Empty if not measured.
        sensitivity: for every block the moments of its head outputs, weighted by how strongly the
            model's output depends on each token; empty if not measured.
        pooling: how hidden states became the embeddings whose gradients were taken; None for other outputs,
            and for statistics of earlier releases, which do not record it.
        statistics: by name, these and further ones; those given by their own argument take
            precedence.

    Attributes:
        statistics: all statistics by name, in the order of
            :data:`~cahp_opt.stats.registry.STATISTICS`; the properties below read them.

    Raises:
        ValueError: for wrong shapes, NaN or infinity.
    """

    space: HeadSpace
    model: str
    examples: int
    tokens: int
    statistics: Mapping[str, Statistic]
    pooling: Pooling | None

    def __init__(
        self,
        space: HeadSpace,
        model: str,
        examples: int,
        tokens: int,
        salience: Total | None = None,
        gauss_newton: Mapping[float, Total] | None = None,
        moments: Iterable[Moments] = (),
        divergence: Total | None = None,
        signatures: Signatures | None = None,
        fisher: Mapping[float, Total] | None = None,
        sensitivity: Iterable[Sensitivity] = (),
        pooling: Pooling | None = None,
        *,
        statistics: Mapping[str, Statistic] | None = None,
    ) -> None:
        found: dict[str, Statistic] = dict(statistics or {})
        if salience is not None:
            found["salience"] = PerUnit.of(salience)
        if gauss_newton:
            found["gauss_newton"] = PairsByDensity(gauss_newton)
        if fisher:
            found["fisher"] = PairsByDensity(fisher)
        if outputs := tuple(moments):
            found["moments"] = BlockMoments(outputs)
        if weighted := tuple(sensitivity):
            found["sensitivity"] = BlockSensitivity(weighted)
        if divergence is not None:
            found["divergence"] = PerPair.of(divergence)
        if signatures is not None:
            found["signatures"] = signatures
        for name, statistic in found.items():
            statistic.check(name, space)
        ordered = {name: found.pop(name) for name in STATISTICS if name in found}
        for name, value in {
            "space": space,
            "model": model,
            "examples": examples,
            "tokens": tokens,
            "statistics": MappingProxyType({**ordered, **found}),
            "pooling": pooling,
        }.items():
            object.__setattr__(self, name, value)

    def statistic(self, name: str, kind: type[Kind]) -> Kind | None:
        """A statistic by its name; None if it was not measured.

        Raises:
            TypeError: if it is of another class than ``kind``.
        """
        found = self.statistics.get(name)
        if found is not None and not isinstance(found, kind):
            raise TypeError(f"`{name}` is a {type(found).__name__}, not a {kind.__name__}.")
        return found

    @property
    def salience(self) -> Total:
        """The sum over examples of ``|d loss / d gate|``, ``[n]``; of no examples if it was not
        measured."""
        return self.statistic("salience", PerUnit) or PerUnit(np.zeros(self.space.n), 0)

    @property
    def gauss_newton(self) -> Mapping[float, Total]:
        """By density, the sum of ``g g'`` of the probed output, ``[n, n]``; empty if not
        measured."""
        return self.statistic("gauss_newton", PairsByDensity) or MappingProxyType({})

    @property
    def fisher(self) -> Mapping[float, Total]:
        """By density, the sum of ``g g'`` of the task loss, ``[n, n]``; empty if not measured."""
        return self.statistic("fisher", PairsByDensity) or MappingProxyType({})

    @property
    def moments(self) -> tuple[Moments, ...]:
        """The second moments of every block's head outputs; empty if not measured."""
        found = self.statistic("moments", BlockMoments)
        return () if found is None else found.entries

    @property
    def needed_moments(self) -> tuple[Moments, ...]:
        """:attr:`moments`, for what cannot do without.

        Raises:
            ValueError: if they were not measured.
        """
        if not self.moments:
            raise ValueError(
                "`stats` has no moments of head outputs, which a run that measures the sensitivity leaves out; take "
                "the statistics of `cahp calibrate --objective explained-variance`, or of `calibrate`."
            )
        return self.moments

    @property
    def sensitivity(self) -> tuple[Sensitivity, ...]:
        """The moments of every block's head outputs, weighted by the output's dependence on each
        token; empty if not measured."""
        found = self.statistic("sensitivity", BlockSensitivity)
        return () if found is None else found.entries

    @property
    def divergence(self) -> Total | None:
        """The sum of divergences between attention maps, ``[n, n]``; None if not measured."""
        return self.statistic("divergence", PerPair)

    @property
    def signatures(self) -> Signatures | None:
        """The attention maps by class; None if not measured."""
        return self.statistic("signatures", Signatures)

    def check_attention_alone(self) -> None:
        """Refuse statistics of feed-forward parts, for what is made from attention maps.

        Raises:
            ValueError: if there is a feed-forward part among the blocks.
        """
        if not self.space.of_attention.all():
            first = self.space.blocks[int(np.argmin(self.space.of_attention))].name
            raise ValueError(
                f"`stats` is also of feed-forward parts such as {first!r}, which have no attention maps to "
                "compare; calibrate attention alone (`find_attention`, `--prune heads`)."
            )

    def without(self, *names: str) -> HeadStats:
        """The same with some statistics left out, by name."""
        left = {name: s for name, s in self.statistics.items() if name not in names}
        return replace(self, statistics=left)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles rebuild the record: its read-only mapping cannot be copied as such."""
        facts = (self.space, self.model, self.examples, self.tokens, self.pooling)
        return _rebuilt, (*facts, dict(self.statistics))

    def __add__(self, other: HeadStats) -> HeadStats:
        """The statistics of both runs together.

        Raises:
            ValueError: if they are of different models, of embeddings that were pooled in different ways, or
                measured different things.
        """
        found = self.space.difference(other.space) or difference(self.model, other.model)
        if found or self.model != other.model:
            raise ValueError(
                "statistics of two different models cannot be added: "
                f"{found or 'one of them does not say which model it is of'}."
            )
        if self.pooling is not other.pooling:
            raise ValueError(
                "statistics of two different embeddings cannot be added: one has "
                f"{in_words(self.pooling)}, and the other {in_words(other.pooling)}; calibrate both with "
                "the same `fidelity`, such as `fidelity_of(model, Pooling.MEAN)`."
            )
        if self.statistics.keys() != other.statistics.keys():
            raise ValueError(
                "these statistics were calibrated with different options; calibrate both with the "
                "same densities and examples."
            )
        return replace(
            self,
            examples=self.examples + other.examples,
            tokens=self.tokens + other.tokens,
            statistics={n: s + other.statistics[n] for n, s in self.statistics.items()},
        )

    def restricted(self, kept: Bools) -> HeadStats:
        """The statistics of some units alone, over the blocks that have any of them.

        Args:
            kept: these units, bool ``[n]``.

        Raises:
            ValueError: if ``kept`` is not a keep-set, or empty.
        """
        kept = self.space.check(kept)
        blocks = [
            block if kept[where].all() else Block(block.name, int(kept[where].sum()), block.unit)
            for block, where in zip(self.space.blocks, self.space.slices, strict=True)
            if kept[where].any()
        ]
        if not blocks:
            raise ValueError("`kept` must hold at least one unit, and is empty.")
        return replace(
            self,
            space=HeadSpace(tuple(blocks)),
            statistics={n: s.restricted(self.space, kept) for n, s in self.statistics.items()},
        )

    def save(self, path: PathLike) -> None:
        """Write the statistics as one safetensors file."""
        arrays = joined({name: s.arrays() for name, s in self.statistics.items()})
        end = f"/{COUNT}"  # numbers of samples stand in the header
        counts = {k.removesuffix(end): int(a) for k, a in arrays.items() if k.endswith(end)}
        header = {
            "blocks": self.space.to_json(),
            "model": self.model,
            "examples": self.examples,
            "tokens": self.tokens,
            "counts": counts,
            "pooling": None if self.pooling is None else self.pooling.value,
        }
        kept = {k: a for k, a in arrays.items() if not k.endswith(end)}
        write_arrays(path, _KIND, _VERSION, header, kept)

    @staticmethod
    def load(path: PathLike) -> HeadStats:
        """Read statistics; their arrays stay in the file, and are read where they are used.

        Raises:
            RecordError: if the file is not a usable statistics record, or holds statistics that are not
                in :data:`~cahp_opt.stats.registry.STATISTICS`.
            OSError: if it cannot be read.
        """
        found = read_arrays(path, _KIND, _VERSION, _ABOUT_ZERO, again="calibrate again")
        with reading(path):
            header, tensors = found.header, found.arrays
            counts = {f"{k}/{COUNT}": counted(count) for k, count in header["counts"].items()}
            arrays: Arrays = {**tensors, **counts}
            arrays = _about_means(arrays) if found.version == _ABOUT_ZERO else arrays
            kinds = dict.fromkeys(name.split("/")[0] for name in arrays)
            unknown = [name for name in kinds if name not in STATISTICS]
            if unknown:
                raise ValueError(
                    f"it holds statistics that this release does not know: {', '.join(unknown)}; read it "
                    "with the release that wrote it, or calibrate again."
                )
            return HeadStats(
                HeadSpace.from_json(header["blocks"]),
                header["model"],
                header["examples"],
                header["tokens"],
                pooling=None if header.get("pooling") is None else Pooling(header["pooling"]),
                statistics={n: STATISTICS[n].of_arrays(below(arrays, n)) for n in kinds},
            )


def _rebuilt(
    space: HeadSpace,
    model: str,
    examples: int,
    tokens: int,
    pooling: Pooling | None,
    statistics: Mapping[str, Statistic],
) -> HeadStats:
    return HeadStats(space, model, examples, tokens, pooling=pooling, statistics=statistics)


def _about_means(arrays: Arrays) -> Arrays:
    """Arrays of the first version of the file, whose second moments are about zero, as they are now.

    An ``outer`` becomes the ``scatter`` about the mean of the samples, which are weighted by the
    ``weight`` beside it, or counted.
    """
    now = dict(arrays)
    for name in [name for name in arrays if name.split("/")[-1] == "outer"]:
        part = name.removesuffix("outer")
        weight = arrays.get(f"{part}weight", arrays.get(f"{part}{COUNT}"))
        if weight is None:
            raise KeyError(f"{part}{COUNT}")
        now[f"{part}scatter"] = scatter_about_mean(
            now.pop(name), arrays[f"{part}sum"], float(weight.item())
        )
    return now
