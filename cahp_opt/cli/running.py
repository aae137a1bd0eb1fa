"""One run of the command line, from the arguments to the exit code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from cahp_opt.cli.commands import COMMANDS, app
from cahp_opt.cli.errors import explain
from cahp_opt.cli.flattening import flags_of
from cahp_opt.cli.option_words import as_options
from cahp_opt.cli.outputs import InterruptedMeasurement
from cahp_opt.cli.stopping import stopping_in_order
from cahp_opt.cli.streams import never_failing_streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit code: 0; 2 for what the user can put right, told in one sentence on stderr; 130
        after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP, which clear up as Ctrl-C does.
    """
    with never_failing_streams(), stopping_in_order() as stop:
        code = _run(arguments)
        return code if stop.code is None or code != 130 else stop.code


def _run(arguments: Sequence[str] | None) -> int:
    """The exit code; 130 after any interruption."""
    code: object
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:  # advice of other libraries is for programmers
                warnings.simplefilter("ignore")
            app(args=arguments, prog_name="cahp")
        code = 0
    except SystemExit as done:
        code = done.code
    except KeyboardInterrupt:
        code = 130
    except InterruptedMeasurement as stop:
        print(f"cahp: {stop}", file=sys.stderr)
        return 130
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        given = sys.argv[1:] if arguments is None else arguments
        print(f"cahp: {as_options(sentence, *_commands(given))}", file=sys.stderr)
        return 2
    if code == 130:
        print("cahp: interrupted; nothing was written.", file=sys.stderr)
    return code if isinstance(code, int) else 0 if code is None else 2


def _commands(arguments: Sequence[str]) -> tuple[str | None, dict[str, dict[str, str]]]:
    """The command that was given, and of every command its options by argument."""
    options = {command.__name__: flags_of(command) for command in COMMANDS}
    return next((word for word in arguments if word in options), None), options
