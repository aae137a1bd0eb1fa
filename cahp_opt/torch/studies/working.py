"""What a worker of a study is asked to do: measure one draw, or work through one job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from cahp_opt.files.store import Busy
from cahp_opt.runs.method import Needs
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.study_plan import Job
from cahp_opt.studies.outcome import Cell, Outcome
from cahp_opt.torch.studies.bench import bench_of
from cahp_opt.torch.studies.choosing import chosen
from cahp_opt.torch.studies.draws import Draw, draw_of
from cahp_opt.torch.studies.failures import reason_of
from cahp_opt.torch.studies.judging import judged
from cahp_opt.torch.studies.needs import with_recoveries
from cahp_opt.torch.studies.recipe import Recipe


class Told(Protocol):
    """What comes of any piece of work."""

    @property
    def busy(self) -> bool:
        """Whether another process is doing a part of it, so that it has to be asked for again."""
        ...


Done = TypeVar("Done", bound=Told)


@dataclass(frozen=True, eq=False)
class Finished:
    """What came of a piece of work.

    Args:
        outcomes: of the cells that went well, without times.
        failed: by cell that did not, a sentence with the reason.
        busy: whether another process is doing a part of it, so that it has to be asked for again.
        found: outcomes that were there already.
    """

    outcomes: tuple[Outcome, ...] = ()
    failed: Mapping[Cell, str] = field(default_factory=lambda: dict[Cell, str]())
    busy: bool = False
    found: int = 0


def measure_draw(recipe: Recipe, seed: int, needs: Needs) -> Finished:
    """Measure what the cells of a seed share, unless it is there; a failure fails all of them."""
    bench = bench_of(recipe)
    each = (with_recoveries(bench, needs, [recovery]) for recovery in recipe.plan.recoveries)
    with bench.alone:
        try:
            for own in dict.fromkeys(each):
                draw_of(bench, seed, own).measure()
        except Busy:
            return Finished(busy=True)
        except Exception as error:  # the other seeds may go well
            cells = [cell for cell in recipe.plan.cells() if cell.seed == seed]
            return Finished(
                failed=dict.fromkeys(cells, reason_of(bench.store, f"seed {seed}", error))
            )
    return Finished()


def work(recipe: Recipe, job: Job, needs: Needs) -> Finished:
    """Choose for a job, and slice, recover and judge for each of its cells, unless that is there."""
    bench = bench_of(recipe)
    outcomes, failed, found = list[Outcome](), dict[Cell, str](), 0
    with bench.alone:
        for cell in recipe.plan.cells_of(job):
            own = with_recoveries(bench, needs, [Recovery(cell.recovery)])
            draw, made = draw_of(bench, job.seed, own), bench.store.made
            try:
                draw.measure()
                outcomes.append(_outcome(draw, job, cell))
                found += bench.store.made == made
            except Busy:
                return Finished(busy=True)
            except Exception as error:  # whatever it is, the other cells may go well
                failed[cell] = reason_of(bench.store, str(cell), error)
    return Finished(tuple(outcomes), failed, found=found)


def _outcome(draw: Draw, job: Job, cell: Cell) -> Outcome:
    recovery = Recovery(cell.recovery)
    choice = chosen(draw, job, recovery)
    found = judged(draw, choice.selection, recovery)
    seconds = {**draw.measure()["seconds"], "choose": choice.seconds, **found.seconds}
    return Outcome.of(
        cell,
        choice.selection,
        found.scores,
        seconds=seconds,
        provenance={"device": found.device},
        notes=choice.notes,
    )
