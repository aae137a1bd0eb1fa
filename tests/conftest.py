"""How the tests run: two workers with one thread each, the same random instances every time, without
a clock; and the recorder of what works for which architecture."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before NumPy or torch are imported, here and in every process that a test starts: the models are tiny,
# and threads of two workers would only be in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What they import is compiled once, and not by every process anew, whatever the environment says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
from hypothesis import HealthCheck, settings
from support_recorder import SupportRecorder

sys.dont_write_bytecode = False
# What is imported and collected stays, and is not searched for garbage: neither while it comes nor, see
# `pytest_runtestloop`, while tests run.
gc.disable()

settings.register_profile(
    "default",
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=250)
settings.load_profile("default")

WORKERS = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--support-json",
        metavar="FILE",
        type=Path,
        help="write which check passed for which architecture to FILE",
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads its options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite in two processes, and named files in this one, unless ``-n`` says otherwise."""
    option = config.option
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    worker = hasattr(config, "workerinput")
    # Without pytest-xdist there is no such option, and everything runs here.
    if worker or named or option.usepdb or getattr(option, "numprocesses", 0) is not None:
        return
    option.numprocesses = WORKERS
    if option.dist == "no":
        option.dist = "worksteal"  # neighbours stay together, with what their module has built


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the documents that run for long first, each before a short one.

    A worker is handed two to begin with, and must not be left with two long ones at the end.
    """
    documents = [item for item in items if item.get_closest_marker("documents")]
    documents.sort(key=_seconds)
    ends = [documents.pop(-1 if i % 2 == 0 else 0) for i in range(min(2 * WORKERS, len(documents)))]
    rest = [item for item in items if not item.get_closest_marker("documents")]
    items[:] = [*ends, *reversed(documents), *rest]


@pytest.hookimpl(tryfirst=True)  # before the loop of whoever runs the tests
def pytest_runtestloop() -> None:
    """Search for garbage from here on, rarely, and in what comes from here on alone."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 10)
    gc.enable()


def _seconds(item: pytest.Item) -> float:
    marker = item.get_closest_marker("documents")
    return 0.0 if marker is None else marker.args[0]


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--support-json")
    if path is not None:
        config.pluginmanager.register(SupportRecorder(path), "support-recorder")


@pytest.fixture(scope="module")
def modules_of_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where transformers puts the code that it runs, which is no place of the user's."""
    place = tmp_path_factory.mktemp("modules")
    (place / "__init__.py").touch()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            patch.delitem(sys.modules, name)
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(place))
        patch.setattr(sys, "path", [str(place), *sys.path])
        yield
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            del sys.modules[name]


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where matplotlib is not installed: for commands whose pictures nothing is said about."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.fixture
def threads() -> Iterator[None]:
    """The commands set the process's number of threads."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier and its tokenizer."""
    from command_line import save_model

    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty texts."""
    from command_line import sentences

    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n\n".join(sentences(60)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder and its tokenizer."""
    import tiny_models
    from command_line import make_tokenizer

    folder = tmp_path_factory.mktemp("models") / "decoder"
    model: Any = tiny_models.LLAMA_GQA.build(bare=False, num_hidden_layers=1)
    model.save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return folder
