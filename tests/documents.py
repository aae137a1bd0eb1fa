"""The commands in the documents, what stands for their placeholders, and how each is tried.

A command in a document is run by ``pytest -m documents``, or ``-m slow`` for those of the benchmarks, as
it stands there, from a clean copy of the repository, in the order of its document. What cannot be run
like that is named below, with the reason and with what is run instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    "benchmarks/README.md",
    "benchmarks/gpu/README.md",
)

WORDS: Mapping[str, str] = {
    "...": "--text texts.txt --latency 0.95 --output-dir pruned-again/",
    "NAME": "distilbert",
    "[OUTPUT_FOLDER]": "results",
}
"""What is put in the place of a word. Models and texts are files of these names in the folder instead:
``MODEL`` is a tiny decoder, and a classifier for the benchmarks, whose labelled texts are ``DATA``,
``train.tsv`` and ``dev.tsv``; ``mine.py`` has a solver ``MySolver``, and the objective ``MyObjective`` and the method
``MyMethod`` of the documents."""

LESS: Mapping[str, str] = {
    "solvers/run.py": "--families modular --sizes 72 --time-limits 0.2",
    "knees/run.py": "--draws 1 --calibration 12 --refit 10 --held-out 8 --seeds 1 --minutes 0",
    "architectures/sweep.py": "--only vit",
    "latency/run.py": "--models tiny-encoder --sets 3 --repeats 1 --examples 2 --tokens 8",
    "accuracy/run.py": (
        "--checkpoint MODEL --methods random --limits '4 heads' --recoveries none --texts 12 "
        "--cache cache --output record.safetensors"
    ),
    "both_kinds/run.py": "--shares 1 --draws 1 --texts 12 --repeats 1 --methods both,kwon",
    "scale/run.py": (
        "--hidden 32 --inner 64 --heads 4 --layers 1 --texts 2 --length 8 --output results"
    ),
    "objectives/run.py": "--heads 6 --keep-sets 2 --texts 12 --held-out 4",
}
"""By script under ``benchmarks``, the options behind its own so that it ends in seconds, not hours."""

INSTEAD: Mapping[str, tuple[str, str]] = {
    "cahp export pruned-evenly/ --to gguf --output pruned.gguf": (
        "! cahp export pruned-evenly/ --to gguf --output pruned.gguf",
        "the tiny model's tokenizer splits texts in a way that llama.cpp does not know, which is refused",
    ),
    "cahp latency --estimate hardware.json": (
        "cahp hardware --output hardware.json && "
        "cahp latency MODEL --estimate hardware.json --output estimate.json",
        "the sentence leaves the model and the output out",
    ),
    "lm_eval --model hf --model_args pretrained=pruned/,trust_remote_code=True --tasks hellaswag": (
        "pytest --collect-only -q -m slow tests/torch/checkpoints/test_opened_by_others.py",
        "it downloads questions; that test runs it on some of its own",
    ),
    "fidelity_after_refit.py": (
        "python benchmarks/fidelity_after_refit.py --help",
        "it refits the real model six times over, which takes minutes however few the texts",
    ),
    "time_to_prune.py": (
        "python benchmarks/time_to_prune.py --help",
        "it prunes the real model, which takes minutes",
    ),
    "similarity.py pruned-minilm --pairs PAIRS": (
        "python benchmarks/similarity.py --help",
        "it judges what the demonstration wrote, by pairs that are not in the repository",
    ),
    "peers/run.py": (
        "python benchmarks/peers/run.py --help",
        "it installs the other libraries, which takes the network, and runs for minutes",
    ),
    "architectures/versions.py": (
        "python benchmarks/architectures/versions.py --help",
        "it installs four releases of transformers",
    ),
    "architectures/cross_version.py": (
        "python benchmarks/architectures/cross_version.py --help",
        "it needs the environments that versions.py makes",
    ),
    "architectures/without_library.py": (
        "python benchmarks/architectures/without_library.py --help",
        "it installs four releases of transformers",
    ),
    "gpu/architectures.py --device cuda": (
        "python benchmarks/gpu/architectures.py --device cpu --builds torch-encoder "
        "--output results",
        "it needs a GPU",
    ),
    "gpu/run.sh": ("bash -n benchmarks/gpu/run.sh", "it needs a GPU"),
    "benchmarks/gpu/run.sh [OUTPUT_FOLDER]": (
        "DEVICE=cpu LIMIT=500 ARCHITECTURES='--builds torch-encoder' "
        "LATENCY='--models tiny-encoder --sets 3 --repeats 1 --examples 2 --tokens 8' "
        "benchmarks/gpu/run.sh results",
        "it needs a GPU",
    ),
    "benchmarks/gpu/accuracy.sh PROCESSES MINUTES FOLDER --data DATA --checkpoint MODEL "
    "--latency-table TABLE": (
        "cahp latency MODEL --output TABLE && CUDA_VISIBLE_DEVICES= benchmarks/gpu/accuracy.sh 1 5 FOLDER "
        "--data DATA --checkpoint MODEL --latency-table TABLE --methods random --limits 1 "
        "--recoveries none --texts 12 --output record.safetensors",
        "it needs a GPU",
    ),
    "run.py --cache FOLDER": (
        "python benchmarks/accuracy/run.py --help",
        "the sentence names an option",
    ),
}
"""What is run in the place of a command, and why it is not run as it stands in the document."""

SLOW = (
    'python -m venv .venv && . .venv/bin/activate && pip install torch==2.13.0 -e ".[demo]" '
    "&& cahp demo",
    '. .venv/bin/activate && pip install torch==2.13.0 -e ".[demo,test]" && python -m pytest',
    "cahp compare --stats pruned-minilm/stats.safetensors --latency-table pruned-minilm/latency.json "
    "--latency 0.9 --latency 0.8",
    "python -m venv .venv && . .venv/bin/activate",
    'pip install torch==2.13.0 -e ".[demo,test,lint,docs]"',
    "ruff check . && ruff format --check . && mypy && pyright && mkdocs build --strict",
    "python -m pytest",
    'pip install -e ".[torch]" pytest accelerate',
)
"""They install from the network, take minutes, or need what one of these has made: ``pytest -m slow``
runs them one after another in a clean copy, and ``.ci/run`` does the same in its own way."""

EXCUSED: Mapping[str, str] = {
    ".ci/run": "it is what runs all the others",
    "pytest -m documents": "it is what runs these commands, this one over and over",
    "coverage run": "a name in a sentence; coverage is not among the requirements",
    "torchrun": "the name of a launcher",
    "torchrun --nproc-per-node 2 --no-python cahp prune MODEL ...": "tests/cli/test_launching.py does the same",
    "git": "the type of a model",
}

METHODS = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
"""The page on methods, whose example of a method of one's own is in ``mine.py`` too."""


