"""What a run would do before it does it: passes over the texts, memory and time, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cahp_opt.runs.text_counts import TextCounts


@dataclass(frozen=True)
class Passes:
    """How often models run over texts: 1 is every text once through every layer.

    Args:
        dense: forward passes of the unpruned model.
        backward: backward passes through it; every one needs a forward pass, which is counted too.
        sliced: forward passes of the sliced model.
        sliced_backward: backward passes through it.
        sums: the products of matrices that add up what the passes show, and those of layers that run alone, in
            forward passes of the unpruned model with as many multiplications.
    """

    dense: float = 0.0
    backward: float = 0.0
    sliced: float = 0.0
    sliced_backward: float = 0.0
    sums: float = 0.0

    @property
    def forward(self) -> float:
        """The forward passes of both models."""
        return self.dense + self.sliced

    def __add__(self, other: Passes) -> Passes:
        """What both are together, over the same texts."""
        return Passes(
            self.dense + other.dense,
            self.backward + other.backward,
            self.sliced + other.sliced,
            self.sliced_backward + other.sliced_backward,
            self.sums + other.sums,
        )


@dataclass(frozen=True)
class PassTimes:
    """How long passes take, by one timed batch.

    Args:
        forward: seconds of a forward pass of the unpruned model over a token, padding included.
        backward: seconds of a backward pass through it.
    """

    forward: float
    backward: float

    def seconds(self, passes: Passes, tokens: int) -> float:
        """The seconds of passes over texts of this many tokens, padding included; the sliced model counts as
        much as the unpruned one, so that it is rather less."""
        forward = self.forward * (passes.forward + passes.sums)
        return tokens * (forward + self.backward * (passes.backward + passes.sliced_backward))


@dataclass(frozen=True)
class StageForecast:
    """What a stage of a run would do.

    Args:
        name: of the stage.
        texts: the number of texts that it runs over.
        passes: over these texts.
        held: bytes of what is held at once in main memory or on a device beside the models, by what it is.
        seconds: of the passes.
    """

    name: str
    texts: int
    passes: Passes
    held: Mapping[str, int]
    seconds: float

    @property
    def bytes_held(self) -> int:
        """The bytes of all that is held at once."""
        return sum(self.held.values())


@dataclass(frozen=True)
class Forecast:
    """What a whole run would do.

    Args:
        counts: texts and tokens that were read, of those to calibrate on and those held out.
        weights: bytes of the unpruned model; from slicing on, those of the sliced one are there too, at most
            as many.
        times: of the batch that was timed.
        stages: those that run models over texts, in their order.
        notes: sentences on what is not in these numbers.
    """

    counts: TextCounts
    weights: int
    times: PassTimes
    stages: tuple[StageForecast, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def seconds(self) -> float:
        """The seconds of all passes."""
        return sum(stage.seconds for stage in self.stages)

    def peak(self, stage: StageForecast) -> int:
        """The bytes of the models and of all that a stage holds."""
        models = 2 if stage.passes.sliced else 1
        return models * self.weights + stage.bytes_held

    def stage(self, name: str) -> StageForecast:
        """The stage of this name.

        Raises:
            KeyError: if no stage of this name runs models over texts.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)
