"""The variance of each block's dense output that least squares on the kept heads still explains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools, Floats, Ints, constant, finite
from cahp_opt.objective import Objective
from cahp_opt.objectives.group_subsets import group_subsets, is_cheaper_whole
from cahp_opt.objectives.recent import Recent
from cahp_opt.space import HeadSpace
from cahp_opt.stats.column_form import ColumnForm
from cahp_opt.stats.definite import definite_form
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.needs import needs
from cahp_opt.subsets import BestSubsets, best_by_count, check_enumerable

_UNDO = 4  # additions per block that can be taken back at once; each holds two matrices
_WIDE = 1024  # columns beyond which only one addition can be taken back: memory counts then
_BATCH_BYTES = 2**18
_KEPT_BYTES = 2**31  # of normal equations; beyond that they are made again where they are needed


class ReadOutputs(Protocol):
    """What is read of the outputs of one block: :class:`~cahp_opt.stats.moments.Moments` or
    :class:`~cahp_opt.stats.sensitivity.Sensitivity`, which make it of what they hold whenever it is asked for."""

    @property
    def covariance(self) -> Floats:
        """The covariance of the head outputs, ``[d, d]``."""
        ...

    @property
    def readout_form(self) -> ColumnForm:
        """The squared length of a change of them."""
        ...


class _Given(NamedTuple):
    """Matrices that were checked."""

    covariance: Floats
    readout_form: ColumnForm


@dataclass(frozen=True, eq=False)
class ExplainedVariance(Objective):
    """Sum over blocks of the variance of the dense output that a closed-form refit of the output projection
    on the kept units explains.

    For one block with head outputs ``z`` (covariance ``C``), dense output ``W z`` and kept columns
    ``S`` the explained variance is ``tr((C + r I)_SS^-1 (C W'W C)_SS)``, where ``r`` is the ridge:
    the regularised least-squares fit of ``W z`` on ``z_S``. Subset selection for least squares is
    monotone and weakly submodular (Das and Kempe 2011, "Submodular meets spectral"), *not*
    submodular. As layer-wise reconstruction it follows OSSCAR (Meng et al. 2024). It is a sum over
    blocks, so :class:`~cahp_opt.solvers.DynamicProgram` is exact for it.

    Made from statistics it holds nothing beside them: the matrices of a block are made when they are needed, and
    those of few blocks are kept. A tracker holds those of all blocks.

    Args:
        covariance: for every block the covariance ``C`` of its head outputs, ``[d, d]``; ``d`` is a
            multiple of the block's units, and unit ``u`` owns the ``u``-th share of the columns.
        readout: for every block ``W'W``, ``[d, d]``, or the same as a
            :class:`~cahp_opt.stats.column_form.ColumnForm`.
        units: the number of units of every block.
        ridge: added to the diagonal, as a share of its mean; above 0.
        weights: how much each block counts, ``[blocks]``; None for 1 each.

    Raises:
        ValueError: for NaN, infinity, wrong shapes, a matrix that is not a covariance, or a bad
            ridge.
    """

    outputs: tuple[ReadOutputs, ...]
    units: tuple[int, ...]
    ridge: float
    weights: Floats

    def __init__(
        self,
        covariance: Sequence[npt.ArrayLike],
        readout: Sequence[npt.ArrayLike | ColumnForm],
        units: Sequence[int],
        *,
        ridge: float = 1e-2,
        weights: npt.ArrayLike | None = None,
    ) -> None:
        if not len(covariance) == len(readout) == len(units) or not units:
            raise ValueError(
                "`covariance`, `readout` and `units` must have one entry per block, got "
                f"{len(covariance)}, {len(readout)} and {len(units)}."
            )
        matrices = zip(covariance, readout, units, strict=True)
        checked = (_checked(c, form, b, u) for b, (c, form, u) in enumerate(matrices))
        self._set(checked, units, ridge, weights)

    def _set(
        self,
        outputs: Iterable[ReadOutputs],
        units: Sequence[int],
        ridge: float,
        weights: npt.ArrayLike | None,
    ) -> None:
        if not (np.isfinite(ridge) and ridge > 0):
            raise ValueError(f"`ridge` must be a finite number above 0, got {ridge}.")
        chosen = finite(np.ones(len(units)) if weights is None else weights, "weights")
        if chosen.shape != (len(units),) or np.any(chosen < 0):
            raise ValueError(f"`weights` must be {len(units)} numbers of at least 0, got {chosen}.")
        for name, value in {
            "outputs": tuple(outputs),
            "units": tuple(int(u) for u in units),
            "ridge": float(ridge),
            "weights": chosen,
        }.items():
            object.__setattr__(self, name, value)

    @staticmethod
    def _of(
        outputs: Sequence[ReadOutputs],
        space: HeadSpace,
        ridge: float,
        weights: npt.ArrayLike | None,
    ) -> ExplainedVariance:
        """The objective of statistics, whose matrices are checked and not kept."""
        units = [block.units for block in space.blocks]
        for b, (of_block, count) in enumerate(zip(outputs, units, strict=True)):
            _checked(of_block.covariance, of_block.readout_form, b, count)
        found = ExplainedVariance.__new__(ExplainedVariance)
        found._set(outputs, units, ridge, weights)
        return found

    @staticmethod
    @needs("moments")
    def from_stats(
        stats: HeadStats, *, ridge: float = 1e-2, relative: bool = False
    ) -> ExplainedVariance:
        """From the second moments of the head outputs that calibration measured.

        Args:
            stats: calibration statistics with moments.
            ridge: as in the class; use that of the refit.
            relative: count every block's explained variance as a share of its own total.

        Raises:
            ValueError: if the moments were not measured.
        """
        moments, weights = stats.needed_moments, None
        if relative:
            totals = [m.form.trace(m.covariance) for m in moments]
            weights = np.array([1 / t if t > 0 else 0.0 for t in totals])
        return ExplainedVariance._of(moments, stats.space, ridge, weights)

    @staticmethod
    @needs("sensitivity")
    def from_sensitivity(stats: HeadStats, *, ridge: float = 1e-2) -> ExplainedVariance:
        """The same, weighted by the effect on the model's output: in the unit of the output's
        distance (nats for probabilities), so that blocks compare.

        Tokens count by the output's squared gradient there (in a classifier that reads one token,
        no other token counts in the last block), and a block's squared error is taken in the metric
        of that gradient. That is the layer-wise reconstruction above with the Kronecker-factored
        Gauss-Newton matrix of the output (Martens and Grosse 2015) in place of the identity.

        Args:
            stats: calibration statistics with ``sensitivity``.
            ridge: as in the class.

        Raises:
            ValueError: if the sensitivity was not measured.
        """
        if not stats.sensitivity:
            raise ValueError("`stats` has no sensitivity; calibrate with `sensitivity_examples`.")
        weights = [s.cost for s in stats.sensitivity]
        return ExplainedVariance._of(stats.sensitivity, stats.space, ridge, weights)

    @staticmethod
    def example(space: HeadSpace) -> ExplainedVariance:
        """Units whose outputs explain nothing of one another; for trying a solver before anything is
        measured."""
        units = [block.units for block in space.blocks]
        unrelated = [np.eye(u) for u in units]
        return ExplainedVariance(unrelated, unrelated, units)

    @property
    def n(self) -> int:
        return sum(self.units)

    @property
    def whole(self) -> float:
        """The variance of all dense outputs, weighted: what there is to explain. The ridge keeps even the
        whole set of units a little below it."""
        return self._whole

    @property
    def monotone(self) -> bool:
        return True

    @property
    def covariance(self) -> tuple[Floats, ...]:
        """For every block ``C``, ``[d, d]``, all of them made anew."""
        return tuple(self._matrices(b).covariance for b in range(len(self.units)))

    @property
    def readout(self) -> tuple[Floats, ...]:
        """For every block ``W'W``, ``[d, d]``, all of them made anew."""
        return tuple(self._matrices(b).readout_form.matrix for b in range(len(self.units)))

    def equations(self, block: int) -> Equations:
        """The Gram matrix of one block with its ridge, and the target."""
        return self._recent.get(block, self._sizes[block], self._equations)

    def factor(self, block: int) -> Floats:
        """``H`` with ``H' H`` the target of one block, ``[rows, d]``."""
        _, target, small = self.equations(block)
        if small:
            return target
        covariance, form = self._matrices(block)
        through: Floats = form.factor @ covariance
        return through

    def _equations(self, block: int) -> Equations:
        c, form = self._matrices(block)
        mean = float(np.mean(np.diagonal(c)))
        # A block without any variance explains nothing; any ridge keeps its equations solvable.
        gram = c.copy()
        gram[np.diag_indices(len(c))] += self.ridge * mean if mean > 0 else 1.0
        small = _rows(form) < len(c)
        return Equations(gram, form.factor @ c if small else c @ form.matrix @ c, small)

    def _matrices(self, block: int) -> _Given:
        """The matrices of one block, which were checked before."""
        outputs = self.outputs[block]
        form = outputs.readout_form
        inner = None if form.inner is None else _symmetric(form.inner)
        form = form if inner is form.inner else ColumnForm(inner, form.projection)
        return _Given(_symmetric(outputs.covariance), form)

    def value(self, kept: Bools) -> float:
        total, start = 0.0, 0
        for block, (units, weight) in enumerate(zip(self.units, self.weights, strict=True)):
            total += weight * self._explained(block, kept[start : start + units])
            start += units
        return total

    def _explained(self, block: int, kept: Bools) -> float:
        """What some units of a block explain, bool ``[units]``.

        That of all of them is remembered, and of those asked for last: an answer is asked for again by whoever
        checks it, and another budget changes few of its blocks.
        """
        known, units = self._known[block], kept.tobytes()
        if units not in known:
            equations = self.equations(block)
            columns = np.repeat(kept, len(equations.gram) // len(kept))
            found = equations.of(columns).explained if columns.any() else 0.0
            every = _every(len(kept))
            known = {key: value for key, value in known.items() if key == every} | {units: found}
            self._known[block] = known
        return known[units]

    def tracker(self, kept: Bools) -> ExplainedVarianceTracker:
        return ExplainedVarianceTracker(self, kept)

    def separable(self, space: HeadSpace) -> tuple[BestSubsets, ...]:
        """Best subsets of every block.

        Over all of its subsets if these are few, or few of them can be the best. Groups of neurons may be
        more, and wider, than that: then their order decides, whose first groups are nearly always the best
        of their number, and the tables bound the value of all others.

        Raises:
            ValueError: if a block of attention has more than 16 units, or the space has other blocks.
        """
        if tuple(block.units for block in space.blocks) != self.units:
            raise ValueError(
                f"the objective's blocks have {list(self.units)} units, and the budget's "
                f"{space.units.tolist()}; both must describe the same model."
            )
        for block in space.blocks:
            if block.unit.of_attention:
                check_enumerable(block.name, block.units)
        return tuple(
            self._best_subsets(b, bool(heads)) for b, heads in enumerate(space.of_attention)
        )

    def _best_subsets(self, block: int, heads: bool) -> BestSubsets:
        """The best subsets of one block, of heads or of groups of neurons; made once."""
        known = self._tables.get((block, heads))
        if known is not None:
            return known
        units, weight = self.units[block], float(self.weights[block])
        equations = self.equations(block)
        gram, target, _ = equations
        if heads or is_cheaper_whole(len(target), len(gram) // units, units):
            values = _subset_values(equations, units)
            found = best_by_count(units, weight * values)
        else:
            best = group_subsets(gram, self.factor(block), units, _of_matrices)
            values, found = best.values, best.times(weight)
        self._known[block].setdefault(_every(units), float(values[-1]))
        self._tables[block, heads] = found
        return found

    @cached_property
    def _whole(self) -> float:
        matrices = (self._matrices(block) for block in range(len(self.units)))
        return float(self.weights @ np.array([form.trace(c) for c, form in matrices]))

    @cached_property
    def _sizes(self) -> list[int]:
        """The bytes of the equations of every block."""
        forms = (outputs.readout_form for outputs in self.outputs)
        return [8 * form.width * (form.width + min(form.width, _rows(form))) for form in forms]

    @cached_property
    def _recent(self) -> Recent[Equations]:
        return Recent(_KEPT_BYTES)

    @cached_property
    def _known(self) -> list[dict[bytes, float]]:
        return [{} for _ in self.units]

    @cached_property
    def _tables(self) -> dict[tuple[int, bool], BestSubsets]:
        return {}


class Equations(NamedTuple):
    """The least-squares problem of one block, or of what is left of it.

    Args:
        gram: ``C + r I``, ``[d, d]``.
        target: ``C W'W C``, ``[d, d]``; or ``H`` with ``H' H`` the same, ``[rows, d]``, where that has fewer
            rows.
        small: whether it is ``H``.
    """

    gram: Floats
    target: Floats
    small: bool

    def of(self, columns: Bools | Ints) -> Equations:
        """The problem of some columns alone, bool ``[d]`` or int ``[m]``."""
        both = np.ix_(columns, columns)
        target = self.target[:, columns] if self.small else self.target[both]
        return Equations(self.gram[both], target, self.small)

    @property
    def explained(self) -> float:
        """The variance that all columns explain."""
        if not self.small:
            return float(np.trace(np.linalg.solve(self.gram, self.target)))
        return definite_form(self.gram, self.target)

    def without(self, pivots: int) -> tuple[Equations, float]:
        """Conditioned on the first columns, and the variance that these explain."""
        if not self.small:
            left = eliminate(self.gram[None], self.target[None], pivots)
            return Equations(left[0][0], left[1][0], False), float(left[2][0])
        first, rest = self.target[:, :pivots], self.target[:, pivots:]
        above = self.gram[:pivots, pivots:]
        solved = np.linalg.solve(
            self.gram[:pivots, :pivots], np.concatenate([first.T, above], axis=1)
        )
        rows = len(first)
        x = solved[:, rows:]
        gram = self.gram[pivots:, pivots:] - x.T @ above
        explained = float(np.vdot(solved[:, :rows], first.T))
        return Equations(gram, rest - first @ x, True), explained

    def traces(self, units: npt.NDArray[np.intp], width: int) -> Floats:
        """``tr(gram_uu^-1 target_uu)``, ``[m]``, for these units ``u``, ``[m]``, of this width."""
        if not self.small:
            return _traces(self.gram, self.target, units, width)
        parts = (self.of(_columns([int(u)], width)) for u in units)
        return np.array([part.explained for part in parts])


class _State(NamedTuple):
    """The state of a block before a unit was added."""

    added: int
    left: Equations
    value: float
    gains: Floats | None


class ExplainedVarianceTracker:
    """Follows the explained variance by block elimination (Schur complements), never from data.

    For every block it holds the Gram and target matrices conditioned on the kept units, so that
    adding a unit is one elimination of its columns. Taking back the latest additions of a block, as
    solvers that look ahead do, restores the earlier matrices; removing another unit starts the
    block over.
    """

    def __init__(self, objective: ExplainedVariance, kept: Bools) -> None:
        self.kept: Bools = np.array(kept, dtype=np.bool_)
        self._weights = objective.weights
        self._units = objective.units
        self._equations = [objective.equations(b) for b in range(len(self._units))]
        ends = np.cumsum(objective.units)
        self._slices = [
            slice(int(e) - u, int(e)) for e, u in zip(ends, objective.units, strict=True)
        ]
        self._block_of = np.repeat(np.arange(len(objective.units)), objective.units)
        self._left: list[Equations] = list(self._equations)
        self._values = np.zeros(len(self._units))
        self._gains: list[Floats | None] = [None] * len(self._units)
        self._before: list[list[_State]] = [[] for _ in self._units]
        for block in range(len(self._units)):
            self._restart(block)

    @property
    def value(self) -> float:
        return float(self._weights @ self._values)

    def gain(self, unit: int) -> float:
        block = int(self._block_of[unit])
        return float(self._block_gains(block)[unit - self._slices[block].start])

    def gains(self, units: Ints | None = None) -> Floats:
        if units is not None:
            return np.array([self.gain(unit) for unit in units.tolist()], dtype=np.float64)
        return np.concatenate([self._block_gains(b) for b in range(len(self._units))])

    def add(self, unit: int) -> None:
        self.kept[unit] = True
        block = int(self._block_of[unit])
        state = _State(unit, self._left[block], float(self._values[block]), self._gains[block])
        undo = _UNDO if len(state.left.gram) <= _WIDE else 1
        before = [*self._before[block], state]
        self._before[block] = before[-undo:]
        self._condition(block, [unit - self._slices[block].start])

    def remove(self, unit: int) -> None:
        self.kept[unit] = False
        block = int(self._block_of[unit])
        before = self._before[block]
        if before and before[-1].added == unit:
            _, self._left[block], self._values[block], self._gains[block] = before.pop()
        else:
            self._restart(block)

    def _restart(self, block: int) -> None:
        self._before[block] = []
        self._left[block], self._values[block] = self._equations[block], 0.0
        self._condition(block, [int(u) for u in np.flatnonzero(self.kept[self._slices[block]])])

    def _condition(self, block: int, units: list[int]) -> None:
        self._gains[block] = None
        if not units:
            return
        left = self._left[block]
        columns = _columns(units, len(left.gram) // self._units[block])
        # Pivots in front and once more in their place, where elimination leaves zeros.
        order = np.concatenate([columns, np.arange(len(left.gram))])
        self._left[block], explained = left.of(order).without(len(columns))
        self._values[block] += explained

    def _block_gains(self, block: int) -> Floats:
        known = self._gains[block]
        if known is not None:
            return known
        units, kept = self._units[block], self.kept[self._slices[block]]
        gains = np.zeros(units)
        inside, outside = np.flatnonzero(kept), np.flatnonzero(~kept)
        width = len(self._equations[block].gram) // units
        if outside.size:
            gains[outside] = self._left[block].traces(outside, width)
        if inside.size:
            # Dropping columns u of a fit costs tr(Q_uu^-1 (Q A Q)_uu) with Q the inverse Gram matrix.
            gram, target, small = self._equations[block].of(_columns(inside, width))
            inverse = np.linalg.inv(gram).astype(np.float64)
            fitted: Floats = target @ inverse if small else inverse @ target @ inverse
            dropped = Equations(inverse, fitted, small).traces(np.arange(inside.size), width)
            gains[inside] = -dropped
        result: Floats = self._weights[block] * gains
        self._gains[block] = result
        return result


def eliminate(gram: Floats, target: Floats, pivots: int) -> tuple[Floats, Floats, Floats]:
    """Condition on the first columns: the Schur complements and the variance explained.

    Args:
        gram: ``[batch, d, d]``, positive definite on the pivots.
        target: ``[batch, d, d]``.
        pivots: the number of columns to condition on.

    Returns:
        The Schur complements ``[batch, d - pivots, d - pivots]`` of ``gram`` and of ``target``, and the
        explained variance ``[batch]``.
    """
    beside, inside = target[:, :pivots, pivots:], target[:, :pivots, :pivots]
    above = gram[:, :pivots, pivots:]
    # With the inverse of the pivot P and X = P^-1 K_pr: NumPy solves many small equations in twice the time.
    inverse = np.linalg.inv(gram[:, :pivots, :pivots])
    explained: Floats = (inverse * inside).sum(axis=(1, 2))  # both are symmetric
    x = inverse @ above
    xt = x.swapaxes(1, 2)
    # A_rr - X'A_pr - A_rp X + X'A_pp X, as one product and its transpose.
    cross = xt @ (beside - 0.5 * (inside @ x))
    left = target[:, pivots:, pivots:] - cross
    left -= cross.swapaxes(1, 2)
    return gram[:, pivots:, pivots:] - xt @ above, left, explained


def _of_matrices(gram: Floats, target: Floats, units: int) -> Floats:
    return _subset_values(Equations(gram, target, False), units)


def _subset_values(equations: Equations, units: int) -> Floats:
    """The explained variance of every subset of one block, by code, ``[2^units]``.

    One binary decision per unit: each half-decided subset carries the matrices of the undecided
    units conditioned on the kept ones, so the matrices shrink as the subsets multiply. Subsets are
    decided in batches that stay in the cache.
    """
    width = len(equations.gram) // units
    values = np.zeros(1 << units)

    def decide(
        unit: int, codes: npt.NDArray[np.int64], so_far: Floats, g: Floats, t: Floats
    ) -> None:
        if unit == units:
            values[codes] = so_far
            return
        left_g, left_t, explained = eliminate(g, t, width)
        out_g, out_t = g[:, width:, width:], t[:, width:, width:]
        with_unit, reached = codes | (1 << unit), so_far + explained
        if left_g.nbytes > _BATCH_BYTES:
            decide(unit + 1, codes, so_far, out_g, out_t)
            decide(unit + 1, with_unit, reached, left_g, left_t)
        else:
            decide(
                unit + 1,
                np.concatenate([codes, with_unit]),
                np.concatenate([so_far, reached]),
                np.concatenate([out_g, left_g]),
                np.concatenate([out_t, left_t]),
            )

    def wide(unit: int, code: int, so_far: float, left: Equations) -> None:
        """The same with the target as its factor, until that has as many rows as there are columns."""
        if not left.small or len(left.target) >= len(left.gram):
            gram, target, small = left
            whole = target.T @ target if small else target
            decide(unit, np.array([code]), np.array([so_far]), gram[None], whole[None])
            return
        with_unit, explained = left.without(width)
        wide(unit + 1, code, so_far, left.of(np.arange(width, len(left.gram))))
        wide(unit + 1, code | (1 << unit), so_far + explained, with_unit)

    wide(0, 0, 0.0, equations)
    return values


def _traces(gram: Floats, target: Floats, units: npt.NDArray[np.intp], width: int) -> Floats:
    """``tr(gram_uu^-1 target_uu)`` for each unit ``u``."""
    place = units[:, None] * width + np.arange(width)
    index = (place[:, :, None], place[:, None, :])
    result: Floats = np.trace(np.linalg.solve(gram[index], target[index]), axis1=1, axis2=2)
    return result


def _columns(units: Sequence[int] | npt.NDArray[np.intp], width: int) -> npt.NDArray[np.int64]:
    return (np.asarray(units, dtype=np.int64)[:, None] * width + np.arange(width)).reshape(-1)


def _every(units: int) -> bytes:
    return np.ones(units, dtype=np.bool_).tobytes()


def _rows(form: ColumnForm) -> int:
    """The rows of its factor."""
    return form.width if form.projection is None else len(form.projection)


def _checked(
    covariance: npt.ArrayLike, readout: npt.ArrayLike | ColumnForm, block: int, units: int
) -> _Given:
    """The matrices of one block, if they can be those of its outputs.

    Raises:
        ValueError: naming the argument.
    """
    left = _semidefinite(covariance, f"covariance[{block}]", units)
    right = _semidefinite_form(readout, f"readout[{block}]", units)
    if len(left) != right.width:
        raise ValueError(
            f"block {block} has a covariance of shape {list(left.shape)} and a readout of shape "
            f"{[right.width] * 2}; they must be equal."
        )
    return _Given(left, right)


def _semidefinite_form(given: npt.ArrayLike | ColumnForm, argument: str, units: int) -> ColumnForm:
    if not isinstance(given, ColumnForm):
        return ColumnForm(_semidefinite(given, argument, units))
    if given.inner is None:
        return given
    own = units if given.projection is None else 1
    return ColumnForm(_semidefinite(given.inner, argument, own), given.projection)


def _semidefinite(matrix: npt.ArrayLike, argument: str, units: int) -> Floats:
    array = finite(matrix, argument)
    d = len(array)
    if array.shape != (d, d) or not d or units < 1 or d % units:
        raise ValueError(
            f"`{argument}` must be square with a multiple of the block's {units} units as its size, "
            f"got {list(array.shape)}."
        )
    scale = float(np.abs(array).max())
    if not np.array_equal(array, array.T):
        if not np.allclose(array, array.T, rtol=0, atol=1e-6 * scale):
            raise ValueError(f"`{argument}` must be symmetric, as second moments are.")
        array = _symmetric(array)
    # Single precision rounds by far less than what is added.
    tried = (array / max(scale, 1e-300)).astype(np.float32)
    tried[np.diag_indices(d)] += np.float32(1e-6 * d)
    try:
        np.linalg.cholesky(tried)
    except np.linalg.LinAlgError:
        raise ValueError(
            f"`{argument}` has a negative eigenvalue, which second moments cannot: rounding "
            "may have spoilt them, as in statistics of earlier releases; calibrate again."
        ) from None
    return array


def _symmetric(array: Floats) -> Floats:
    """A matrix ``[d, d]`` that is symmetric but for rounding, to the last bit."""
    return array if np.array_equal(array, array.T) else constant((array + array.T) / 2)
