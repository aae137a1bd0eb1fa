"""A study in Python: any methods at any limits with any recoveries, on a model and texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from cahp_opt.costs.goals import LatencyGoal
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.prune import Prune
from cahp_opt.costs.workloads import Workload, workloads_for
from cahp_opt.files.records import PathLike
from cahp_opt.progress import Stages
from cahp_opt.runs.kinds import KindOptions
from cahp_opt.runs.limits import Limit
from cahp_opt.runs.method import Method
from cahp_opt.runs.plan import Reading, RecoveryOptions, TextOptions
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.studied_objectives import Studied, beside, by_name, objectives_named
from cahp_opt.runs.study_options import studied_kinds
from cahp_opt.runs.study_plan import KEEP_SETS, StudyPlan
from cahp_opt.runs.study_texts import StudyTexts
from cahp_opt.runs.texts import Example
from cahp_opt.stats.pooling import Pooling
from cahp_opt.studies.study import Study
from cahp_opt.torch.blocks.fingerprint import fingerprint
from cahp_opt.torch.pipeline.run import Named
from cahp_opt.torch.studies.recipe import Recipe
from cahp_opt.torch.studies.running import run_study
from cahp_opt.torch.studies.source import Source


def study(
    model: nn.Module | PathLike,
    tokenizer: Any = None,
    texts: Iterable[str | Example] | StudyTexts = (),
    *,
    methods: Sequence[Method] | Mapping[str, Method] = (),
    objectives: Sequence[Studied] | Mapping[str, Studied] = (),
    keep_sets: int = KEEP_SETS,
    limits: Sequence[str | Limit] = ("0.8", "0.6"),
    recoveries: Sequence[Recovery] = (Recovery.NONE, Recovery.REFIT),
    seeds: int | Sequence[int] = 3,
    held_out: Iterable[str | Example] | int | None = None,
    max_texts: int | None = None,
    prune: Prune | None = None,
    neuron_group: int | None = None,
    recovering: RecoveryOptions | None = None,
    reading: Reading | None = None,
    workloads: Sequence[Workload] = (),
    profile: Profile | None = None,
    pooling: Pooling | None = None,
    time_limit: float | None = None,
    output_dir: PathLike = "study",
    jobs: int = 1,
    stages: Stages | None = None,
) -> Study:
    """Compare methods of choosing units on a model and texts: every method at every limit with every recovery.

    For every seed, texts are drawn and the statistics that all methods need are measured once. Every choice is
    sliced, checked, recovered on those texts and judged on the held-out ones, which are the same for all. In
    the end, models of every set of counts that came out are timed in turns with the unpruned one.

    An objective is a method too, which chooses what maximises it. Beside that, it is asked for its values at
    random keep-sets at every limit, the same for all objectives, and :meth:`Study.correlations` says how well it ranks
    them by the damage that they do.

    Every result is a file in the folder as soon as it is there, named by a digest of all that it depends on: a
    study that was killed resumes, one with more methods, limits, recoveries or seeds costs only what is new,
    and several processes or machines that share the folder share the work. A cell that fails does not stop the
    others; :attr:`Study.missing` has the reason, and it is tried again the next time. Cells go through joblib:
    ``with joblib.parallel_config(backend="dask")`` spreads them over a cluster whose workers see the folder.

    Args:
        model: a folder or a hub id, which every process loads by itself, or a model in memory, which is sent
            to other processes with each of their jobs.
        tokenizer: of a model in memory: its tokenizer.
        texts: texts, or :class:`~cahp_opt.runs.texts.Example` with labels or pairs, to draw from; or
            :class:`~cahp_opt.runs.study_texts.StudyTexts`, which also state what to judge by, how many are
            drawn, and a name for tables.
        methods: the methods, under their own names or those of a mapping.
        objectives: objectives to judge: members of :class:`~cahp_opt.runs.names.ObjectiveName`, classes of your own with a
            static method ``from_stats(stats)`` that declares what it reads (:func:`~cahp_opt.stats.needs.needs`), or
            methods that maximise one (:class:`~cahp_opt.runs.maximising.Maximising`). One that does not apply
            or fails stops nothing else.
        keep_sets: random keep-sets at every limit for every seed, by which objectives are judged.
        limits: each tried alone: a ratio of the unpruned time such as ``0.7``, a time such as ``decode=12ms``, a
            number of units of attention such as ``24 heads``, or a share such as ``0.5 neurons``.
        recoveries: each tried on every choice.
        seeds: how many, or which.
        held_out: texts to judge by, or how many to hold out of ``texts``; None for 256.
        max_texts: texts of a draw; None for 2000.
        prune: the kinds of blocks that are pruned; None for those that the limits are about and the methods can
            choose from.
        neuron_group: as for :func:`~cahp_opt.torch.find_prunable`.
        recovering: how the recoveries work; None for the usual way.
        reading: how texts become batches; None for the usual way.
        workloads: what models are timed on; those that the limits name if there are none.
        profile: the model's costs, as measured before; measured here if a limit needs them and it is None.
        pooling: how the model embeds texts, if it does.
        time_limit: seconds that a solver may take; None for no limit.
        output_dir: the folder of the results.
        jobs: jobs at the same time, each a method at a limit on a seed; -1 for one per core.
        stages: shows the stages; None for nothing.

    Raises:
        BudgetError: if nothing meets a limit.
        ValueError: for a model, texts, methods or limits that cannot be used.
        OSError: if a file cannot be read, or the folder not be written.
    """
    asked = tuple(each if isinstance(each, Limit) else Limit.parse(each) for each in limits)
    chosen, ranked = beside(by_name("methods", methods), objectives_named(objectives))
    goals: list[LatencyGoal] = [goal for limit in asked for goal in limit.target.latencies]
    plan = StudyPlan(
        chosen,
        asked,
        tuple(recoveries),
        tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds),
        recovering or RecoveryOptions(),
        workloads_for(goals, workloads, Workload()),
        reading or Reading(),
        time_limit=time_limit,
        objectives=ranked,
        keep_sets=keep_sets,
    )
    options = KindOptions(prune, neuron_group)
    kinds = studied_kinds(options, asked, chosen.values(), profile)
    source = _source(model, tokenizer)
    loaded, processor = source.load(0)
    named = Named(source.name, loaded, processor, pooling, kinds).settled()
    recipe = Recipe(
        source.holding(loaded, processor),
        fingerprint(loaded),
        _texts(texts, held_out, max_texts),
        plan,
        Path(output_dir),
        named.kinds,
        pooling,
        profile,
    )
    return run_study(recipe, jobs=jobs, stages=stages)


def _texts(
    texts: Iterable[str | Example] | StudyTexts,
    held_out: Iterable[str | Example] | int | None,
    most: int | None,
) -> StudyTexts:
    if not isinstance(texts, StudyTexts):
        held_out = TextOptions.held_out if held_out is None else held_out
        return StudyTexts.of(texts, held_out, most=TextOptions.max_texts if most is None else most)
    for name, given in (("held_out", held_out), ("max_texts", most)):
        if given is not None:
            raise ValueError(
                f"`{name}` is given, but `texts` are StudyTexts, which state it; leave it out."
            )
    return texts.checked()


def _source(model: nn.Module | PathLike, tokenizer: Any) -> Source:
    if isinstance(model, nn.Module):
        return Source(type(model).__name__, loaded=(model, tokenizer), sent=True)
    return Source(str(model))
