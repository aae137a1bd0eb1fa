"""Goals as the user states them: a time, or an amount of a resource."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import fsum

from cahp_opt.arrays import is_whole
from cahp_opt.costs.checks import Check
from cahp_opt.costs.cost_table import CostTable
from cahp_opt.costs.count_table import CountTable
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.provenance import Phase
from cahp_opt.costs.quantities import (
    QUANTITIES,
    RESOURCES,
    SHORTHANDS,
    Quantity,
    resource_of,
    unit_of_measure,
)

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NAME = r"[a-z][a-z0-9_-]*"
_TERM = re.compile(rf"\s*(?:({_NUMBER})\s*\*\s*)?({_NAME})\s*")
_AMOUNT = re.compile(rf"\s*({_NUMBER})\s*([A-Za-z]*)\s*")

_MOST = 2**53  # up to here floating-point numbers count exactly


@dataclass(frozen=True)
class LatencyGoal:
    """A latency to reach: a share of the unpruned end-to-end time, or seconds.

    Args:
        terms: how often each workload runs, as ``(workload, runs)``; the same workload twice adds up.
            Empty for the only workload there is, once; or for ``prefill`` if there are several.
        ratio: the largest share of the unpruned time; None if ``seconds`` are given.
        seconds: the longest time; None if a ``ratio`` is given.

    Raises:
        ValueError: unless exactly one of ``ratio`` and ``seconds`` is given, both it and the runs are
            finite and above 0, and the workloads have names such as ``decode``.
    """

    terms: tuple[tuple[str, float], ...] = ()
    ratio: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.seconds is None):
            raise ValueError("a latency goal takes either `ratio` or `seconds`, and not both.")
        for argument in ("ratio", "seconds"):
            given = getattr(self, argument)
            if given is not None:
                object.__setattr__(self, argument, _above_zero(f"`{argument}`", given))
        runs: dict[str, float] = {}
        for workload, times in self.terms:
            if not re.fullmatch(_NAME, workload):
                raise ValueError(
                    "a workload is named by small letters, digits, '-' and '_', a letter first, got "
                    f"{workload!r}."
                )
            times = _above_zero("the runs of a workload", times)
            runs[workload] = _above_zero("the runs of a workload", runs.get(workload, 0.0) + times)
        object.__setattr__(self, "terms", tuple(runs.items()))

    @staticmethod
    def parse(text: str) -> LatencyGoal:
        """The goal that a text such as ``0.8``, ``12.5ms`` or ``prefill+200*decode=0.8`` states.

        Left of an equals sign stand workloads, with the number of times that they run, joined by plus
        signs. On the right is a ratio of the unpruned time, or a time in ``ms`` or ``s``.

        Raises:
            ValueError: for anything else.
        """
        left, equals, right = text.rpartition("=")
        found = re.fullmatch(rf"\s*({_NUMBER})\s*(ms|s|)\s*", right)
        terms = _terms(left) if equals else ()
        number = float(found[1]) if found else math.nan
        if found is None or terms is None or not (math.isfinite(number) and number > 0):
            raise ValueError(
                "`--latency` must be a ratio of the unpruned time such as 0.8, or a time such as 12.5ms "
                "or 0.0125s, above 0, maybe after workloads as in decode=12ms or "
                f"prefill+200*decode=0.8, got {text!r}."
            )
        if not found[2]:
            return LatencyGoal(terms, ratio=number)
        return LatencyGoal(terms, seconds=number / 1000 if found[2] == "ms" else number)

    def __str__(self) -> str:
        amount = _plain(self.ratio) if self.ratio is not None else f"{_plain(self.seconds or 0)}s"
        return f"{self.workload}={amount}" if self.terms else amount

    @property
    def option(self) -> str:
        """The option of the command line that states it, with its text."""
        return f"--latency {self}"

    @property
    def workload(self) -> str:
        """The left side of the text, such as ``prefill+200*decode``; empty without terms."""
        return "+".join(
            name if runs == 1 else f"{_plain(runs)}*{name}" for name, runs in self.terms
        )

    @property
    def name(self) -> str:
        """The name of its table in a budget."""
        return f"latency of {self.workload}" if self.terms else "latency"

    def runs(self, available: Iterable[str]) -> dict[str, float]:
        """How often each workload runs, by name.

        Args:
            available: the known workloads.

        Raises:
            ValueError: if it names an unknown one, or none although there are several and none of
                them is ``prefill``.
        """
        there = list(available)
        if not there:
            raise ValueError(f"`{self.option}` needs a latency table, and there is none.")
        if not self.terms:
            if len(there) > 1 and Phase.PREFILL.value in there:
                return {Phase.PREFILL.value: 1.0}
            if len(there) > 1:
                raise ValueError(
                    f"`{self.option}` does not say which workload it is about, and there are {there}; "
                    f"write it as in {there[0]}={self}."
                )
            return {there[0]: 1.0}
        missing = [name for name, _ in self.terms if name not in there]
        if missing:
            raise ValueError(
                f"`{self.option}` is about the workload {missing[0]!r}, and there are {there}; measure "
                "it too, or name another."
            )
        return dict(self.terms)

    def measured(self, profile: Profile) -> dict[str, CostTable]:
        """The measured tables of a profile that it is about, by name: those of its workloads.

        Raises:
            ValueError: as :meth:`runs`.
        """
        return {name: profile.latency[name] for name in self.runs(profile.latency)}

    def about(self, names: Iterable[str]) -> set[str]:
        """Which of these names of measured tables it is about; those of workloads hold no blank.

        Raises:
            ValueError: as :meth:`runs`.
        """
        return set(self.runs(name for name in names if " " not in name))

    def cost(self, seconds: Mapping[str, float]) -> float:
        """The time it is about.

        Args:
            seconds: of one run of every workload, by name.

        Raises:
            ValueError: as :meth:`runs`.
        """
        return fsum(times * seconds[name] for name, times in self.runs(seconds).items())

    def limit(self, dense: Mapping[str, float]) -> float:
        """The longest time it allows, in seconds.

        Args:
            dense: seconds of one run of every workload of the unpruned model, by name.

        Raises:
            ValueError: as :meth:`runs`.
        """
        if self.ratio is None:
            return self.seconds or 0.0
        return self.cost(dense) if self.ratio == 1 else self.ratio * self.cost(dense)

    def table(self, profile: Profile) -> CountTable:
        """The cost of counts with its limit, for a budget.

        Raises:
            ValueError: if the profile lacks a workload.
        """
        tables, runs = self.measured(profile), self.runs(profile.latency)
        limit = self.limit({name: table.dense for name, table in tables.items()})
        if list(runs.values()) == [1.0]:
            (whole,) = tables.values()
        else:
            whole = CostTable.mix([(runs[name], table) for name, table in tables.items()])
            if self.ratio is not None and self.ratio >= 1:
                limit = max(limit, whole.dense)  # a mix may predict a little too much
        return whole.within(limit, self.name)


@dataclass(frozen=True)
class ResourceGoal:
    """A limit on a resource: a share of the unpruned model's, or an amount in its unit.

    Args:
        name: of the resource in a profile: ``parameters``, ``memory`` or ``kv_cache``, or another of
            :data:`~cahp_opt.costs.quantities.RESOURCES`, of a workload as in ``NAME of prefill``.
        ratio: the largest share, above 0 and at most 1; None if an ``amount`` is given.
        amount: the largest amount in the resource's unit; of weights and bytes a whole number above 1 and
            at most 2^53. None if a ``ratio`` is given.

    Raises:
        ValueError: for another name or number, or unless exactly one of the two is given.
    """

    name: str
    ratio: float | None = None
    amount: float | None = None

    def __post_init__(self) -> None:
        if not self.is_name(self.name):
            raise ValueError(
                f"`name` of a resource must be one of {_resources()}, got {self.name!r}."
            )
        if (self.ratio is None) == (self.amount is None):
            raise ValueError("a resource goal takes either `ratio` or `amount`, and not both.")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"`ratio` must be above 0 and at most 1, got {self.ratio}.")
        amount = self.amount
        if amount is None:
            return
        if not self.quantity.counted:
            object.__setattr__(self, "amount", _above_zero("`amount`", amount))
        elif not (is_whole(amount) and 1 < amount <= _MOST):
            raise ValueError(
                f"`amount` must be a whole number above 1 and at most 2^53, got {amount!r}."
            )

    @staticmethod
    def is_name(name: str) -> bool:
        """Whether there is such a resource; of a measured one, of a workload."""
        found, workload = RESOURCES.get(resource_of(name)), name.partition(" of ")[2]
        if found is None or not found.meter:
            return found is not None and not workload
        return re.fullmatch(_NAME, workload) is not None

    @property
    def quantity(self) -> Quantity:
        """The unit it is counted in."""
        return QUANTITIES[unit_of_measure(self.name)]

    @staticmethod
    def parse(name: str, text: str) -> ResourceGoal:
        """The goal that a text such as ``0.5`` or ``1.5GiB`` states about a resource.

        A number of at most 1 is a ratio of the unpruned model. Bytes have one of the suffixes ``B``,
        ``kB``, ``MB``, ``GB``, ``TB`` (powers of 1000) and ``KiB``, ``MiB``, ``GiB``, ``TiB`` (powers of
        1024). Weights have ``k``, ``M``, ``B`` (10^9) or ``T``, or are a whole number above 1. A
        fraction of a byte or weight is dropped. Measured resources have the suffixes of
        :data:`~cahp_opt.costs.quantities.QUANTITIES`.

        Raises:
            ValueError: for anything else.
        """
        whole = ResourceGoal(name, ratio=1.0)  # refuses the name
        quantity = whole.quantity
        found = _AMOUNT.fullmatch(text)
        number, suffix = (float(found[1]), found[2]) if found else (math.nan, "")
        if not suffix and 0 < number <= 1:
            return ResourceGoal(name, ratio=number)
        factor = quantity.suffixes.get(suffix)
        if not suffix and quantity.bare and number.is_integer():
            factor = 1
        if found and factor is not None and not quantity.counted:
            if 0 < number * factor < math.inf:
                return ResourceGoal(name, amount=number * factor)
        elif found and factor is not None and 1.5 < number * factor <= _MOST:
            amount = int(Decimal(found[1]) * int(factor))
            if amount > 1:
                return ResourceGoal(name, amount=amount)
        raise ValueError(
            f"`{whole.flag}` must be a ratio of the unpruned model above 0 and at most 1, "
            f"such as 0.5, or an amount such as {quantity.examples} (suffixes: "
            f"{', '.join(quantity.suffixes)}), got {text!r}."
        )

    def __str__(self) -> str:
        if self.ratio is not None:
            return _plain(self.ratio)
        return f"{_plain(self.amount or 0)}{self.quantity.base}"

    @property
    def flag(self) -> str:
        """The option of the command line that states it."""
        shorthand = self.name in SHORTHANDS
        return f"--{self.name.replace('_', '-')}" if shorthand else f"--limit {self.name}"

    @property
    def option(self) -> str:
        """The option with its text."""
        return f"{self.flag}{' ' if self.name in SHORTHANDS else '='}{self}"

    def measured(self, profile: Profile) -> dict[str, CostTable]:
        """Its table in a profile, by name, if that was measured."""
        found = profile.resources.get(self.name)
        return {self.name: found} if found is not None and found.measured else {}

    def about(self, names: Iterable[str]) -> set[str]:
        """Its own name, if that is one of these names of measured tables."""
        return {self.name} & set(names)

    def cost(self, amounts: Mapping[str, float]) -> float:
        """The amount it is about, out of amounts by name."""
        return amounts[self.name]

    def limit(self, dense: Mapping[str, float]) -> float:
        """The largest amount it allows.

        Args:
            dense: the amounts of the unpruned model, by name.
        """
        return self.ratio * self.cost(dense) if self.ratio is not None else float(self.amount or 0)

    def table(self, profile: Profile) -> CountTable:
        """The cost of counts with its limit, for a budget.

        Raises:
            ValueError: if the profile lacks the resource.
        """
        found = profile.resources.get(self.name)
        if found is None:
            raise ValueError(
                f"`{self.option}` needs a profile that counts {self.name!r}, and "
                f"there are {list(profile.resources) or 'no resources'}; write one with `cahp latency`."
            )
        return found.within(self.limit({self.name: found.dense}), self.name)


Goal = LatencyGoal | ResourceGoal


def checked(goal: Goal, found: Mapping[str, Check]) -> Check:
    """The measured cost of a goal, checked against its limit.

    Args:
        goal: the goal.
        found: by name, what was measured of the tables that it is about, and of no others.
    """

    def total(fact: str) -> float | None:
        amounts = {name: getattr(one, fact) for name, one in found.items()}
        return None if None in amounts.values() else goal.cost(amounts)

    dense = {name: one.dense_measured for name, one in found.items()}
    return Check(
        predicted=total("predicted"),
        measured=goal.cost({name: one.measured for name, one in found.items()}),
        dense_predicted=total("dense_predicted"),
        dense_measured=goal.cost(dense),
        spread=max(one.spread for one in found.values()),
        limit=goal.limit(dense),
    )


def asked_latency(text: str) -> LatencyGoal:
    """The latency goal that somebody asks for: as :meth:`LatencyGoal.parse`, but a limit.

    Raises:
        ValueError: for anything else, and for a ratio above 1, which a forgotten unit looks like.
    """
    goal = LatencyGoal.parse(text)
    if goal.ratio is not None and goal.ratio > 1:
        left = f"{goal.workload}=" if goal.terms else ""
        number = _plain(goal.ratio)
        raise ValueError(
            f"`{goal.option}` is a ratio above 1, which would allow more than the unpruned time; for a "
            f"time give the unit too, as in {left}{number}ms or {left}{number}s; a ratio is at most 1."
        )
    return goal


def asked_limit(text: str) -> Goal:
    """The goal that a text such as ``memory=0.9``, ``latency of decode=12ms`` or ``NAME of prefill=0.8``
    asks for.

    Raises:
        ValueError: for anything else.
    """
    name, equals, amount = (part.strip() for part in text.rpartition("="))
    kind, _, workload = name.partition(" of ")
    if not equals or (kind != "latency" and not ResourceGoal.is_name(name)):
        raise ValueError(
            f"`--limit` must be NAME=AMOUNT with one of the names {['latency', *_resources()]}, such as "
            f"memory=0.9, got {text!r}."
        )
    if kind == "latency":
        return asked_latency(f"{workload}={amount}" if workload else amount)
    return ResourceGoal.parse(name, amount)


def _resources() -> list[str]:
    return [f"{name} of WORKLOAD" if r.meter else name for name, r in RESOURCES.items()]


def goal_of(name: str, text: str) -> Goal:
    """The goal that a text states about ``latency`` or a resource.

    Raises:
        ValueError: if it states none.
    """
    return LatencyGoal.parse(text) if name == "latency" else ResourceGoal.parse(name, text)


def _terms(text: str) -> tuple[tuple[str, float], ...] | None:
    """``prefill+200*decode`` as pairs; None if it is not of that form."""
    terms, place = list[tuple[str, float]](), 0
    while True:
        found = _TERM.match(text, place)
        runs = float(found[1] or 1) if found else 0.0
        if found is None or not (math.isfinite(runs) and runs > 0):
            return None
        terms.append((found[2], runs))
        place = found.end()
        if place == len(text):
            return tuple(terms)
        if text[place] != "+":
            return None
        place += 1


def _above_zero(what: str, number: float) -> float:
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{what} must be a finite number above 0, got {number}.")
    return float(number)


def _plain(number: float) -> str:
    """The shortest text that is read as the same number."""
    return repr(float(number)).removesuffix(".0")
