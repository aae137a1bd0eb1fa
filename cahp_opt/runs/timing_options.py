"""The inputs that models are timed on, as users state them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from cahp_opt.costs.profile import Profile
from cahp_opt.costs.provenance import Execution
from cahp_opt.costs.quantities import workload_of
from cahp_opt.costs.target import Target
from cahp_opt.costs.workloads import Workload, workloads_for
from cahp_opt.runs.options import option


@dataclass(frozen=True)
class WorkloadOptions:
    """The inputs that a model is timed on."""

    topic: ClassVar[str] = "Timing"

    workload: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--workload",
            metavar="WORKLOAD",
            help="What is timed, as [NAME=]PHASE:BATCHxLENGTH: prefill:8x128, decode:8x1024 or "
            "long=prefill:1x4096; without a name it is called after its phase. May be repeated.",
        ),
    )
    execution: Execution = field(
        default=Execution.EAGER,
        metadata=option("--execution", help="How the model is run while it is timed."),
    )
    latency_batch_size: int = field(
        default=8, metadata=option("--latency-batch-size", min=1, help="Texts per timed batch.")
    )
    sequence_length: int | None = field(
        default=None,
        metadata=option(
            "--sequence-length",
            min=1,
            help="Tokens per timed text. Default: 128, or fewer if the model has fewer positions.",
        ),
    )
    repeats: int = field(
        default=20, metadata=option("--repeats", min=1, help="Timed runs of every point.")
    )

    def studied(
        self, targets: Sequence[Target], profile: Profile | None = None
    ) -> tuple[Workload, ...]:
        """The workloads to time for several targets, each of which holds alone; as :meth:`workloads`.

        Raises:
            ValueError: if a workload or a goal about one cannot be understood.
        """
        goals = tuple(goal for target in targets for goal in target.goals)
        return self.workloads(Target(goals), profile)

    def workloads(self, target: Target, profile: Profile | None = None) -> tuple[Workload, ...]:
        """The workloads to time for a target.

        Args:
            target: what is limited.
            profile: a ready one; if it holds times, the workloads are those it was measured with.

        Raises:
            ValueError: if a workload or a goal about one cannot be understood.
        """
        if profile is not None and profile.latency:
            about = dict.fromkeys(workload_of(name) for name in target.measured(profile))
            ready = {n: profile.latency[n] for n in about if n in profile.latency}
            ready = ready or dict(profile.latency)
            return tuple(
                Workload.of(name, table.provenance, self.repeats) for name, table in ready.items()
            )
        default = Workload(
            self.latency_batch_size, self.sequence_length, self.repeats, execution=self.execution
        )
        asked = [
            Workload.parse(text, repeats=self.repeats, execution=self.execution)
            for text in self.workload
        ]
        return workloads_for(target.latencies, asked, default)


@dataclass(frozen=True)
class TimingOptions:
    """The inputs that a model is timed on, and how often a missed limit is tried again."""

    topic: ClassVar[str] = "Timing"

    timed: WorkloadOptions = WorkloadOptions()
    rounds: int = field(
        default=3,
        metadata=option(
            "--rounds",
            min=1,
            help="Maximum number of sliced models to time while looking for one that meets the latency "
            "goal; after a miss the tables are corrected and the units selected again.",
        ),
    )
