"""The laws of methods, each stated once, and the check of a method against all of them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cahp_opt.costs.budget import Budget
from cahp_opt.costs.prune import Prune
from cahp_opt.runs.method import Method, Needs, Task
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import Chooser, Selection
from cahp_opt.space import HeadSpace
from cahp_opt.stats.registry import STATISTICS
from cahp_opt.testing.answers import CLOSE
from cahp_opt.testing.broken_law import BrokenLaw, found_on, require
from cahp_opt.testing.instances import BUDGETS, BudgetMaker
from cahp_opt.testing.method_trials import TRIALS, MethodTrial
from cahp_opt.testing.options import check_options
from cahp_opt.testing.relabelling import reordered
from cahp_opt.testing.statistics import OF_LABELS
from cahp_opt.testing.within_budget import check_costs, check_within


class MethodCheck(NamedTuple):
    """What a method did where it was tried."""

    answered: int
    """The budgets that it chose within."""
    refused: int
    """The trials that it refused with a sentence."""


def check_method(
    method: Method,
    *,
    trials: Sequence[MethodTrial] = TRIALS,
    budgets: Mapping[str, BudgetMaker] = BUDGETS,
    rounds: int = 1,
    seed: int = 0,
    ignores_names: bool = False,
) -> MethodCheck:
    """Check a method against the laws on small random problems.

    It must be a frozen dataclass of options that all have defaults, with a docstring, and state its name and its
    source; need only statistics that there are; refuse with a sentence what it cannot choose from, blocks of kinds
    that it does not prune and texts without labels where it needs some; choose within every other budget, and within
    another one when asked again; repeat itself with the same seed, whatever it was asked before; and state one
    value for one keep-set, and never a bound below the value of a keep-set within the budget.

    Args:
        method: the method; give it options that make it quick.
        trials: what it is tried on; random statistics of heads, of neurons and of both. For one that runs the model:
            ``[cahp_opt.torch.methods.trial.tiny_trial()]``.
        budgets: makers of budgets by name.
        rounds: how many problems with every budget, on one trial after another.
        seed: of the first problem; the following ones count on from it.
        ignores_names: check also that another order of the blocks leaves the value as it is. For methods that do
            not draw units by their number.

    Raises:
        BrokenLaw: an ``AssertionError``; it names the law, the problem, and what came.
        TypeError: if it is not a method.
        ValueError: if there is nothing to check it on.
        ImportError: if the method needs a package that is not installed.
    """
    if not isinstance(method, Method):
        raise TypeError(f"`method` must be a Method value such as `Michel()`, got {method!r}.")
    if not (trials and budgets and rounds >= 1):
        raise ValueError(
            "`trials` and `budgets` must hold at least one each, and `rounds` must be at least 1, got "
            f"{len(trials)}, {len(budgets)} and {rounds}."
        )
    check_options(method)
    check_statements(method)
    taken = [trial for trial in trials if _takes(method, trial.task(Budget(trial.space), seed))]
    require(
        taken,
        f"`{type(method).__name__}` refuses all that it is tried on; a method must take some.",
    )
    makers = list(budgets.items()) * rounds
    for k, (name, make) in enumerate(makers, start=seed):
        place = k % len(taken)
        trial = taken[place]
        with found_on(
            f"budgets[{name!r}](np.random.default_rng({k}), space) over blocks of "
            f"{trial.space.units.tolist()} units, with the seed {k}"
        ):
            budget = make(np.random.default_rng(k), trial.space)
            task = trial.task(budget, k)
            check_needs(method, task)
            check_choices(method, trial, task)
            if ignores_names:
                check_order(method, trial, task, np.random.default_rng(k))
    return MethodCheck(len(makers), len(trials) - len(taken))


def check_statements(method: Method) -> None:
    """Every option has a default, and what tables and reports show of a method is there."""
    name = type(method).__name__
    assert dataclasses.is_dataclass(method)  # checked with its options
    missing = [
        f.name
        for f in dataclasses.fields(method)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    require(not missing, f"the options {missing} of `{name}` must have defaults.")
    require(
        re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", method.name),
        f"the name of `{name}` must be words in lower case with hyphens, got {method.name!r}.",
    )
    kinds = {"source": str, "published_with": Recovery, "prunes": Prune, "labels": bool}
    for attribute, kind in kinds.items():
        value = getattr(method, attribute, None)
        require(
            isinstance(value, kind) and value != "",
            f"`{attribute}` of `{name}` must be a {kind.__name__} and not empty, got {value!r}.",
        )


def check_needs(method: Method, task: Task) -> None:
    """It needs statistics that there are, and says the same when asked again."""
    name, needs = type(method).__name__, method.needs(task)
    require(isinstance(needs, Needs), f"`{name}.needs` must return Needs, got {needs!r}.")
    unknown = sorted(needs.statistics - STATISTICS.keys())
    require(
        not unknown, f"`{name}` needs {unknown}, and the statistics are {', '.join(STATISTICS)}."
    )
    require(
        all(0 < density <= 1 for density in needs.densities),
        f"`{name}` needs the densities {needs.densities}, which must lie above 0 and at most at 1.",
    )
    require(method.needs(task) == needs, f"`{name}` must need the same when it is asked again.")


def check_choices(method: Method, trial: MethodTrial, task: Task) -> None:
    """What it chooses within a budget, and within another one after it."""
    name, budget, space = type(method).__name__, task.budget, trial.space
    first = _chooser(method, trial, task)
    chosen = _chosen(method, first, budget)
    _check_selection(name, budget, chosen)
    # The same counts, but without what they cost: within the first budget too.
    same = Budget(space, (), chosen.counts, chosen.counts)
    beside = _chosen(method, first, same)
    _check_selection(name, same, beside)
    other = _chooser(method, trial, task)  # asked the other way round
    for asked, found in ((same, beside), (budget, chosen)):
        again = _chosen(method, other, asked)
        require(
            again.space == found.space
            and np.array_equal(again.kept, found.kept)
            and np.array_equal(again.value, found.value, equal_nan=True),
            f"`{name}` must repeat itself with the same seed, whatever it was asked before: it kept "
            f"{found.heads()} of value {found.value}, and then {again.heads()} of value {again.value}.",
        )
    require(
        not chosen.bound < beside.value - _slack(beside),
        f"`{name}` claims that no keep-set within the budget exceeds {chosen.bound}, and chose one of value "
        f"{beside.value} with the same counts.",
    )
    if chosen.space == beside.space and np.array_equal(chosen.kept, beside.kept):
        require(
            math.isclose(chosen.value, beside.value, **CLOSE)
            or (math.isnan(chosen.value) and math.isnan(beside.value)),
            f"`{name}` states the values {chosen.value} and {beside.value} for one keep-set.",
        )


def check_order(method: Method, trial: MethodTrial, task: Task, rng: np.random.Generator) -> None:
    """Another order of the blocks leaves the value as it is."""
    blocks: list[int] = rng.permutation(len(trial.space.blocks)).tolist()
    turned = trial.reordered(blocks)
    if turned is None:
        return
    budget = reordered(task.budget, blocks)
    first = _chosen(method, _chooser(method, trial, task), task.budget)
    turned_task = dataclasses.replace(task, budget=budget)
    second = _chosen(method, _chooser(method, turned, turned_task), budget)
    name = type(method).__name__
    same = math.isclose(first.value, second.value, **CLOSE)
    if math.isnan(first.value) and math.isnan(second.value):
        same = first.heads() == second.heads()
    require(
        same,
        f"`{name}` finds the value {first.value}, and {second.value} where the blocks come in the order "
        f"{blocks}.",
    )


def _takes(method: Method, task: Task) -> bool:
    """Whether a method takes these units; it must refuse those that it does not prune, and texts without labels where
    it needs some."""
    name, space = type(method).__name__, task.budget.space
    held = Prune.in_space(space)
    refusal = _refusal(method, task)
    require(
        refusal is not None or method.prunes in (Prune.BOTH, held),
        f"`{name}` prunes {method.prunes.value} only, and must refuse blocks of {space.units.tolist()} units "
        f"that are {held.value}.",
    )
    if refusal is None and (method.labels or method.needs(task).statistics & OF_LABELS):
        require(
            _refusal(method, dataclasses.replace(task, labelled=False)),
            f"`{name}` needs labelled texts, and must refuse a task without.",
        )
    return refusal is None


def _refusal(method: Method, task: Task) -> str | None:
    """The sentence by which a method refuses a task; None if it does not."""
    name = type(method).__name__
    try:
        method.check(task)
    except ValueError as refusal:
        sentence = str(refusal)
        if sentence.endswith("."):
            return sentence
        raise BrokenLaw(
            f"`{name}` must refuse a task with a sentence that ends with a full stop, got {sentence!r}."
        ) from refusal
    except Exception as error:
        raise BrokenLaw(f"`{name}.check` must accept or refuse a task, got {error!r}.") from error
    return None


def _chooser(method: Method, trial: MethodTrial, task: Task) -> Chooser:
    try:
        return trial.chooser(method, task)
    except ImportError:
        raise  # a package that is not installed says nothing about the method
    except Exception as error:
        raise BrokenLaw(
            f"`{type(method).__name__}` must choose from what it needs, got {error!r}; give a method that runs "
            "the model `trials=[cahp_opt.torch.methods.trial.tiny_trial()]`."
        ) from error


def _chosen(method: Method, choose: Chooser, budget: Budget) -> Selection:
    name = type(method).__name__
    try:
        selection = choose(budget)
    except ImportError:
        raise
    except Exception as error:
        raise BrokenLaw(f"`{name}` must choose within any budget, got {error!r}.") from error
    require(
        isinstance(selection, Selection) and _same_units(selection.space, budget.space),
        f"`{name}` must return a Selection of the blocks that it was given, got {selection!r}.",
    )
    return selection


def _same_units(one: HeadSpace, other: HeadSpace) -> bool:
    """The same blocks, but for the order of their neurons."""
    return one.unordered() == other.unordered()


def _check_selection(name: str, budget: Budget, selection: Selection) -> None:
    check_within(name, budget, selection.counts)
    if selection.costs:
        check_costs(name, budget, selection.counts, selection.costs)
    value, bound = selection.value, selection.bound
    require(
        not math.isinf(value) and (bound == math.inf if math.isnan(value) else bound >= value),
        f"`{name}` states the value {value} and the bound {bound}; a value is finite, or NaN where there is "
        "none, and no bound is below it.",
    )
    require(
        math.isfinite(bound) or selection.certificate.startswith("no"),
        f"`{name}` has no bound, but the certificate {selection.certificate!r}.",
    )


def _slack(selection: Selection) -> float:
    return 1e-9 * max(1.0, abs(selection.value))
