"""All collectors: a new one is a file, and a line here."""

from __future__ import annotations

from cahp_opt.runs.measuring import Measuring
from cahp_opt.torch.calibration.attention_maps import MapDivergences
from cahp_opt.torch.calibration.class_maps import ClassMaps
from cahp_opt.torch.calibration.collector import Collector
from cahp_opt.torch.calibration.gate_gradients import GateGradients
from cahp_opt.torch.calibration.output_moments import HeadOutputs
from cahp_opt.torch.calibration.token_gradients import TokenGradients

COLLECTORS: tuple[type[Collector], ...] = (
    HeadOutputs,
    GateGradients,
    TokenGradients,
    MapDivergences,
    ClassMaps,
)


def collectors_for(measuring: Measuring) -> list[Collector]:
    """The collectors of the statistics to measure.

    Raises:
        ValueError: for a number that makes no sense.
    """
    found = (kind.wanted(measuring) for kind in COLLECTORS)
    return [collector for collector in found if collector is not None]
