"""Studies: what they find, and that nothing is computed twice, whatever stops them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import joblib
import pytest
import tiny_models
from command_line import make_tokenizer, sentences
from tokenizers import Tokenizer

from cahp_opt import Budget, HeadSpace
from cahp_opt.costs.provenance import Phase
from cahp_opt.costs.prune import Prune
from cahp_opt.costs.workloads import Workload
from cahp_opt.methods import Fisher, Michel, Random
from cahp_opt.runs.method import Method, Task
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.study_texts import StudyTexts
from cahp_opt.runs.texts import Example
from cahp_opt.selection import Chooser, Selection
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.pooling import Pooling
from cahp_opt.studies.outcome import Cell
from cahp_opt.studies.study import Study
from cahp_opt.torch import evaluate, find_attention, slice_heads, study
from cahp_opt.torch.pipeline.repairing import repair
from cahp_opt.torch.slicing.timing_copies import timing_copy
from cahp_opt.torch.studies import choosing, draws, judging, running, timing
from cahp_opt.torch.studies.choosing import WatchedTask
from cahp_opt.torch.studies.outlook import Outlook
from cahp_opt.torch.texts.encoding import encode
from cahp_opt.torch.texts.scored_pairs import PAIR_NOTE

pytestmark = pytest.mark.usefixtures("threads")

TEXTS = sentences(40)
QUICK = (Workload(1, 8, 1),)
BOTH = (Recovery.NONE, Recovery.REFIT)


@dataclass(frozen=True)
class Refuses(Method):
    """A method that refuses to choose."""

    source: ClassVar[str] = "these tests"

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        raise ValueError("no unit is good enough.")


@dataclass(frozen=True)
class Fixed(Method):
    """Keeps one block whole, and one unit of every other."""

    source: ClassVar[str] = "these tests"
    whole: int = 0

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        def choose(budget: Budget) -> Selection:
            kept = budget.space.join(
                {
                    b.name: range(4 if i == self.whole else 1)
                    for i, b in enumerate(budget.space.blocks)
                }
            )
            return Selection.from_kept(budget.space, kept)

        return choose


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny classifier."""
    return tiny_models.BERT.build()


