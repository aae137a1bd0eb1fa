"""The whole way as Python code takes it: the same records as the command line, and nothing shown."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from command_line import make_tokenizer, sentences

from cahp_opt.costs.target import Target
from cahp_opt.methods import Fisher
from cahp_opt.progress import Stages
from cahp_opt.runs.objective_and_solver import ObjectiveAndSolver
from cahp_opt.runs.plan import Applying, OutputOptions, PruningPlan, Reading, RecoveryOptions
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.texts import Example, split
from cahp_opt.torch import from_pretrained
from cahp_opt.torch.methods import KPrune
from cahp_opt.torch.pipeline.applying import apply_selection
from cahp_opt.torch.pipeline.pruning_run import LATENCY_FILE, STATS_FILE, run_pipeline
from cahp_opt.torch.pipeline.run import Named

pytestmark = pytest.mark.usefixtures("threads")

TEXTS = split(map(Example, sentences(40)), most=40, held_out=8, seed=0)


@pytest.fixture
def named() -> Named:
    model: Any = tiny_models.BERT.build()
    return Named("tiny", model, make_tokenizer())


def plan(**changes: Any) -> PruningPlan:
    method = ObjectiveAndSolver()
    applying = Applying(RecoveryOptions(Recovery.REFIT), reading=Reading(16, 8))
    small = tuple(replace(w, batch_size=2, repeats=1) for w in applying.workloads)
    return PruningPlan(Target(heads=6), method, replace(applying, workloads=small, **changes))


def test_the_whole_way_and_its_second_half_agree(
    named: Named, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages, out = Stages(), OutputOptions(tmp_path / "whole")
    report = run_pipeline(named, TEXTS, plan(), out, stages=stages)
    assert report.selection.kept.sum() == 6 and report.recovery is Recovery.REFIT
    assert set(stages.seconds) == set(report.seconds)
    assert list(stages.seconds) == [
        *("calibrate", "select", "slice", "evaluate", "refit", "time", "save")
    ]
    assert (out.output_dir / STATS_FILE).is_file()
    assert not (out.output_dir / LATENCY_FILE).exists()  # no limit needs it
    assert from_pretrained(out.output_dir)
    half = apply_selection(
        named, report.selection, TEXTS, plan().applying, OutputOptions(tmp_path / "half")
    )
    assert half.fidelity == report.fidelity
    assert not capsys.readouterr().out


def test_what_is_there_stays_unless_it_may_be_replaced(named: Named, tmp_path: Path) -> None:
    bare, out = plan(recovery=RecoveryOptions(Recovery.NONE)), OutputOptions(tmp_path / "out")
    run_pipeline(named, TEXTS, bare, out)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        run_pipeline(named, TEXTS, bare, out)
    assert run_pipeline(named, TEXTS, bare, replace(out, overwrite=True)).files


def test_labels_that_the_model_does_not_take_are_refused_before_anything_is_measured(
    named: Named, tmp_path: Path
) -> None:
    examples = [Example(text, label=str(i % 2)) for i, text in enumerate(sentences(40))]
    texts, stages = split(examples, most=40, held_out=8, seed=0), Stages()
    headless: Any = tiny_models.BERT.build(bare=True)
    embedder, fisher = replace(named, model=headless), replace(plan(), method=Fisher())
    out = OutputOptions(tmp_path / "out")
    with pytest.raises(ValueError, match="`--method fisher` needs labelled texts"):
        run_pipeline(embedder, texts, fisher, out, stages=stages)
    assert not stages.seconds


def test_models_that_a_method_cannot_run_are_refused_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    named, stages = Named("tiny", tiny_models.named("albert").build(), make_tokenizer()), Stages()
    bare = replace(plan(recovery=RecoveryOptions(Recovery.NONE)), method=KPrune())
    with pytest.raises(ValueError, match="`--method k-prune` has to repair block by block"):
        run_pipeline(named, TEXTS, bare, OutputOptions(tmp_path / "out"), stages=stages)
    assert not stages.seconds


def test_what_an_encoder_decoder_writes_is_its_label(tmp_path: Path) -> None:
    named = Named("tiny", tiny_models.named("t5").build(), make_tokenizer())
    bare = replace(plan(recovery=RecoveryOptions(Recovery.NONE)), method=Fisher())
    pairs = [Example(text, "w1 w2 w3") for text in sentences(40)]
    texts, out = split(pairs, most=40, held_out=8, seed=0), OutputOptions(tmp_path / "out")
    assert run_pipeline(named, texts, bare, out).selection.kept.sum() <= 6


def test_the_whole_way_reads_as_a_list_of_stages() -> None:
    """Every step is one call of a function, without a condition in between."""
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(run_pipeline))).body
    assert isinstance(function, ast.FunctionDef)
    (body,) = (step for step in function.body if isinstance(step, ast.With))
    steps = [step for step in body.body if isinstance(step, (ast.Expr, ast.Assign, ast.Return))]
    assert len(steps) == len(body.body) == 9
    assert all(isinstance(step.value, ast.Call) for step in steps)
