"""The command ``cahp`` with all of its commands, in the order in which ``cahp --help`` shows them."""

from __future__ import annotations

from typing import Annotated

import typer

import cahp_opt
from cahp_opt.cli.comparing import compare
from cahp_opt.cli.demonstrating import demo
from cahp_opt.cli.exporting import export
from cahp_opt.cli.flattening import flattened
from cahp_opt.cli.measuring import calibrate, hardware, latency
from cahp_opt.cli.pruning import apply, prune
from cahp_opt.cli.selecting import select
from cahp_opt.cli.studying import study

COMMANDS = (prune, study, calibrate, latency, hardware, select, compare, apply, export, demo)

app = typer.Typer(
    name="cahp",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Choose which attention heads and feed-forward neurons a transformer keeps, under a latency "
    "budget measured on this machine, and make the model really smaller.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"cahp-opt {cahp_opt.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    del version


for command in COMMANDS:
    app.command()(flattened(command))
