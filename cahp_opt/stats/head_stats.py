"""What calibration measured: additive statistics of the heads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools, Floats, scatter_about_mean
from cahp_opt.files.records import PathLike, RecordError, check_header, reading, whole_file
from cahp_opt.identity import difference
from cahp_opt.space import Block, HeadSpace
from cahp_opt.stats.moments import Moments, Total
from cahp_opt.stats.pooling import Pooling, in_words
from cahp_opt.stats.sensitivity import Sensitivity
from cahp_opt.stats.signatures import Signatures

_KIND, _VERSION = "cahp-stats", 2
_ABOUT_ZERO = 1  # the version whose second moments are about zero
_BY_BLOCK = ("moments", "sensitivity")  # statistics with one record per block
_BY_DENSITY = ("gauss_newton", "fisher")  # statistics with one matrix per density of the masks


@dataclass(frozen=True, eq=False)
class HeadStats:
    """Everything calibration measured about the heads of one model; ``a + b`` pools two runs.

    Args:
        space: the blocks.
        model: identity of the model's weights, as :mod:`cahp_opt.identity` has it, so that statistics of two
            models never mix.
        examples: calibration examples seen.
        tokens: real (unpadded) tokens seen.
        salience: sum over examples of ``|d loss / d gate|`` at the unpruned model, shape ``[n]``
            (Michel et al. 2019); without labels the loss is a random probe of the output.
        gauss_newton: by density of the random masks, the sum over examples of ``g g'``, shape
            ``[n, n]``, where ``g`` is the gate gradient of a probe of the output: its mean is the
            Gauss-Newton matrix of the fidelity distance. Density 1 is the unpruned model.
        moments: for every block the second moments of its head outputs; empty if not measured.
        divergence: sum over examples of the Jensen-Shannon divergence (nats) between the attention
            maps of two units, shape ``[n, n]``; NaN-free: pairs that cannot be compared hold ln 2
            per example, the largest there is.
        signatures: attention maps by class of the labelled examples; None if not measured.
        fisher: by density of the random masks, the sum over labelled examples of ``g g'``, shape
            ``[n, n]``, where ``g`` is the gate gradient of the example's task loss: its mean is the
            empirical Fisher matrix. Empty if not measured.
        sensitivity: for every block the moments of its head outputs, weighted by how strongly the
            model's output depends on each token; empty if not measured.
        pooling: how hidden states became the embeddings whose gradients were taken; None for other outputs,
            and for statistics of earlier releases, which do not tell.

    Raises:
        ValueError: for wrong shapes, NaN or infinity.
    """

    space: HeadSpace
    model: str
    examples: int
    tokens: int
    salience: Total
    gauss_newton: Mapping[float, Total] = field(default_factory=lambda: MappingProxyType({}))
    moments: tuple[Moments, ...] = ()
    divergence: Total | None = None
    signatures: Signatures | None = None
    fisher: Mapping[float, Total] = field(default_factory=lambda: MappingProxyType({}))
    sensitivity: tuple[Sensitivity, ...] = ()
    pooling: Pooling | None = None

    def __post_init__(self) -> None:
        n = self.space.n
        _shape("salience", self.salience.sum, (n,))
        for name in _BY_DENSITY:
            given: Mapping[float, Total] = getattr(self, name)
            ordered = {float(rho): given[rho] for rho in sorted(given)}
            for rho, total in ordered.items():
                if not 0 < rho <= 1:
                    raise ValueError(f"`{name}` has the density {rho}; densities lie in (0, 1].")
                _shape(f"{name}[{rho}]", total.sum, (n, n))
            object.__setattr__(self, name, MappingProxyType(ordered))
        for name in _BY_BLOCK:
            self._check_blocks(name)
        if self.divergence is not None:
            _shape("divergence", self.divergence.sum, (n, n))
        if self.signatures is not None and self.signatures.n != n:
            raise ValueError(
                f"`signatures` are of {self.signatures.n} units, and the model has {n}."
            )

    def _check_blocks(self, name: str) -> None:
        given: Iterable[Moments | Sensitivity] = getattr(self, name)
        entries = tuple(given)
        object.__setattr__(self, name, entries)
        if entries and len(entries) != len(self.space.blocks):
            raise ValueError(
                f"`{name}` must have one entry per block, {len(self.space.blocks)} in all, "
                f"got {len(entries)}."
            )
        for block, entry in zip(self.space.blocks, entries, strict=False):
            if len(entry.sum) % block.units:
                raise ValueError(
                    f"`{name}` of block {block.name!r} are {len(entry.sum)} wide, which "
                    f"{block.units} units cannot share equally."
                )

    def __reduce__(self) -> tuple[type[HeadStats], tuple[Any, ...]]:
        """Copies and pickles rebuild the record: its read-only mapping cannot be copied as such."""
        values = [getattr(self, f.name) for f in fields(self)]
        plain: list[Any] = [dict(v) if isinstance(v, Mapping) else v for v in values]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        return HeadStats, tuple(plain)

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
        if (
            any(getattr(self, name).keys() != getattr(other, name).keys() for name in _BY_DENSITY)
            or any(len(getattr(self, name)) != len(getattr(other, name)) for name in _BY_BLOCK)
            or (self.divergence is None) != (other.divergence is None)
            or (self.signatures is None) != (other.signatures is None)
        ):
            raise ValueError(
                "these statistics were calibrated with different options; calibrate both with the "
                "same densities and examples."
            )
        return HeadStats(
            self.space,
            self.model,
            self.examples + other.examples,
            self.tokens + other.tokens,
            self.salience + other.salience,
            {rho: total + other.gauss_newton[rho] for rho, total in self.gauss_newton.items()},
            tuple(a + b for a, b in zip(self.moments, other.moments, strict=True)),
            self.divergence + other.divergence if self.divergence and other.divergence else None,
            self.signatures + other.signatures if self.signatures and other.signatures else None,
            {rho: total + other.fisher[rho] for rho, total in self.fisher.items()},
            tuple(a + b for a, b in zip(self.sensitivity, other.sensitivity, strict=True)),
            self.pooling,
        )

    def restricted(self, kept: Bools) -> HeadStats:
        """The statistics of some units alone, over the blocks that have any of them.

        Args:
            kept: these units, bool ``[n]``.

        Raises:
            ValueError: if ``kept`` is no keep-set, or empty.
        """
        kept = self.space.check(kept)
        own = [kept[where] for where in self.space.slices]
        blocks = [
            Block(block.name, int(some.sum()), block.unit)
            for block, some in zip(self.space.blocks, own, strict=True)
            if some.any()
        ]
        if not blocks:
            raise ValueError("`kept` must hold at least one unit, and is empty.")
        both = np.ix_(kept, kept)

        def pairs(total: Total) -> Total:
            return Total(total.sum[both], total.count)

        return HeadStats(
            HeadSpace(tuple(blocks)),
            self.model,
            self.examples,
            self.tokens,
            Total(self.salience.sum[kept], self.salience.count),
            {rho: pairs(total) for rho, total in self.gauss_newton.items()},
            tuple(
                moments.of(np.repeat(some, len(moments.sum) // len(some)))
                for moments, some in zip(self.moments, own, strict=False)
                if some.any()
            ),
            None if self.divergence is None else pairs(self.divergence),
            None if self.signatures is None else self.signatures.of(kept),
            {rho: pairs(total) for rho, total in self.fisher.items()},
            tuple(
                seen.of(np.repeat(some, len(seen.sum) // len(some)))
                for seen, some in zip(self.sensitivity, own, strict=False)
                if some.any()
            ),
            self.pooling,
        )

    def save(self, path: PathLike) -> None:
        """Write the statistics as one safetensors file."""
        from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

        arrays: dict[str, npt.NDArray[Any]] = {"salience": self.salience.sum}
        counts: dict[str, int] = {"salience": self.salience.count}
        for name in _BY_DENSITY:
            by_density: Mapping[float, Total] = getattr(self, name)
            for rho, total in by_density.items():
                key = f"{name}/{rho!r}"
                arrays[key], counts[key] = total.sum, total.count
        for b, moments in enumerate(self.moments):
            for part in ("sum", "scatter", "readout"):
                arrays[f"moments/{b}/{part}"] = getattr(moments, part)
            counts[f"moments/{b}"] = moments.count
        for b, entry in enumerate(self.sensitivity):
            for part in ("sum", "scatter", "metric"):
                arrays[f"sensitivity/{b}/{part}"] = getattr(entry, part)
            arrays[f"sensitivity/{b}/weight"] = np.array([entry.weight])
            counts[f"sensitivity/{b}"] = entry.examples
        if self.divergence is not None:
            arrays["divergence"], counts["divergence"] = self.divergence.sum, self.divergence.count
        if self.signatures is not None:
            arrays["signatures/mean"] = self.signatures.mean
            arrays["signatures/squares"] = self.signatures.squares
            arrays["signatures/counts"] = self.signatures.counts
        header = {
            "blocks": self.space.to_json(),
            "model": self.model,
            "examples": self.examples,
            "tokens": self.tokens,
            "counts": counts,
            "pooling": None if self.pooling is None else self.pooling.value,
        }
        metadata = {"kind": _KIND, "version": str(_VERSION), "header": json.dumps(header)}
        with whole_file(path) as temporary:
            save_file(
                {k: np.ascontiguousarray(a) for k, a in arrays.items()},
                temporary,
                metadata=metadata,
            )

    @staticmethod
    def load(path: PathLike) -> HeadStats:
        """Read statistics.

        Raises:
            RecordError: if the file is not a usable statistics record.
            OSError: if it cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        with open(path, "rb"):  # a missing or unreadable file is an OSError, not a parse error
            pass
        try:
            reader: Any = safe_open(path, framework="numpy")
            with reader as file:
                metadata: dict[str, str] = file.metadata() or {}
                names: list[str] = list(file.keys())
                arrays: dict[str, Any] = {name: file.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise RecordError(
                f"{path} is not a readable safetensors file ({error}); calibrate again."
            ) from None
        version = metadata.get("version", "")
        found = int(version) if version.isdecimal() else version
        about_zero = found == _ABOUT_ZERO
        check_header(path, metadata.get("kind"), _VERSION if about_zero else found, _KIND, _VERSION)
        with reading(path):
            header = json.loads(metadata["header"])
            space, counts = HeadSpace.from_json(header["blocks"]), header["counts"]
            blocks = range(len(space.blocks))
            kinds = {name.split("/")[0] for name in arrays}

            def scatter(name: str, weight: float) -> Floats:
                if not about_zero:
                    found: Floats = arrays[f"{name}/scatter"]
                    return found
                return scatter_about_mean(arrays[f"{name}/outer"], arrays[f"{name}/sum"], weight)

            def by_density(kind: str) -> dict[float, Total]:
                return {
                    float(name.split("/")[1]): Total(array, counts[name])
                    for name, array in arrays.items()
                    if name.startswith(f"{kind}/")
                }

            return HeadStats(
                space,
                header["model"],
                header["examples"],
                header["tokens"],
                Total(arrays["salience"], counts["salience"]),
                by_density("gauss_newton"),
                tuple(
                    Moments(
                        arrays[f"moments/{b}/sum"],
                        scatter(f"moments/{b}", counts[f"moments/{b}"]),
                        arrays[f"moments/{b}/readout"],
                        counts[f"moments/{b}"],
                    )
                    for b in (blocks if "moments" in kinds else ())
                ),
                Total(arrays["divergence"], counts["divergence"])
                if "divergence" in arrays
                else None,
                Signatures(
                    *(arrays[f"signatures/{part}"] for part in ("counts", "mean", "squares"))
                )
                if "signatures/mean" in arrays
                else None,
                by_density("fisher"),
                tuple(
                    Sensitivity(
                        arrays[f"sensitivity/{b}/sum"],
                        scatter(f"sensitivity/{b}", arrays[f"sensitivity/{b}/weight"].item()),
                        arrays[f"sensitivity/{b}/metric"],
                        arrays[f"sensitivity/{b}/weight"].item(),
                        counts[f"sensitivity/{b}"],
                    )
                    for b in (blocks if "sensitivity" in kinds else ())
                ),
                None if header.get("pooling") is None else Pooling(header["pooling"]),
            )


def _shape(argument: str, array: Floats, expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise ValueError(f"`{argument}` must have shape {list(expected)}, got {list(array.shape)}.")
