"""Where and how times were measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from math import inf
from typing import Any

from cahp_opt.arrays import is_whole


class Phase(str, Enum):
    """The workload that was timed."""

    PREFILL = "prefill"
    """One forward pass over the whole input; for encoders the only phase there is."""
    DECODE = "decode"
    """One new token against a filled key/value cache."""


class Execution(str, Enum):
    """How the model was run."""

    EAGER = "eager"
    """Operation by operation, as Python asks for them."""
    COMPILED = "compiled"
    """Through ``torch.compile``."""
    CUDA_GRAPH = "cuda_graph"
    """Captured once as a CUDA graph and replayed, without the cost of launching single operations."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where and how a table was measured; unknown facts are empty or 0.

    Args:
        device: name of the processor; of an estimate, ``estimate for`` and that.
        dtype: precision of the weights.
        batch: examples per batch.
        sequence_length: tokens per example; while decoding, those in the cache.
        phase: prefill or decode.
        execution: how the model was run.
        attention: implementation of attention, such as ``sdpa``.
        threads: threads of the CPU.
        quota: processors' worth of time that a container is granted; 0 for no limit. More threads than that
            are stopped together for a part of the time.
        repeats: timed runs of every whole model.
        spread: the largest relative distance between the reported quantile and the median over all
            measured points: the noise of the machine meanwhile.
        drift: by how much the unpruned model was slower in the second half of the measurement than in
            the first, relative; negative if it was faster.
        error: the largest relative error of the prediction on whole uneven models that were timed as a
            check, and that it was not fitted to.
        estimated: whether the times were computed from a description of the hardware, and not measured.
        versions: of the software, by name.
        model: the model's class and shapes, as :func:`~cahp_opt.identity.structure_of` has them.

    Raises:
        ValueError: for a fact of another type, a negative number of things, or a share that is not finite.
    """

    device: str = ""
    dtype: str = ""
    batch: int = 0
    sequence_length: int = 0
    phase: Phase = Phase.PREFILL
    execution: Execution = Execution.EAGER
    attention: str = ""
    threads: int = 0
    quota: float = 0.0
    repeats: int = 0
    spread: float = 0.0
    drift: float = 0.0
    error: float = 0.0
    estimated: bool = False
    versions: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    model: str = ""

    def __post_init__(self) -> None:
        for names, fine, allowed in _FACTS:
            for name in names:
                given = getattr(self, name)
                if not fine(given):
                    raise ValueError(f"`{name}` of a provenance must be {allowed}, got {given!r}.")

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {**asdict(self), "phase": self.phase.value, "execution": self.execution.value}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Provenance:
        """The inverse of :meth:`to_json`; facts that are missing are unknown.

        Raises:
            ValueError, TypeError: if it is not a provenance.
        """
        facts = dict(data)
        facts["phase"] = Phase(facts.get("phase", Phase.PREFILL.value))
        facts["execution"] = Execution(facts.get("execution", Execution.EAGER.value))
        return Provenance(**facts)


def _is_finite(given: object) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool) and -inf < given < inf


def _is_text(given: object) -> bool:
    return isinstance(given, str)


_FACTS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("device", "dtype", "attention", "model"), _is_text, "text"),
    (
        ("batch", "sequence_length", "threads", "repeats"),
        lambda n: is_whole(n) and n >= 0,
        "a whole number of at least 0",
    ),
    (
        ("spread", "error", "quota"),
        lambda x: _is_finite(x) and x >= 0,
        "a finite number of at least 0",
    ),
    (("drift",), _is_finite, "a finite number"),
    (("phase",), lambda p: isinstance(p, Phase), "a `Phase`"),
    (("execution",), lambda e: isinstance(e, Execution), "an `Execution`"),
    (("estimated",), lambda e: isinstance(e, bool), "true or false"),
    (
        ("versions",),
        lambda v: isinstance(v, Mapping) and all(map(_is_text, [*v, *v.values()])),  # pyright: ignore
        "texts by name",
    ),
)
