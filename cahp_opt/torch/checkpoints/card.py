"""The model card of a saved model: what was kept, how to load it, and where it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from cahp_opt.files.belongings import CARD_FILE, CARD_SEAL, card_digest, is_own_card
from cahp_opt.reports.wording import objective_meaning, share_of_whole
from cahp_opt.selection import Selection

SPARE_CARD_FILE = "cahp_card.md"
"""Where a card is written if somebody else's README.md is there."""

_LABELS = {
    "bound": "certified upper bound",
    "gap": "gap",
}


def model_card(
    selection: Selection,
    *,
    architecture: str,
    auto_class: str | None = None,
    base_model: str | None = None,
    provenance: Mapping[str, str] | None = None,
    neurons: Mapping[str, int] | None = None,
) -> str:
    """The text of a card, Markdown with a YAML front matter.

    Args:
        selection: what the model keeps of the original one.
        architecture: name of the model's class.
        auto_class: the Auto class of transformers that loads the folder without this library; None if
            none does.
        base_model: hub id of the original model, if it is known.
        provenance: facts to list; the selection's own if None.
        neurons: by name of the feed-forward block, how many neurons the original has; None for those
            that the selection states itself.
    """
    widths = _widths(selection) if neurons is None else neurons
    told = _lines(selection, architecture, auto_class, base_model, provenance, widths)
    body = "\n".join(told)
    return f"{body}\n{CARD_SEAL}{card_digest(body)} -->\n"


def write_card(folder: Path, card: str, old: Path | None = None) -> Path:
    """Write a card into a folder, never over a README.md that somebody wrote or edited.

    Args:
        folder: where to write it.
        card: the text, from :func:`model_card`.
        old: a README.md that stays where ``folder`` is going to be, if somebody wrote or edited it.

    Returns:
        The file written: README.md, or ``cahp_card.md`` beside one that is kept.
    """
    target = folder / CARD_FILE
    there = [path for path in (target, old) if path is not None and path.is_file()]
    if not all(is_own_card(path) for path in there):
        target = folder / SPARE_CARD_FILE
    target.write_text(card, encoding="utf-8")
    return target


def give_way(folder: Path, old: Path) -> None:
    """Rename the card in a folder that is going to be where somebody's own README.md stays."""
    if old.is_file() and not is_own_card(old) and (folder / CARD_FILE).is_file():
        (folder / CARD_FILE).rename(folder / SPARE_CARD_FILE)


def _lines(
    selection: Selection,
    architecture: str,
    auto_class: str | None,
    base_model: str | None,
    provenance: Mapping[str, str] | None,
    neurons: Mapping[str, int],
) -> Iterator[str]:
    yield "---"
    yield "library_name: cahp-opt"
    if base_model is not None:
        yield f"base_model: {json.dumps(base_model)}"  # a JSON string is a YAML string
    kinds = _kinds(selection)
    yield "\n".join(["tags:", "- cahp-opt", *(f"- {kind.tag}" for kind in kinds), "- pruning"])
    yield "---\n"
    origin = f" of `{base_model}`" if base_model is not None else ""
    fewer = " and ".join(kind.fewer for kind in kinds if kind.kept < kind.units or len(kinds) == 1)
    yield f"# {architecture} with fewer {fewer or 'units'}\n"
    parts = " and ".join(f"{kind.kept} of {kind.units} {kind.called}" for kind in kinds)
    yield f"This model{origin} keeps {parts}; the weights of the others are gone.\n"
    yield "## Loading\n"
    yield from _loading(auto_class)
    yield "## What was kept\n"
    yield "| block | kept | of | unit | ids |"
    yield "|---|---:|---:|---|---|"
    rows = zip(selection.space.blocks, selection.counts, selection.heads().values(), strict=True)
    for block, count, ids in rows:
        shown = " ".join(str(i) for i in ids) or "none"
        yield f"| {_cell(block.name)} | {count} | {block.units} | {block.unit.value} | {shown} |"
    yield from _sizes(selection, neurons)
    facts = dict(_facts(selection))
    facts |= selection.provenance if provenance is None else provenance
    facts |= dict(selection.basis.in_words())
    if facts:
        yield "\n## Where it came from\n"
        yield "| | |\n|---|---|"
        for name, value in facts.items():
            yield f"| {_cell(_LABELS.get(name, name))} | {_cell(value)} |"
    yield ""


