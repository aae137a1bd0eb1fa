"""Gates that are drawn at random and can be learnt: two estimators of the gradient."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.torch.methods.gate_prices import GatePrices


class GateDraw(NamedTuple):
    """Gates for some rows.

    Args:
        gates: the gates, ``[rows, n]``.
        slopes: their derivatives by the logits, as the estimator takes them, ``[rows, n]``.
        steepness: the derivative of the openness by the logits, ``[n]``.
        prices: the prices at which they were drawn, ``[limits]``.
    """

    gates: Floats
    slopes: Floats
    steepness: Floats
    prices: Floats


class GateEstimator(ABC):
    """How gates are drawn, and how a loss is differentiated by their logits."""

    @abstractmethod
    def log_odds(self, logits: Floats) -> Floats:
        """The log-odds that a gate is not 0, ``[..., n]``."""

    def openness(self, logits: Floats) -> Floats:
        """The probability that a gate is not 0, ``[..., n]``."""
        return _sigmoid(self.log_odds(logits))

    @abstractmethod
    def drawn(
        self,
        logits: Floats,
        rows: int,
        prices: GatePrices,
        limits: Floats,
        rng: np.random.Generator,
    ) -> GateDraw:
        """Draw gates that are within limits.

        Args:
            logits: of the gates, without prices, ``[n]``.
            rows: how many draws.
            prices: finds the prices.
            limits: to be met, ``[limits]``.
            rng: the source of the noise.
        """

    def weights(self, logits: Floats) -> Floats:
        """``-log(1 - openness)``: a sum of these over kept units is largest where it is most probable that every
        gate left out is closed; ``[..., n]``."""
        found: Floats = np.logaddexp(0.0, self.log_odds(logits))
        return found


@dataclass(frozen=True)
class HardConcrete(GateEstimator):
    """The hard concrete distribution (Louizos, Welling and Kingma 2018): a stretched and cut sigmoid of logistic
    noise, which is exactly 0 or 1 much of the time.

    The expected cost is within the limits.

    Args:
        temperature: of the sigmoid.
        stretch: how far it reaches beyond 0 and 1 on either side.
    """

    temperature: float = 2 / 3
    stretch: float = 0.1

    def log_odds(self, logits: Floats) -> Floats:
        """``logit - temperature log(stretch / (1 + stretch))``, ``[..., n]``."""
        return logits - self.temperature * math.log(self.stretch / (1 + self.stretch))

    def drawn(
        self,
        logits: Floats,
        rows: int,
        prices: GatePrices,
        limits: Floats,
        rng: np.random.Generator,
    ) -> GateDraw:
        """Gates whose expected cost is within the limits; logits ``[n]``."""
        found = prices.meeting(logits[None], self.openness, limits)[0]
        priced = logits - found @ prices.slopes
        noise = rng.logistic(size=(rows, len(logits)))
        soft = _sigmoid((noise + priced) / self.temperature)
        width = 1 + 2 * self.stretch
        wide = width * soft - self.stretch
        inside = (wide > 0) & (wide < 1)
        slopes = np.where(inside, width * soft * (1 - soft) / self.temperature, 0.0)
        opened = self.openness(priced)
        return GateDraw(np.clip(wide, 0, 1), slopes, opened * (1 - opened), found)


@dataclass(frozen=True)
class GumbelTop(GateEstimator):
    """The straight-through Gumbel top-k estimator of differentiable subset pruning (Li, Cotterell and Sachan 2021).

    Every row keeps, by its own Gumbel noise, the units with the largest logits that are within the limits;
    gradients pass as if the gates were a sigmoid. Where units cost differently, a logit stands against the
    price of its unit in place of the ``k``-th largest.

    Args:
        temperature: of the sigmoid.
    """

    temperature: float = 1.0

    def log_odds(self, logits: Floats) -> Floats:
        """The logits over the temperature, ``[..., n]``."""
        return logits / self.temperature

    def drawn(
        self,
        logits: Floats,
        rows: int,
        prices: GatePrices,
        limits: Floats,
        rng: np.random.Generator,
    ) -> GateDraw:
        """Gates of 0 and 1, every row within the limits; logits ``[n]``."""
        noisy = logits + rng.gumbel(size=(rows, len(logits)))
        found = prices.meeting(noisy, _above_0, limits)
        priced = noisy - found @ prices.slopes
        soft = self.openness(priced)
        slopes = soft * (1 - soft) / self.temperature
        return GateDraw(_above_0(priced), slopes, slopes.mean(axis=0), found.mean(axis=0))


def _above_0(logits: Floats) -> Floats:
    return (logits > 0).astype(np.float64)


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x))
