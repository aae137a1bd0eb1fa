"""Output files of a command: refused early if they could not be written, kept if interrupted."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from cahp_opt.cli.notes import note
from cahp_opt.cli.summary import summary
from cahp_opt.costs.workloads import Workload
from cahp_opt.files.belongings import Belongings, some
from cahp_opt.files.folders import check_free
from cahp_opt.files.records import RecordError, is_record
from cahp_opt.runs.plan import OutputOptions
from cahp_opt.runs.report import Report


class InterruptedMeasurement(Exception):
    """Ctrl-C or a signal came while something could be kept; the sentence says what."""


@contextmanager
def kept_runs(output: Path, workloads: Iterable[Workload]) -> Generator[dict[str, Path]]:
    """Files beside ``output`` that keep timed runs, by workload, until the body has ended well."""
    files = {w.name: output.with_name(f"{output.name}.{w.name}.jsonl") for w in workloads}
    try:
        yield files
    except RecordError:  # which may be about these files
        raise
    except (KeyboardInterrupt, Exception) as stop:
        runs = [str(path) for path in files.values() if path.exists()]
        if not runs:
            raise
        told = f"the runs so far are in {', '.join(runs)}, and the same command resumes from there."
        if isinstance(stop, KeyboardInterrupt):
            raise InterruptedMeasurement(f"interrupted; {told}") from None
        note([told])
        raise
    for path in files.values():
        path.unlink(missing_ok=True)


def check_folder(
    output: OutputOptions, model: str | None = None, option: str = "--output-dir"
) -> None:
    """Refuse an output folder that could not be written, and note which files go and which stay.

    Args:
        output: the folder.
        model: the model that is read, which must not be there.
        option: the option that names the folder.

    Raises:
        ValueError: if it could not.
    """
    path = output.output_dir
    if model is not None and path.is_dir() and Path(model).resolve() == path.resolve():
        raise ValueError(
            f"`{option}` {path} is the folder of the model that is to be pruned; name another one."
        )
    try:
        there = check_free(path, overwrite=output.overwrite)
    except FileExistsError as error:
        raise ValueError(f"`{option}` {error}") from None
    if there.ours:
        note([f"{path}: {some(there.ours)} will be replaced in the end."])
    if there.foreign:
        stay = "stays" if len(there.foreign) == 1 else "stay"
        note([f"{path}: {some(there.foreign)} {stay}, which this command did not write."])
    check_writable(path)


def check_file(path: Path, *kinds: str) -> None:
    """Refuse an output file that could not be written, or that is not an earlier record."""
    if path.is_dir():
        raise ValueError(f"`--output` {path} is a folder; name a file.")
    if path.is_file() and path.stat().st_size and not is_record(path, *kinds):
        raise ValueError(
            f"`--output` {path} is not a {kinds[0]} that this command wrote before, so it is not replaced; name "
            "another file."
        )
    if path.is_file() and path.name in Belongings.of(path.parent).ours:
        raise ValueError(
            f"`--output` {path} belongs to the model that was saved in {path.parent}; name another file."
        )
    check_writable(path)


def check_writable(path: Path) -> None:
    """Refuse a place in which nothing can be made."""
    above = path.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written, because nothing can be made in {above}.")


def show(report: Report, folder: Path) -> None:
    """Show the result of a run on stdout: one screen, and where the rest is."""
    for line in summary(report, str(folder), width=min(Console().width, 100)):
        print(line)