def _loading(auto_class: str | None) -> Iterator[str]:
    if auto_class is not None:
        yield (
            "With transformers alone; `trust_remote_code` lets it run `modeling_cahp.py`, which is in this "
            "folder and builds the modules as they are here:\n"
        )
        yield f"```python\nfrom transformers import {auto_class}\n"
        yield "# `directory`: this folder, or its name on the hub"
        yield f"model = {auto_class}.from_pretrained(directory, trust_remote_code=True)\n```\n"
        yield "With cahp-opt, which can also prune it further:\n"
    yield "```python\nfrom cahp_opt.torch import from_pretrained\n"
    yield "# `directory`: this folder, or its name on the hub"
    yield "model = from_pretrained(directory)\n```\n"
    yield (
        f"{'Without `trust_remote_code` the' if auto_class else 'The'} stock `from_pretrained` of transformers "
        "finds no weights here and says so. That is on purpose: the configuration describes the unpruned "
        "model, so under the usual file name and with `ignore_mismatched_sizes=True` the stock loader would "
        "replace the pruned weights by random ones.\n"
    )


class _Kind(NamedTuple):
    """The blocks of one kind: how they are called, and how many of their units are kept."""

    tag: str
    fewer: str
    called: str
    kept: int
    units: int


def _kinds(selection: Selection) -> list[_Kind]:
    space = selection.space
    heads = ("attention-head-pruning", "attention heads", "prunable units of attention")
    neurons = ("feed-forward-pruning", "feed-forward neurons", "groups of feed-forward neurons")
    found = [
        _Kind(*words, int(selection.counts[own].sum()), int(space.units[own].sum()))
        for words, own in ((heads, space.of_attention), (neurons, ~space.of_attention))
    ]
    return [kind for kind in found if kind.units]


def _widths(selection: Selection) -> dict[str, int]:
    blocks = selection.space.blocks
    return {block.name: len(block.order) for block in blocks if block.order is not None}


def _sizes(selection: Selection, neurons: Mapping[str, int]) -> Iterator[str]:
    """The width of every feed-forward block, which tools that serve a model want to know."""
    rows = zip(selection.space.blocks, selection.counts.tolist(), strict=True)
    left = [
        (neurons[block.name] * count // block.units, neurons[block.name])
        for block, count in rows
        if block.name in neurons
    ]
    if left:
        sizes, before = ([str(pair[i]) for pair in left] for i in (0, 1))
        of = before[0] if len({*before}) == 1 else ", ".join(before)
        yield (
            "\nNeurons (the intermediate size) of every feed-forward block, in the order of the table: "
            f"{', '.join(sizes)}; before: {of}."
        )
    if any(size == 0 for size, _ in left):
        yield "A block with 0 adds its bias alone; the weights hold one frozen group of it."


def _facts(selection: Selection) -> Iterator[tuple[str, str]]:
    if math.isfinite(selection.value):
        known = math.isfinite(selection.bound)
        yield objective_meaning(selection).name, _of_whole(selection, selection.value)
        yield "bound", _of_whole(selection, selection.bound) if known else "none known"
        yield "gap", f"{100 * selection.gap:.3g} %" if known else "unknown"
        yield "certificate", selection.certificate
    yield "status", selection.status.value
    for name, cost in selection.costs.items():
        after = f" {cost.unit}" if cost.unit else ""
        told = f"{cost.value:.6g}{after} of at most {cost.limit:.6g}{after}"
        yield f"predicted {name}", told


def _of_whole(selection: Selection, value: float) -> str:
    """A value of the objective, and its share of the unpruned model's where that is known."""
    share = selection.of_whole(value)
    told = "" if math.isnan(share) else f", {share_of_whole(share)} of the unpruned model's"
    return f"{value:.6g}{told}"


def _cell(text: str) -> str:
    """Text that cannot leave its cell."""
    return " ".join(text.split()).replace("|", "\\|")
