"""Sentences of the library as the command line says them: an option where Python has an argument."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cahp_opt.runs.names import SolverName

Options = Mapping[str, str]
"""The options of a command: by name of the argument, such as ``time_limit``, ``--time-limit``; and by the
enumeration that their values are of, such as ``Weighting``, ``--weighting``."""

_CODE = re.compile(r"`([A-Za-z_]\w*(?:\.[A-Z_]+)?)(?:\(\))?(?:=([\w.]+))?`")
_OWN_FIDELITY = re.compile(r"pass (a )?`fidelity.*$")  # which no option can be
_PLAIN = {
    "batches": "the texts",
    "batch": "the inputs",
    "dense": "the unpruned model",
    "labels": "labels",
    "target": "the goals",
}
_MEASURED = {"densities": "gradient_examples"}
"""Arguments of ``calibrate`` that an option of another name decides."""
_CALLED = {"units": "heads"}
"""Names of the tables of a budget, and the arguments that limit it."""


def as_options(sentence: str, command: str | None, commands: Mapping[str, Options]) -> str:
    """The sentence with options in place of arguments that Python code would pass.

    Args:
        sentence: of an error.
        command: the command that was given; None for none.
        commands: the options of every command.
    """
    own = commands.get(command or "", {})
    solvers = {name.name: name.value for name in SolverName}

    def told(found: re.Match[str]) -> str:
        name, value = _CALLED.get(found[1], found[1]), found[2]
        kind, _, member = name.partition(".")
        if member and kind in own:
            name, value = kind, name
        if name in solvers and "solver" in own:
            return f"`--solver {solvers[name]}`"
        if name in own:
            return f"`{_with(own[name], value)}`"
        if name in _PLAIN and value is None:
            return _PLAIN[name]
        measuring = commands.get("calibrate", {})
        measured = _MEASURED.get(name, name)
        if measured in measuring and measured.endswith(("_examples", "_size")):
            return f"`{_with(measuring[measured], value)}` of `cahp calibrate`"
        return found[0]

    if not own:
        return sentence
    python = "the functions of `cahp_opt.torch` take a `fidelity` of your own."
    return _CODE.sub(told, _OWN_FIDELITY.sub(python, sentence))


def _with(option: str, value: str | None) -> str:
    """The option with a value written in Python."""
    if value in (None, "True"):
        return option
    if value == "False":
        return option.replace("--", "--no-", 1)
    if value[0].isalpha():  # a member of an enumeration
        value = value.rpartition(".")[2].lower().replace("_", "-")
    return f"{option} {value}"
