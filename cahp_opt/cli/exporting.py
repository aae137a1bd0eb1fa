"""``cahp export``: a model in the format of another tool."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar

from cahp_opt.cli.display import Display
from cahp_opt.cli.loading import named_of
from cahp_opt.cli.notes import note
from cahp_opt.cli.options import ModelOptions
from cahp_opt.cli.outputs import check_folder, check_writable
from cahp_opt.runs.media import Medium
from cahp_opt.runs.names import Precision
from cahp_opt.runs.options import option, same
from cahp_opt.runs.plan import OutputOptions


class Format(str, Enum):
    """The formats that models are written in."""

    ONNX = "onnx"
    GGUF = "gguf"
    STOCK = "stock"


@dataclass(frozen=True)
class ExportedModel:
    """The model that is exported."""

    topic: ClassVar[str] = "Model and machine"

    folder: Path = field(metadata=option("FOLDER", help="Folder of a model, pruned or not."))
    precision: Precision | None = field(
        default=None,
        metadata=option(
            "--dtype", help="Precision of the weights. Default: as they are; float32 for onnx."
        ),
    )
    threads: int | None = same(ModelOptions, "threads")

    def options(self, form: Format) -> ModelOptions:
        """The model as other commands take it, on the CPU."""
        own = None if form is Format.ONNX else _own_precision(self.folder)
        return ModelOptions(
            str(self.folder), threads=self.threads, device="cpu", precision=self.precision or own
        )


@dataclass(frozen=True)
class ExportOptions:
    """The format, and where the model goes."""

    topic: ClassVar[str] = "Output"

    to: Format = field(
        metadata=option(
            "--to",
            help="onnx: a graph for onnxruntime. gguf: a file for llama.cpp, of Llama-like decoders. stock: a "
            "folder for any loader of ordinary models, if every layer kept as much (`cahp prune --even`).",
        )
    )
    output: Path = field(
        metadata=option(
            "--output", metavar="PATH", help="Folder to write, new or empty; the file for gguf."
        )
    )
    overwrite: bool = field(
        default=False,
        metadata=option("--overwrite", help="Replace what an earlier export wrote there."),
    )


def export(written: ExportOptions, exported: ExportedModel) -> None:
    """Write a model in the format of another tool, and check what was written against it.

    What a format cannot represent is refused with the reason, before any work.
    """
    form, output = written.to, written.output
    if not exported.folder.is_dir():
        raise ValueError(
            f"FOLDER must be the folder of a model, such as `cahp prune` writes, got {exported.folder}."
        )
    if form is Format.GGUF:
        _check_new(output, overwrite=written.overwrite)
    elif output.resolve() == exported.folder.resolve():
        raise ValueError(
            f"`--output` {output} is the folder of the model itself; name another one."
        )
    else:
        check_folder(OutputOptions(output, written.overwrite), option="--output")
    display = Display()
    named = named_of(
        exported.options(form), display, medium=Medium.TEXT if form is Format.GGUF else None
    )
    if named.tokenizer is None:
        note(
            [
                f"no tokenizer or processor of {exported.folder} could be loaded, so none is exported."
            ]
        )
    with display.stage("export"):
        if form is Format.STOCK:
            from cahp_opt.torch.export.stock import export_stock

            export_stock(
                named.model, output, tokenizer=named.tokenizer, overwrite=written.overwrite
            )
            told: Iterable[str] = ["checked: the stock class gives the same outputs, bit for bit"]
        elif form is Format.GGUF:
            from cahp_opt.torch.export.gguf_file import export_gguf

            export_gguf(named.model, output, tokenizer=named.tokenizer)
            told = ["checked: llama.cpp gives the same greedy tokens"]
        else:
            from cahp_opt.torch.export.onnx_folder import export_onnx

            graph = export_onnx(
                named.model, output, tokenizer=named.tokenizer, overwrite=written.overwrite
            )
            told = [
                f"checked: onnxruntime gives the same outputs within {graph.difference:.1e}",
                *([f"without a cache, because {graph.why_not}"] if graph.why_not else ()),
            ]
    for sentence in told:
        print(sentence)
    print(f"written: {output}")


def _check_new(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that could not be written, or that is there already."""
    if path.is_dir():
        raise ValueError(f"`--output` {path} is a folder; name a file, such as {path}/model.gguf.")
    if path.exists() and not overwrite:
        raise ValueError(
            f"`--output` {path} is there already; name another file, or `--overwrite`."
        )
    if path.is_file() and not _is_gguf(path):
        raise ValueError(
            f"`--output` {path} is no GGUF file, so it is not replaced; name another file."
        )
    check_writable(path)


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _own_precision(folder: Path) -> Precision | None:
    """The precision that a folder's configuration states; None for one that is not an option."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return Precision(config.get("dtype") or config.get("torch_dtype"))
    except (OSError, ValueError, AttributeError):
        return None