def own_method() -> str:
    """The source of that example."""
    (found,) = re.findall(r"```python\n(.*?class MyMethod.*?)```", METHODS, flags=re.DOTALL)
    return str(found)


def own_objective() -> str:
    """The source of the objective that the page on inventing has."""
    page = (ROOT / "docs/invent.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"```python\n([^`]*?class MyObjective.*?)```", page, flags=re.DOTALL)
    return str(found)


_SPAN = re.compile(r"(?<![\\`])`([^`\n]+)`(?!`)")
_PROGRAM = re.compile(r"(?:cahp|python|pip|pytest|ruff|mypy|pyright|coverage|torchrun|git)(?: |$)")
_SCRIPT = re.compile(r"[\w./]+\.(?:py|sh) |benchmarks/gpu/\w+\.sh|\.ci/run$")
_FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", flags=re.DOTALL | re.MULTILINE)
_NOT_RUN = re.compile(r' title="Not run here: [^"]+"')
_FILE = re.compile(r"[\w./]+\.(?:py|sh)$")
_ROW = re.compile(r"\| `([^`]+)`")


@dataclass(frozen=True)
class Command:
    """A command as a document has it.

    Args:
        document: the file, from the root of the repository.
        line: its number in there.
        text: the command, without the comment behind it.
        block: whether it stands in a block for the shell, rather than in a sentence.
    """

    document: str
    line: int
    text: str
    block: bool

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {self.text}"


def commands() -> list[Command]:
    """All of them, in the order of the documents."""
    return [command for document in DOCUMENTS for command in in_document(document)]


def in_document(document: str) -> Iterator[Command]:
    """The commands of one document."""
    for number, text, block in _shown(document):
        row = document == "benchmarks/README.md" and _FILE.match(text)
        if block or _PROGRAM.match(text) or _SCRIPT.match(text) or (row and text in _rows()):
            yield Command(document, number, text, block)


@dataclass(frozen=True)
class Fence:
    """A block of code as a document has it.

    Args:
        document: the file, from the root of the repository.
        language: what it is written in.
        note: what stands behind the language: nothing, or a title that says why it is not run.
        code: its lines.
    """

    document: str
    language: str
    note: str
    code: str

    @property
    def is_run(self) -> bool:
        """Whether it is, or else says why not."""
        return not _NOT_RUN.fullmatch(self.note)


def fences(document: str) -> list[Fence]:
    """All blocks of code of a document."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        Fence(document, language, note, dedent(code))
        for _, language, note, code in _FENCE.findall(text)
    ]


def example(document: str) -> str:
    """The Python of a document that is run, in one piece; empty where there is none.

    The README's has a test of its own, which knows what less of it would be.
    """
    if document == "README.md":
        return ""
    return "\n".join(f.code for f in fences(document) if f.language == "python" and f.is_run)


def files() -> Iterator[tuple[str, str]]:
    """The scripts and modules that the documents name, each with its document."""
    for document in DOCUMENTS:
        for _, text, block in _shown(document):
            if not block and _FILE.match(text):
                yield document, text


def _rows() -> set[str]:
    """The scripts that have a row of their own in the table of benchmarks."""
    return set(_ROW.findall((ROOT / "benchmarks/README.md").read_text(encoding="utf-8")))


def _shown(document: str) -> Iterator[tuple[int, str, bool]]:
    """What is set as code for the shell or in sentences, and whether it is the former."""
    fence = ""
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        opened = re.match(r"\s*```(\w*)", line)
        if opened:
            fence = "" if fence else opened[1] or "text"
        elif fence == "sh":
            text = re.sub(r"\s+# .*", "", line).strip()
            if text:
                yield number, text, True
        elif not fence:
            yield from ((number, text, False) for text in _SPAN.findall(line))


def is_name(command: Command) -> bool:
    """Whether a sentence only names a command of ``cahp``."""
    return not command.block and re.fullmatch(r"cahp(?: \w+)?", command.text) is not None


def as_run(command: Command) -> str | None:
    """What the shell is given; None where it is a name, excused, or left to the slow tests."""
    if command.text in INSTEAD:
        return INSTEAD[command.text][0]
    if command.text in SLOW or command.text in EXCUSED or is_name(command):
        return None
    first, _, rest = command.text.partition(" ")
    if command.document == "benchmarks/README.md" and _FILE.match(first):
        words = ["python", f"benchmarks/{first}", rest, LESS.get(first, "")]
    else:
        words = [WORDS.get(word, word) for word in command.text.split(" ")]
    return " ".join(word for word in words if word)
