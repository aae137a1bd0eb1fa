"""How far both kinds of blocks together can bring down a cost that one kind alone cannot."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

from cahp_opt.arrays import Ints
from cahp_opt.costs.budget import BudgetError
from cahp_opt.costs.goals import checked
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.prune import Prune
from cahp_opt.costs.target import Target
from cahp_opt.progress import Progress
from cahp_opt.selection import Selection
from cahp_opt.torch.blocks.finder import Prunable, UnsupportedModelError
from cahp_opt.torch.latency.exact_counts import count_held
from cahp_opt.torch.latency.measured_selection import measuring
from cahp_opt.torch.pipeline.run import PruningRun, find_kinds


@contextmanager
def naming_floor_of_both(
    run: PruningRun, target: Target, profile: Profile | None, *, repeats: int
) -> Generator[None]:
    """Whatever is refused in here is refused with the floor of both kinds, where one kind alone is pruned.

    Args:
        run: the run.
        target: the goals and limits.
        profile: the tables of the kind that is pruned; None if no goal needs any.
        repeats: timed runs of the model with the least of both kinds.
    """
    try:
        yield
    except BudgetError as error:
        with run.stages.stage("floor") as progress:
            told = _floor_of_both(run, target, profile, repeats, progress)
        if told is None:
            raise
        raise BudgetError(f"{str(error).rstrip('.')}. {told}") from None


def _floor_of_both(
    run: PruningRun, target: Target, profile: Profile | None, repeats: int, progress: Progress
) -> str | None:
    """A sentence on the shares of the unpruned costs that both kinds together can reach; None if they are
    no more than is pruned anyway."""
    goals = target.goals if target.prune is Prune.BOTH else ()
    kinds = run.named.kinds
    if not goals or profile is None or kinds.prune is Prune.BOTH:
        return None
    try:
        both = find_kinds(run.model, replace(kinds, prune=Prune.BOTH))
    except (UnsupportedModelError, ValueError):
        return None
    if len(both) == len(run.prunable):
        return None
    counts = target.numbers(both.space).fewest
    shares = _timed_shares(run, both, counts, target, profile, repeats, progress)
    counted = count_held(both) if any(not goal.measured(profile) for goal in goals) else {}
    shares |= {
        goal.name: counted[goal.name].predict(counts) / counted[goal.name].dense
        for goal in goals
        if goal.name in counted
    }
    told = " and ".join(f"{share:.3f} of the unpruned {what}" for what, share in shares.items())
    return f"`--prune both` can go down to {told}." if shares else None


def _timed_shares(
    run: PruningRun,
    both: Prunable,
    counts: Ints,
    target: Target,
    profile: Profile,
    repeats: int,
    progress: Progress,
) -> dict[str, float]:
    """The measured shares of the model that keeps these counts, ``[blocks]``, by what is limited."""
    goals = target.verified(profile)
    if not goals:
        return {}
    space, tables = both.space, target.measured(profile)
    kept = space.join({b.name: range(k) for b, k in zip(space.blocks, counts, strict=True)})
    places = {name: table.provenance for name, table in tables.items()}
    measure = measuring(both, places, run.timed, progress=progress)
    found = measure(Selection.from_kept(space, kept), repeats)
    return {
        "time" if name == "latency" else name: checked(
            goal, {table: found[table] for table in goal.measured(profile)}
        ).ratio
        for name, goal in goals
    }
