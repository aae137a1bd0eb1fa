"""The model card beside saved weights."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import tiny_models as tiny
from tiny_models import run, uneven

from cahp_opt.costs.count_table import Cost
from cahp_opt.selection import Selection
from cahp_opt.solver import Status
from cahp_opt.space import Block, HeadSpace, Unit
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.checkpoints.card import model_card, write_card
from cahp_opt.torch.checkpoints.checkpoint import from_pretrained, save_pretrained
from cahp_opt.torch.slicing.slicing import selection_of, slice_heads

yaml: Any = pytest.importorskip("yaml")


def front_matter(card: str) -> dict[str, Any]:
    found = re.match(r"\A---\n(.*?)\n---\n", card, re.DOTALL)
    assert found
    read: dict[str, Any] = yaml.safe_load(found[1])
    return read


def selection() -> Selection:
    space = HeadSpace((("a|b.0", 3), ("a|b.1", 2)))  # type: ignore[arg-type]
    return Selection(
        space,
        np.array([True, False, True, False, False]),
        2.0,
        2.5,
        {"latency": Cost(0.003, 0.004, "s"), "memory": Cost(3, 4, "bytes"), "units": Cost(2, 3)},
        Status.FEASIBLE,
        "a relaxation",
        provenance={"model": "0123", "device": "one\nline | only"},
    )


def test_the_card_tells_what_was_kept_and_how_good_it_is() -> None:
    card = model_card(selection(), architecture="BertModel")
    for line in (
        "# BertModel with fewer attention heads",
        "This model keeps 2 of 5 prunable units of attention; the weights of the others are gone.",
        r"| a\|b.0 | 2 | 3 | head | 0 2 |",
        r"| a\|b.1 | 0 | 2 | head | none |",
        "| value of the objective | 2 |",
        "| certified upper bound | 2.5 |",
        "| gap | 25 % |",
        "| certificate | a relaxation |",
        "| predicted latency | 0.003 s of at most 0.004 s |",
        "| predicted memory | 3 bytes of at most 4 bytes |",
        "| predicted units | 2 of at most 3 |",
        "| model | 0123 |",
        r"| device | one line \| only |",
    ):
        assert line in card.splitlines(), line
    given = model_card(
        Selection.from_kept(HeadSpace.uniform(1, 2), [True, False]), architecture="X"
    )
    assert "bound" not in given and "gap" not in given


def test_the_card_gives_a_value_its_meaning() -> None:
    facts = {"objective": "explained-output"}
    told = model_card(
        replace(selection(), whole=4.0, provenance=facts), architecture="BertModel"
    ).splitlines()
    assert "| explained output | 2, 50.0 % of the unpruned model's |" in told
    assert "| certified upper bound | 2.5, 62.5 % of the unpruned model's |" in told


def test_the_card_of_neurons_states_their_numbers() -> None:
    heads = Block("0.attention", 2)
    neurons = [Block(f"{layer}.mlp", 4, Unit.NEURON_GROUP, tuple(range(8))) for layer in range(2)]
    alone = Selection.from_kept(HeadSpace(tuple(neurons)), [True, False, True, True, *[False] * 4])
    card = model_card(alone, architecture="X").splitlines()
    for line in (
        "# X with fewer feed-forward neurons",
        "This model keeps 3 of 8 groups of feed-forward neurons; the weights of the others are gone.",
        "| 0.mlp | 3 | 4 | neuron_group | 0 2 3 |",
        "Neurons (the intermediate size) of every feed-forward block, in the order of the table: 6, 0; "
        "before: 8.",
        "A block with 0 adds its bias alone; the weights hold one frozen group of it.",
    ):
        assert line in card, line
    assert front_matter("\n".join(card))["tags"] == ["cahp-opt", "feed-forward-pruning", "pruning"]
    both = HeadSpace((heads, *neurons)).unordered()
    for kept, fewer in (
        ([True] * 10, "units"),
        ([True, True, False, *[True] * 7], "feed-forward neurons"),
        ([False, True, *[True] * 8], "attention heads"),
        ([False] * 10, "attention heads and feed-forward neurons"),
    ):
        card = model_card(Selection.from_kept(both, kept), architecture="X").splitlines()
        assert f"# X with fewer {fewer}" in card
    told = "This model keeps 0 of 2 prunable units of attention and 0 of 8 groups of feed-forward neurons;"
    assert any(line.startswith(told) for line in card)
    assert not any("intermediate" in line for line in card)  # nobody stated how wide they are
    sizes = {"0.mlp": 8, "1.mlp": 12}
    told = "of the table: 0, 0; before: 8, 12."
    assert told in model_card(Selection.from_kept(both, kept), architecture="X", neurons=sizes)


def test_a_bound_that_is_not_known_is_not_a_number() -> None:
    chosen = selection()
    unbounded = Selection(chosen.space, chosen.kept, 2.0, math.inf, status=Status.FEASIBLE)
    card = model_card(unbounded, architecture="X")
    assert "| certified upper bound | none known |" in card and "| gap | unknown |" in card


def test_the_front_matter_is_yaml_that_the_hub_reads() -> None:
    card = model_card(selection(), architecture="X", base_model='odd: "name"')
    assert front_matter(card)["base_model"] == 'odd: "name"'
    plain = model_card(selection(), architecture="X")
    assert front_matter(plain) == {
        "library_name": "cahp-opt",
        "tags": ["cahp-opt", "attention-head-pruning", "pruning"],
    }
    data: Any = huggingface_hub.ModelCard(plain).data
    assert data.library_name == "cahp-opt"


def test_the_recipe_on_the_card_loads_the_model(tmp_path: Path) -> None:
    model = tiny.BERT.build()
    small = slice_heads(model, uneven(find_attention(model).space))
    save_pretrained(small, tmp_path / "pruned")
    card = (tmp_path / "pruned" / "README.md").read_text()
    recipe = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert recipe
    names: dict[str, Any] = {"directory": tmp_path / "pruned"}
    exec(recipe[1], names)
    assert run(names["model"], tiny.batch()).equal(run(small, tiny.batch()))


def test_a_readme_that_somebody_wrote_is_kept(tmp_path: Path) -> None:
    one = model_card(selection(), architecture="One")
    two = model_card(selection(), architecture="Two")
    assert write_card(tmp_path, one).name == "README.md"
    assert write_card(tmp_path, two).read_text() == two  # an unchanged card is replaced
    readme = tmp_path / "README.md"
    for mine in ("# Mine", two.replace("Two", "My Two"), two + "More.\n"):
        readme.write_text(mine)
        assert write_card(tmp_path, one).name == "cahp_card.md"
        assert readme.read_text() == mine
        assert (tmp_path / "cahp_card.md").read_text() == one


def test_overwriting_a_folder_keeps_its_edited_readme(tmp_path: Path) -> None:
    model = tiny.BERT.build()
    small, target = slice_heads(model, uneven(find_attention(model).space)), tmp_path / "pruned"
    save_pretrained(small, target)
    first = (target / "README.md").read_text()
    save_pretrained(small, target, overwrite=True)
    assert not (target / "cahp_card.md").exists()
    (target / "README.md").write_text("# Mine")
    save_pretrained(small, target, overwrite=True)
    assert (target / "README.md").read_text() == "# Mine"
    assert (target / "cahp_card.md").read_text() == first


def test_the_base_model_is_named_only_if_it_is_certain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "config.json"

    def look_up(repo_id: str, filename: str, **_: object) -> str | None:
        return str(cached) if (repo_id, filename) == ("org/base", "config.json") else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", look_up)
    model: Any = tiny.BERT.build()
    small: Any = slice_heads(model, uneven(find_attention(model).space))
    for name, expected in (("", None), ("runs/first", None), ("org/base", "org/base")):
        small.config._name_or_path = name
        save_pretrained(small, tmp_path / "pruned", overwrite=True)
        card = front_matter((tmp_path / "pruned" / "README.md").read_text())
        assert card.get("base_model") == expected
    loaded = from_pretrained(tmp_path / "pruned")  # its name is now that of a folder
    save_pretrained(loaded, tmp_path / "again")
    assert front_matter((tmp_path / "again" / "README.md").read_text())["base_model"] == "org/base"
    plan = selection_of(loaded)
    assert plan is not None and {"torch", "transformers", "cahp-opt"} <= plan.provenance.keys()


def test_paths_are_no_base_model(tmp_path: Path) -> None:
    model: Any = tiny.BERT.build()
    small: Any = slice_heads(model, uneven(find_attention(model).space))
    for name in (str(tmp_path), "a/b/c", "../x"):
        small.config._name_or_path = name
        save_pretrained(small, tmp_path / "pruned", overwrite=True)
        assert "base_model" not in front_matter((tmp_path / "pruned" / "README.md").read_text())
