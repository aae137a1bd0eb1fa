"""What calibration has to measure for all methods of a study together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from cahp_opt.runs.method import Needs
from cahp_opt.runs.recovery import Recovery
from cahp_opt.torch.studies.bench import Bench


def with_recoveries(bench: Bench, needs: Needs, recoveries: Iterable[Recovery]) -> Needs:
    """The same, with neurons in the order that suits these recoveries: that of a refit, if one of them is one or
    there are no neurons."""
    refits = any(recovery.refits for recovery in recoveries)
    return replace(needs, refitted=refits or not bench.prunable.feed_forward)


def needs_of_all(bench: Bench) -> Needs:
    """What all methods need at all limits with all recoveries.

    Raises:
        BudgetError: if nothing meets a limit.
    """
    statistics, densities = set[str](), set[float]()
    for limit in bench.plan.limits:
        for recovery in bench.plan.recoveries:
            task = bench.task(limit, recovery, bench.plan.seeds[0], bench.prunable.space)
            for method in bench.plan.methods.values():
                needs = method.needs(task)
                statistics |= needs.statistics
                densities |= set(needs.densities)
                if needs.statistics & {"gauss_newton", "fisher"} and not needs.densities:
                    densities |= set(bench.plan.measuring.of(()).densities)
    found = Needs(frozenset(statistics), tuple(sorted(densities)))
    return with_recoveries(bench, found, bench.plan.recoveries)
