"""Models of the hub: loaded by name, put there, and refused with a sentence that says why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="models need PyTorch")

import huggingface_hub
import numpy as np
import tiny_models
import torch
from command_line import make_tokenizer, prune, refused, sentences
from fake_hub import TOKEN, FakeHub, fake_hub, set_offline
from torch import nn

from cahp_opt.files.belongings import write_list
from cahp_opt.torch import (
    find_attention,
    from_pretrained,
    push_to_hub,
    save_pretrained,
    slice_heads,
)
from cahp_opt.torch.checkpoints.load_errors import ModelError
from cahp_opt.torch.checkpoints.model_loading import load_model, load_tokenizer


@pytest.fixture(scope="module")
def sliced() -> nn.Module:
    model = tiny_models.BERT.build()
    small: nn.Module = slice_heads(model, np.arange(find_attention(model).space.n) % 3 > 0)
    return small


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(monkeypatch, tmp_path / "cache") as found:
        yield found


@pytest.fixture
def there(hub: FakeHub, sliced: nn.Module, tmp_path: Path) -> FakeHub:
    """With a sliced model, weights of something else in it, and an unpruned model."""
    save_pretrained(sliced, tmp_path / "saved", tokenizer=make_tokenizer())
    (tmp_path / "saved" / "onnx").mkdir()
    (tmp_path / "saved" / "onnx" / "other.safetensors").write_bytes(b"large")
    hub.add("some/pruned", tmp_path / "saved")
    stock: Any = tiny_models.BERT.build(bare=True)
    stock.save_pretrained(tmp_path / "stock")
    make_tokenizer().save_pretrained(tmp_path / "stock")
    hub.add("some/stock", tmp_path / "stock")
    return hub


def same(mine: nn.Module, theirs: nn.Module) -> bool:
    batch = tiny_models.batch()
    return torch.equal(tiny_models.run(mine, batch), tiny_models.run(theirs, batch))


def test_a_sliced_model_by_name(
    there: FakeHub, sliced: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert same(from_pretrained("some/pruned"), sliced)
    assert "cahp_weights.safetensors" in there.asked
    assert "onnx/other.safetensors" not in there.asked
    asked = len(there.asked)
    commit = there.commit("some/pruned")
    assert same(from_pretrained("some/pruned", revision=commit), sliced)
    assert same(load_model("some/pruned"), sliced)
    assert len(there.asked) == asked  # from the cache
    assert load_tokenizer("some/pruned").get_vocab() == make_tokenizer().get_vocab()
    set_offline(monkeypatch, True)
    assert same(from_pretrained("some/pruned"), sliced)


def test_a_folder_of_that_name_wins(
    there: FakeHub, sliced: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_pretrained(sliced, "some/pruned")
    assert same(from_pretrained("some/pruned", token=TOKEN), sliced)
    assert not there.asked


def test_nothing_large_is_downloaded_of_an_unpruned_model(there: FakeHub) -> None:
    with pytest.raises(ModelError, match="some/stock on the hub is no sliced model; load it with"):
        from_pretrained("some/stock")
    assert "model.safetensors" not in there.asked
    assert type(load_model("some/stock")).__name__ == "BertModel"


LOADERS: dict[str, Callable[[str], object]] = {"python": from_pretrained, "command": load_model}


@pytest.mark.parametrize("loader", LOADERS)
def test_what_the_hub_says_is_told_apart(loader: str, there: FakeHub) -> None:
    load = LOADERS[loader]
    there.gated.add("some/pruned")
    with pytest.raises(ModelError, match=r"gated on the hub; ask for access .*`hf auth login`"):
        load("some/pruned")
    there.gated.clear()
    there.private.add("some/pruned")
    with pytest.raises(ModelError, match="no such model; .* a private one log in with `hf auth"):
        load("some/pruned")
    with pytest.raises(ModelError, match="no such folder, and the hub shows no such model"):
        load("some/nowhere")


def test_who_is_logged_in_is_told_what_helps(there: FakeHub, sliced: nn.Module) -> None:
    there.private.add("some/pruned")
    with pytest.raises(ModelError, match="no such model to this account; .* ask its owner"):
        from_pretrained("some/pruned", token="hf_other")
    assert same(from_pretrained("some/pruned", token=TOKEN), sliced)
    with pytest.raises(ModelError, match="no such revision on the hub; name a branch"):
        from_pretrained("some/pruned", token=TOKEN, revision="v2")


def test_no_network(there: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    set_offline(monkeypatch, True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids"):
        from_pretrained("some/pruned")
    set_offline(monkeypatch, False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="the hub cannot be reached; check the name and the conn"):
        from_pretrained("some/pruned")


@pytest.mark.parametrize("name", ["no-folder", "../no/folder", "./pruned", "/no/folder"])
def test_what_can_only_be_a_folder_is_not_sought_on_the_hub(name: str, hub: FakeHub) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        from_pretrained(name)


# -- pushing ---------------------------------------------------------------------------------------


def test_pushed_and_loaded(hub: FakeHub, sliced: nn.Module) -> None:
    url = push_to_hub(sliced, "me/pruned", tokenizer=make_tokenizer(), token=TOKEN)
    assert url.endswith(hub.commit("me/pruned"))
    files = hub.models["me/pruned"]
    assert {"cahp_weights.safetensors", "README.md", "tokenizer.json"} <= files.keys()
    assert same(from_pretrained("me/pruned"), sliced)
    push_to_hub(sliced, "me/pruned", token=TOKEN, max_shard_size="20KB")
    assert "cahp_weights.safetensors" not in files and "tokenizer.json" in files
    assert same(from_pretrained("me/pruned"), sliced)


def test_what_an_earlier_model_brought_is_not_read_as_this_one(
    hub: FakeHub, sliced: nn.Module, tmp_path: Path
) -> None:
    """The pooling of an embedder; and what was never part of a pruned model stays."""
    save_pretrained(sliced, tmp_path / "saved")
    (tmp_path / "saved" / "1_Pooling").mkdir()
    names = ("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json")
    for name in names:
        (tmp_path / "saved" / name).write_text("[]", encoding="utf-8")
    write_list(tmp_path / "saved")
    hub.add("me/pruned", tmp_path / "saved")
    files = hub.models["me/pruned"]
    files["2_Mine/config.json"] = b"{}"
    push_to_hub(sliced, "me/pruned", token=TOKEN)
    assert not files.keys() & set(names) and "2_Mine/config.json" in files


def test_nothing_of_somebody_else_is_replaced(hub: FakeHub, sliced: nn.Module) -> None:
    files = hub.models["me/pruned"] = {"README.md": b"# Mine\n"}
    push_to_hub(sliced, "me/pruned", token=TOKEN)
    assert files["README.md"] == b"# Mine\n" and "cahp_card.md" in files
    hub.models["me/stock"] = {"model.safetensors": b"weights"}
    with pytest.raises(
        ModelError, match="weights of another model .model.safetensors.*name another"
    ):
        push_to_hub(sliced, "me/stock", token=TOKEN)
    assert hub.models["me/stock"] == {"model.safetensors": b"weights"}


def test_what_the_hub_does_not_take(
    hub: FakeHub, sliced: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="me/pruned cannot be pushed: nobody is logged in"):
        push_to_hub(sliced, "me/pruned")
    with pytest.raises(ModelError, match=r"may not write there \(403\); name a repository of your"):
        push_to_hub(sliced, "other/pruned", token=TOKEN)
    with pytest.raises(ModelError, match="has no such revision; make the branch"):
        push_to_hub(sliced, "me/pruned", token=TOKEN, revision="v2")
    with pytest.raises(ModelError, match="the form `owner/name`"):
        push_to_hub(sliced, "me/a/b", token=TOKEN)
    with pytest.raises(ValueError, match="was not sliced"):
        push_to_hub(tiny_models.BERT.build(), "me/pruned", token=TOKEN)
    set_offline(monkeypatch, True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids to use the network; unset it"):
        push_to_hub(sliced, "me/pruned", token=TOKEN)


# -- code that comes with a model ------------------------------------------------------------------

CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

Path({ran!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own-llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A decoder with code of its own, which leaves a file behind when it runs."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks on the terminal"))
    folder = tmp_path / "own"
    model: Any = tiny_models.LLAMA_GQA.build()
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "modeling_own.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own-llama", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_code_of_a_model_runs_only_if_it_is_trusted(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "texts.txt"
    text.write_text("\n".join(sentences(30)))
    run = partial(prune, own, tmp_path / "out", "--text", text, "--heads", "4")
    refused(capsys, 2, "code of its own", "if you trust it, pass `--trust-remote-code`", run=run)
    assert not (tmp_path / "ran").exists()
    options = ["--heads", "4", "--trust-remote-code", "--recovery", "none"]
    assert prune(own, tmp_path / "out", "--text", text, *options) == 0
    assert (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="`trust_remote_code=True` if its code is in the folder"):
        from_pretrained(tmp_path / "out")
    again = from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert type(again).__name__ == "OwnForCausalLM"
    assert find_attention(again).space.n == 4
