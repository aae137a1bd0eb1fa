"""Commands that take records: one option of the terminal for every field, packed again for the command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from inspect import Parameter, Signature
from typing import Any, get_args, get_origin, get_type_hints

import typer

from cahp_opt.cli.launching import launched
from cahp_opt.cli.unused_options import Given
from cahp_opt.runs.options import Option, option_of

_VALUES: Mapping[type, str] = {int: "N", float: "X", str: "TEXT"}


def flattened(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer reads it, with a parameter for every option of the records that it takes.

    Args:
        command: a function of records. Fields with an option become options of the record's ``topic``;
            fields that are records are flattened in their place. A parameter that is a :class:`Given` gets
            what was given.
    """
    kinds = get_type_hints(command)
    kinds.pop("return")
    parameters = [Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for kind in kinds.values():
        if kind is not Given:
            parameters += _parameters(kind)

    def run(context: typer.Context, **values: Any) -> None:
        records = {
            name: Given.of(context, values) if kind is Given else _packed(kind, values)
            for name, kind in kinds.items()
        }
        with launched(command.__name__):
            command(**records)

    run.__name__, run.__doc__ = command.__name__, _flowing(command.__doc__ or "")
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(run)["__signature__"] = Signature(parameters)
    return run


def flags_of(command: Callable[..., None]) -> dict[str, str]:
    """The options of a command by the names of the fields, and by the enumerations their values are of."""
    kinds = get_type_hints(command)
    kinds.pop("return")
    return dict(pair for kind in kinds.values() if kind is not Given for pair in _flags(kind))


def _flags(kind: type[Any]) -> Iterator[tuple[str, str]]:
    for field, form, told in _fields(kind):
        if told is None:
            yield from _flags(form)
        elif told.flag.startswith("-"):
            flag = told.flag.split("/")[0]
            yield field.name, flag
            for part in get_args(form) or (form,):
                if isinstance(part, type) and issubclass(part, Enum):
                    yield part.__name__, flag


def _fields(kind: type[Any]) -> Iterator[tuple[Field[Any], Any, Option | None]]:
    """The fields that hold options or records, with their types."""
    types = get_type_hints(kind)
    for field in fields(kind):
        told = option_of(field.metadata)
        if told is not None or is_dataclass(types[field.name]):
            yield field, types[field.name], told


def _parameters(kind: type[Any]) -> Iterator[Parameter]:
    for field, form, told in _fields(kind):
        if told is None:
            yield from _parameters(form)
            continue
        default: Any = ... if field.default is MISSING else field.default
        short, choices = _kind_of_value(form)
        if get_origin(form) is tuple:
            default, form = None, list[get_args(form)[0]] | None  # type: ignore[misc]
        if told.flag.startswith("-"):
            topic: str = kind.topic
            named = all(choice in told.help for choice in choices)
            shown: Any = typer.Option(
                default,
                told.flag,
                help=told.help if named else f"{told.help} One of {', '.join(choices)}.",
                min=told.min,
                metavar=told.metavar or short,
                rich_help_panel=topic,
            )
        else:
            shown = typer.Argument(default, metavar=told.flag, help=told.help)
        yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=shown, annotation=form)


def _kind_of_value(form: Any) -> tuple[str | None, list[str]]:
    """The placeholder of a value in the help, short enough for 80 columns, and its choices, if
    any."""
    for kind in get_args(form) or (form,):
        if isinstance(kind, type):
            if issubclass(kind, Enum):
                return "NAME", [str(member.value) for member in kind]
            if kind in _VALUES:
                return _VALUES[kind], []
    return None, []


def _flowing(text: str) -> str:
    """The paragraphs of a docstring without the line breaks of the source."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _packed(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """The record of these values, with tuples for lists."""
    packed: dict[str, Any] = {}
    for field, form, told in _fields(kind):
        if told is None:
            packed[field.name] = _packed(form, values)
        else:
            value = values[field.name]
            packed[field.name] = tuple(value or ()) if get_origin(form) is tuple else value
    return kind(**packed)