def run(model: Any, folder: Path, texts: Sequence[str | Example] = TEXTS, **options: Any) -> Study:
    """A quick study of some methods."""
    usual: dict[str, Any] = {
        "methods": [Michel(), Random()],
        "limits": ["8 heads"],
        "recoveries": BOTH,
        "seeds": 2,
        "held_out": 8,
        "max_texts": 24,
        "workloads": QUICK,
        "prune": Prune.HEADS,
    }
    tokenizer = options.pop("tokenizer", None) or make_tokenizer()
    return study(model, tokenizer, texts, **{**usual, **options}, output_dir=folder)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of what is really done, in order."""
    done = list[str]()
    for module, name in (
        (draws, "calibrate_kinds"),
        (choosing, "chooser_of"),
        (judging, "slice_found"),
    ):
        real = getattr(module, name)

        def logged(*args: Any, _real: Any = real, _name: str = name, **options: Any) -> Any:
            done.append(_name)
            return _real(*args, **options)

        monkeypatch.setattr(module, name, logged)
    yield done


def test_every_cell_has_an_outcome_that_is_true(model: Any, tmp_path: Path, log: list[str]) -> None:
    found = run(model, tmp_path)
    assert len(found.outcomes) == 2 * 1 * 2 * 2 and not found.missing
    assert found.space == find_attention(model).space
    for outcome in found.outcomes:
        assert outcome.kept.sum() <= 8
        assert outcome.times["prefill"].ratio > 0
        assert ("refit" in outcome.seconds) == (outcome.cell.recovery == "refit")
    first = next(o for o in found.outcomes if o.cell == Cell("michel", "8 heads", "none", 0))
    held_out = StudyTexts.of(TEXTS, 8, most=24).held_out
    batches = encode(held_out, make_tokenizer(), model, batch_size=32, max_length=128)
    by_hand = evaluate(model, slice_heads(model, first.kept), batches).figures
    assert first.scores.value("kl") == pytest.approx(by_hand["kl"], rel=1e-5)
    # A choice that does not look at the recovery is made once, and a draw is measured once.
    assert log.count("calibrate_kinds") == 2 and log.count("chooser_of") == 4
    again = Study.load(tmp_path / "study.safetensors")
    assert [o.cell for o in again.outcomes] == [o.cell for o in found.outcomes]


def test_scored_pairs_are_judged_by_their_correlation(tmp_path: Path) -> None:
    pairs = [Example(a, b, str(i % 5)) for i, (a, b) in enumerate(pairwise(TEXTS))]
    embedder = tiny_models.BERT.build(bare=True)
    found = run(embedder, tmp_path, pairs, seeds=1, recoveries=[Recovery.NONE])
    assert found.unpruned.headline.name == "spearman" and found.unpruned.examples == 7
    few, about_pairs = found.notes[-1], found.notes[-2]
    assert about_pairs == PAIR_NOTE and few.startswith("the figures compare 7 texts only")
    assert not found.missing
    with pytest.raises(ValueError, match="needs labelled texts"):  # scores are no labels
        run(embedder, tmp_path, pairs, methods=[Fisher()])


def test_held_out_texts_that_cannot_be_judged_on_are_refused_at_once(
    model: Any, tmp_path: Path
) -> None:
    wrong = [Example(TEXTS[0], label="0"), Example(TEXTS[1], label="sad")]
    with pytest.raises(ValueError, match="`label` 'sad' is not one of the model's"):
        run(model, tmp_path, TEXTS[2:], held_out=wrong)
    assert not (tmp_path / "statistics").exists()


def test_texts_of_ones_own(model: Any, tmp_path: Path) -> None:
    """They are drawn from as they stand, judged on as a whole, and named; and a number of heads is about heads."""
    texts = StudyTexts(tuple(map(Example, TEXTS[:20])), tuple(map(Example, TEXTS[20:])), 20, "mine")
    quick: dict[str, Any] = {
        "methods": [Random()],
        "limits": ["8 heads"],
        "recoveries": [Recovery.NONE],
        "seeds": 1,
        "workloads": QUICK,
        "output_dir": tmp_path,
    }
    found = study(model, make_tokenizer(), texts, **quick)
    assert (found.data, found.unpruned.examples) == ("mine", 20)
    assert found.space.of_attention.all() and "all 20 texts are drawn" in found.notes[0]
    with pytest.raises(ValueError, match="`max_texts` is given, but `texts` are StudyTexts"):
        study(model, make_tokenizer(), texts, max_texts=9, **quick)


def test_an_interrupted_study_resumes_and_a_larger_one_costs_what_is_new(
    model: Any, tmp_path: Path, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [3]

    def stops(*args: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        repair(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(judging, "repair", stops)
        with pytest.raises(KeyboardInterrupt):
            run(model, tmp_path)
    before = len(list((tmp_path / "judged").glob("*.json")))
    assert before == 3
    log.clear()
    whole = run(model, tmp_path)
    assert len(whole.outcomes) == 8 and "calibrate_kinds" not in log
    judged = len(list((tmp_path / "judged").glob("*.json")))
    assert log.count("slice_found") == judged - before
    log.clear()
    times = [outcome.times["prefill"] for outcome in whole.outcomes]
    same = run(model, tmp_path)
    assert not log and [outcome.times["prefill"] for outcome in same.outcomes] == times
    run(model, tmp_path, methods=[Michel(), Random()], limits=["8 heads", "4 heads"], seeds=1)
    assert "calibrate_kinds" not in log and log.count("chooser_of") == 2


def test_neurons_stand_in_the_order_that_suits_the_recovery(
    model: Any, tmp_path: Path, log: list[str]
) -> None:
    both: dict[str, Any] = {"prune": Prune.BOTH, "limits": ["0.5 neurons"], "seeds": 1}
    found = run(model, tmp_path, **both, methods=[Michel()])
    assert len(found.outcomes) == 2 and log.count("calibrate_kinds") == 2
    rows = [json.loads(path.read_text()) for path in (tmp_path / "choices").glob("*.json")]
    spaces = [Selection.from_json(row["selection"]).space for row in rows]
    assert any(a != b for a in spaces for b in spaces)


def test_what_is_found_says_nothing_about_what_is_left(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(model, tmp_path, seeds=1)
    seen = list[Outlook]()

    def tell(outlook: Outlook, progress: Any) -> None:
        seen.append(replace(outlook))

    monkeypatch.setattr(running, "_tell", tell)
    run(model, tmp_path, seeds=2)
    assert [(each.done, each.found) for each in seen] == [(0, 0), (2, 2), (4, 4), (6, 4), (8, 4)]
    assert seen[2].seconds_left() is None and seen[3].seconds_left() is not None


def test_other_texts_models_and_options_are_other_results(
    model: Any, tmp_path: Path, log: list[str]
) -> None:
    few: dict[str, Any] = {"methods": [Michel()], "seeds": 1, "recoveries": [Recovery.REFIT]}
    run(model, tmp_path, **few)
    others: list[dict[str, Any]] = [{"max_texts": 20}, {"seeds": [5]}]
    for changed in others:
        log.clear()
        run(model, tmp_path, **{**few, **changed})
        assert "calibrate_kinds" in log and "slice_found" in log
    log.clear()
    run(tiny_models.BERT.build(seed=1), tmp_path, **few)
    assert "calibrate_kinds" in log
    log.clear()
    run(model, tmp_path, **few, held_out=6)  # the pool is another one
    assert "slice_found" in log
    log.clear()
    run(model, tmp_path, **few, tokenizer=renumbered())
    assert "calibrate_kinds" in log and "slice_found" in log


def renumbered() -> Any:
    """A tokenizer whose words have the numbers of others."""
    tokenizer: Any = make_tokenizer()
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    numbers = told["model"]["vocab"]
    numbers["w0"], numbers["w1"] = numbers["w1"], numbers["w0"]
    swapped = Tokenizer.from_str(json.dumps(told))
    return type(tokenizer)(tokenizer_object=swapped, pad_token="[PAD]")


def test_code_that_judges_is_a_part_of_what_scores_depend_on(
    model: Any, tmp_path: Path, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few: dict[str, Any] = {"methods": [Michel()], "seeds": 1, "recoveries": [Recovery.NONE]}
    run(model, tmp_path, **few)
    monkeypatch.setattr(judging, "code_of_judging", lambda: "another release")
    log.clear()
    run(model, tmp_path, **few)
    assert log == ["slice_found"]


def test_the_pooling_beside_a_model_is_a_part_of_it(tmp_path: Path) -> None:
    embedder = tiny_models.BERT.build(bare=True)
    few: dict[str, Any] = {"methods": [Michel()], "seeds": 1, "recoveries": [Recovery.NONE]}
    values = {
        pooling: run(embedder, tmp_path, **few, pooling=pooling).outcomes[0].scores.value()
        for pooling in (None, Pooling.MEAN, Pooling.CLS)
    }
    assert values[None] == values[Pooling.MEAN] != values[Pooling.CLS]
    assert len(list((tmp_path / "judged").glob("*.json"))) == 2  # the usual one is the mean


def test_a_cell_that_fails_stops_no_other_and_is_tried_again(model: Any, tmp_path: Path) -> None:
    found = run(model, tmp_path, methods=[Refuses(), Random()], seeds=1)
    assert {cell.method for cell in found.missing} == {"refuses"} and len(found.missing) == 2
    assert set(found.missing.values()) == {"no unit is good enough."}
    assert len(found.outcomes) == 2
    (told,) = {path.read_text().splitlines()[-1] for path in (tmp_path / "failures").iterdir()}
    assert told == "ValueError: no unit is good enough."
    mended = run(model, tmp_path, methods={"refuses": Michel(), "random": Random()}, seeds=1)
    assert not mended.missing


def test_a_task_knows_whether_its_recovery_was_looked_at() -> None:
    task = WatchedTask.of(Task(Budget.heads(HeadSpace.uniform(2, 4), 4), Recovery.NONE))
    assert not task.looked_at and task.density == 0.5 and not task.looked_at
    assert task.recovery is Recovery.NONE and task.looked_at


@pytest.mark.filterwarnings("ignore")  # of the cluster, about ports and its own shutdown
def test_a_dask_cluster_finds_the_same(model: Any, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    options: dict[str, Any] = {"recoveries": [Recovery.NONE], "methods": [Random()]}
    alone = run(model, tmp_path / "alone", **options)
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    )
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        spread = run(model, tmp_path / "spread", **options, jobs=-1)
    assert [o.cell for o in spread.outcomes] == [o.cell for o in alone.outcomes]
    for one, other in zip(spread.outcomes, alone.outcomes, strict=True):
        assert (one.kept == other.kept).all()
        assert one.scores.value("kl") == pytest.approx(other.scores.value("kl"))


def test_models_that_cannot_be_timed_keep_their_scores(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(prunable: Any, kept: Any) -> Any:
        if kept[:4].all():
            raise RuntimeError("no room.")
        return timing_copy(prunable, kept)

    monkeypatch.setattr(timing, "timing_copy", fails)
    fixed = {"one": Fixed(0), "other": Fixed(1)}
    found = run(model, tmp_path, methods=fixed, seeds=1, recoveries=[Recovery.NONE])
    one, other = found.outcomes
    assert not one.times and one.notes == ("a model of it could not be timed: no room.",)
    assert other.times and not other.notes and not found.missing
    monkeypatch.undo()
    again = run(model, tmp_path, methods=fixed, seeds=1, recoveries=[Recovery.NONE])
    assert all(outcome.times and not outcome.notes for outcome in again.outcomes)


def test_a_worker_that_is_killed_is_told_as_that(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaks:
        def __init__(self, **_: Any) -> None: ...

        def __call__(self, _: Any) -> Any:
            raise BrokenProcessPool

    monkeypatch.setattr("joblib.Parallel", Breaks)
    with pytest.raises(running.WorkerError, match="with fewer jobs"):
        run(model, tmp_path, jobs=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workloads": (Workload(1, 8, 1, phase=Phase.DECODE),)}, "nothing to decode with"),
        ({"methods": []}, "`methods` is empty"),
        ({"limits": ["8 heads", "8 heads"]}, "`limits` holds '8 heads' twice"),
        ({"limits": ["fast"]}, "`limits` holds 'fast'"),
        ({"held_out": 0}, "there are no held-out texts"),
        ({"methods": [Michel(), Michel()]}, "two methods of one name"),
        ({"limits": ["0 heads"]}, "smallest reachable is 3"),
    ],
)
def test_what_cannot_be_studied_is_refused(
    model: Any, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        run(model, tmp_path / "study", **options)
    assert not (tmp_path / "study" / "statistics").exists()


@pytest.mark.slow
def test_a_killed_process_loses_no_cell(tmp_path: Path) -> None:
    """Cells that were judged before SIGKILL keep their files as they were."""
    folder, script = tmp_path / "study", tmp_path / "script.py"
    tests = Path(__file__).parents[2]
    script.write_text(
        f"import sys; sys.path[:0] = [{str(tests)!r}, {str(Path(__file__).parent)!r}]\n"
        "import tiny_models, test_running_studies\nfrom pathlib import Path\n"
        f"test_running_studies.run(tiny_models.BERT.build(), Path({str(folder)!r}), seeds=6)\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(script)]
    judged = folder / "judged"
    process = subprocess.Popen(command)
    for _ in range(600):
        if len(list(judged.glob("*.json")) if judged.is_dir() else []) >= 6:
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in judged.glob("*.json")}
    assert 6 <= len(before) < 24
    subprocess.run(command, check=True)
    after = {path: path.stat().st_mtime_ns for path in judged.glob("*.json")}
    assert before.items() <= after.items()
    assert len(Study.load(folder / "study.safetensors").outcomes) == 24
