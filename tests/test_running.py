"""How the tests are spread over processes, and that the support table hears of all of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
TESTS = """
import os, warnings
from pathlib import Path
import pytest

@pytest.mark.parametrize("build", ["bert", "gpt2", "t5"])
@pytest.mark.support("mask")
def test_masks(build, request):
    folder = Path(os.environ["SEEN"])
    worker = os.environ.get("PYTEST_XDIST_WORKER", "none")
    (folder / f"{build} {worker} {os.environ['OMP_NUM_THREADS']}").touch()
    if build == "gpt2":
        pytest.skip("it has none")
    assert build != "t5", "wrong"

@pytest.mark.support("reload")
@pytest.mark.parametrize("build", ["bert"])
def test_warnings_are_errors(build):
    with pytest.raises(UserWarning):
        warnings.warn("careful", stacklevel=1)
"""


@pytest.mark.parametrize(
    ("options", "workers"),
    [([], {"gw0", "gw1"}), (["-n", "0"], {"none"}), (["tests/test_some.py"], {"none"})],
    ids=["everything", "everything in one process", "a file"],
)
def test_two_workers_unless_a_file_is_named(
    options: list[str], workers: set[str], tmp_path: Path
) -> None:
    pytest.importorskip("xdist", reason="the test extra is not installed")
    tests, seen, found = tmp_path / "tests", tmp_path / "seen", tmp_path / "support.json"
    tests.mkdir()
    seen.mkdir()
    (tests / "test_some.py").write_text(TESTS)
    shutil.copy(FOLDER.parent / "pyproject.toml", tmp_path)
    for file in ("conftest.py", "support_recorder.py"):
        shutil.copy(FOLDER / file, tests)
    command = [sys.executable, "-m", "pytest", "-q", "--support-json", str(found)]
    outer = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment = {**outer, "SEEN": str(seen)}
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and "1 failed, 2 passed, 1 skipped" in done.stdout, done.stdout
    names = [path.name.split() for path in seen.iterdir()]
    assert {worker for _, worker, _ in names} == workers
    assert {threads for _, _, threads in names} == {os.environ["OMP_NUM_THREADS"]}
    builds = json.loads(found.read_text())["builds"]
    assert {name: found["mask"] for name, found in builds.items()} == {
        "bert": {"outcome": "passed"},
        "gpt2": {"outcome": "skipped", "why": "it has none"},
        "t5": {"outcome": "failed", "why": "AssertionError: wrong"},
    }
    assert builds["bert"]["reload"] == {"outcome": "passed"}
