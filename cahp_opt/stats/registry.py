"""All statistics: a new one is a file with its record, and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from cahp_opt.stats.moments import BlockMoments
from cahp_opt.stats.sensitivity import BlockSensitivity
from cahp_opt.stats.signatures import Signatures
from cahp_opt.stats.statistic import Statistic
from cahp_opt.stats.totals import PairsByDensity, PerPair, PerUnit

STATISTICS: Mapping[str, type[Statistic]] = {
    "salience": PerUnit,
    "gauss_newton": PairsByDensity,
    "fisher": PairsByDensity,
    "moments": BlockMoments,
    "sensitivity": BlockSensitivity,
    "divergence": PerPair,
    "signatures": Signatures,
}
"""The class of every statistic, by its name in :attr:`HeadStats.statistics` and in files."""
