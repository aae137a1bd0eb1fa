"""Options without effect: refused if something else was probably meant, otherwise noted.

Every command has a table of rules. A rule looks at what was given, and at facts that are known only
later, such as the solver that suits the statistics; the same table is asked again then.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import typer

from cahp_opt.runs.measuring import DECIDED
from cahp_opt.runs.media import Medium
from cahp_opt.runs.names import SolverName
from cahp_opt.runs.recovery import Recovery


class UnusedOptionError(ValueError):
    """An option was given that cannot do anything beside the others."""


@dataclass(frozen=True)
class Given:
    """The options on the command line.

    Args:
        command: the command.
        values: of all of its options, by the name of the argument.
        explicit: the names of the arguments that were given rather than left to their defaults.
        flags: the options by the names of their arguments.
    """

    command: str
    values: Mapping[str, Any]
    explicit: frozenset[str]
    flags: Mapping[str, str]

    @property
    def line(self) -> str:
        """The command for a shell: what was given, arguments without an option first."""
        words, options = ["cahp", self.command], list[str]()
        for name in (name for name in self.values if name in self.explicit):
            value, flag = self.values[name], self.flags[name]
            for one in value if isinstance(value, (list, tuple)) else (value,):  # pyright: ignore[reportUnknownVariableType]
                if isinstance(one, bool):
                    options.append(flag if one else flag.replace("--", "--no-", 1))
                    continue
                told = str(one.value if isinstance(one, Enum) else one)  # pyright: ignore[reportUnknownArgumentType]
                if flag.startswith("-"):
                    options += [flag, told]
                else:
                    words.append(told)
        return shlex.join([*words, *options])

    @staticmethod
    def of(context: typer.Context, values: Mapping[str, Any]) -> Given:
        """The options that the running command was given."""
        explicit = frozenset(
            name
            for name in context.params
            if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
        )
        flags = {str(p.name): p.opts[0] for p in context.command.params}
        return Given(context.info_name or "", dict(values), explicit, flags)

    def check(self, **facts: object) -> list[str]:
        """The notes of the rules about these facts, or about the options alone, as sentences.

        Raises:
            UnusedOptionError: if a rule refuses.
        """
        notes, known = list[str](), {**self.values, **facts}
        for rule in _RULES.get(self.command, ()):
            names = [name for name in rule.options if name in self.explicit]
            if not names or set(rule.facts) != set(facts) & set(rule.facts):
                continue
            if bool(facts) != bool(rule.facts) or not rule.idle(known):
                continue
            options = " and ".join(f"`{self.flags[name]}`" for name in names)
            sentence = f"{options} {'do' if len(names) > 1 else 'does'} nothing here: {rule.why}"
            if rule.refused:
                raise UnusedOptionError(f"{sentence}; leave out one or the other.")
            notes.append(f"{sentence}.")
        return notes


@dataclass(frozen=True)
class _Rule:
    """When options do nothing.

    Args:
        options: names of their arguments.
        idle: whether they do nothing, by the values of all options and the facts.
        why: a clause for people.
        refused: whether another result was surely expected; else it is only noted.
        facts: what ``idle`` asks for beside the options.
    """

    options: tuple[str, ...]
    idle: Callable[[Mapping[str, Any]], object]
    why: str
    refused: bool = False
    facts: tuple[str, ...] = ()


_SOURCES = ("text", "data", "images", "audio")


def _texts(given: Mapping[str, Any]) -> bool:
    return any(given[source] is not None for source in _SOURCES)


def _untimed(given: Mapping[str, Any]) -> bool:
    return all(isinstance(solver, SolverName) and not solver.timed for solver in given["solvers"])


def _unseeded(given: Mapping[str, Any]) -> bool:
    return all(isinstance(solver, SolverName) and not solver.seeded for solver in given["solvers"])


_COLUMNS = _Rule(
    ("text_column", "pair_column", "label_column", "messages_column", "subset", "split"),
    lambda given: given["data"] is None,
    "there is no `--data`",
    refused=True,
)
_TRAINING = _Rule(
    ("epochs", "learning_rate"),
    lambda given: given["recovery"] is not Recovery.FINETUNE,
    "only `--recovery finetune` trains",
    refused=True,
)
_REFITTING = _Rule(
    ("weighting", "feed_forward"),
    lambda given: not given["recovery"].refits,
    "only `--recovery refit` and `--recovery finetune` refit",
    refused=True,
)
_REPAIRING = _Rule(
    ("stream_memory",),
    lambda given: not given["recovery"].repairs,
    "`--recovery none` repairs nothing",
    refused=True,
)
_SIZES = ("latency_batch_size", "sequence_length")
_TIMED = _Rule(
    ("workload", "execution", *_SIZES),
    lambda given: given["table_times"],
    "`--latency-table` tells what is timed and how",
    refused=True,
    facts=("table_times",),
)
_SIZED = _Rule(
    _SIZES,
    lambda given: given["workload"],
    "`--workload` has sizes of its own",
    refused=True,
)
_TIME_LIMIT = _Rule(("time_limit",), _untimed, "the solver does not look at it", facts=("solvers",))
_SEED = _Rule(("seed",), _unseeded, "the solver draws nothing at random", facts=("solvers",))
_TABLE = _Rule(
    ("latency_table",),
    lambda given: not given["goals"],
    "no limit is about what it holds",
    facts=("goals",),
)


def _unneeded(number: str) -> _Rule:
    return _Rule(
        (number,),
        lambda given: not DECIDED[number] & given["needs"],
        "the objective needs nothing that it is about",
        facts=("needs",),
    )


_NEURONS = _Rule(
    ("neuron_group",),
    lambda given: not given["prunes"].neurons,
    "no neurons are pruned",
    facts=("prunes",),
)


def _sized(*options: str) -> _Rule:
    return _Rule(
        options,
        lambda given: not given["tokens"],
        "the model reads no tokens, and images and recordings have the size that its processor gives them",
        facts=("tokens",),
    )


_LONG = _Rule(
    ("max_seconds",),
    lambda given: _texts(given) and given["medium"] is not Medium.SOUND,
    "only recordings have a length in seconds",
    facts=("medium",),
)

_UNNEEDED = tuple(map(_unneeded, DECIDED))

_RULES: Mapping[str, tuple[_Rule, ...]] = {
    "prune": (
        *_UNNEEDED,
        _COLUMNS,
        _sized("max_length", "sequence_length"),
        _LONG,
        _NEURONS,
        _TRAINING,
        _REFITTING,
        _REPAIRING,
        _TIMED,
        _SIZED,
        _Rule(
            ("rounds",),
            lambda given: not given["latency_goals"],
            "without a limit of the latency nothing is selected again",
            facts=("latency_goals",),
        ),
        _Rule(
            ("latency_table",),
            lambda given: not given["goals"],
            "no limit is about what it holds, and it only tells what is timed in the end",
            facts=("goals",),
        ),
        _TIME_LIMIT,
    ),
    "study": (
        _COLUMNS,
        _sized("max_length", "sequence_length"),
        _LONG,
        _NEURONS,
        _Rule(
            ("epochs", "learning_rate"),
            lambda given: Recovery.FINETUNE not in given["recoveries"],
            "only `--recovery finetune` trains",
            refused=True,
            facts=("recoveries",),
        ),
        _Rule(
            ("weighting", "feed_forward"),
            lambda given: not any(recovery.refits for recovery in given["recoveries"]),
            "only `--recovery refit` and `--recovery finetune` refit",
            refused=True,
            facts=("recoveries",),
        ),
        _Rule(
            ("held_out",),
            lambda given: given["test_data"] is not None,
            "all of `--test-data` is judged by",
        ),
        _Rule(
            ("keep_sets",),
            lambda given: not given["objective"],
            "only `--objective` ranks them",
        ),
        _TIMED,
        _SIZED,
        _Rule(
            ("latency_table",),
            lambda given: not given["goals"],
            "no limit is about what it holds, and it only tells what is timed in the end",
            facts=("goals",),
        ),
    ),
    "calibrate": (_COLUMNS, _sized("max_length"), _LONG, _NEURONS),
    "latency": (
        _sized("sequence_length"),
        _NEURONS,
        _SIZED,
        _Rule(
            ("repeats", "device", "threads"),
            lambda given: given["estimate"] is not None,
            "with `--estimate` nothing is measured",
        ),
    ),
    "select": (
        _TABLE,
        _Rule(
            ("recovery",),
            lambda given: given["objective"] is not None,
            "it only chooses the objective, which `--objective` names",
        ),
        _TIME_LIMIT,
        _SEED,
    ),
    "compare": (
        _Rule(
            ("latency_table",),
            lambda given: given["heads"] and not given["latency"],
            "no `--latency` asks for it",
        ),
        _TIME_LIMIT,
        _Rule(
            ("seeds",),
            lambda given: given["seeds"] > 1 and _unseeded(given),
            "none of the solvers draws anything at random",
            facts=("solvers",),
        ),
    ),
    "apply": (
        _COLUMNS,
        _sized("max_length", "sequence_length"),
        _LONG,
        _Rule(
            ("recovery",),
            lambda given: given["recovery"].repairs and not _texts(given),
            "without `--text`, `--data`, `--images` or `--audio` there is nothing to recover with",
            refused=True,
        ),
        _TRAINING,
        _REFITTING,
        _REPAIRING,
        _Rule(
            ("weighting", "feed_forward", "stream_memory"),
            lambda given: not _texts(given),
            "without `--text`, `--data`, `--images` or `--audio` nothing is refitted",
            refused=True,
        ),
        _Rule(
            ("max_texts", "held_out", "max_length", "max_seconds", "batch_size", "pooling", "seed"),
            lambda given: not _texts(given),
            "there is none of `--text`, `--data`, `--images` and `--audio`",
        ),
        _Rule(
            ("max_texts",),
            lambda given: _texts(given) and not given["recovery"].repairs,
            "with `--recovery none` only the texts kept back are looked at",
        ),
        _Rule(
            _SOURCES,
            lambda given: not given["recovery"].repairs and given["held_out"] == 0,
            "`--recovery none` learns nothing from texts, and `--held-out 0` judges by none",
        ),
    ),
}
