"""How well a model that embeds texts ranks pairs of sentences, and a pruned folder beside it.

    python benchmarks/similarity.py pruned-minilm --pairs relatedness_test.tsv

The pairs are a table with the columns ``score``, ``text`` and ``text_pair``. The figure is 100 times
Spearman's correlation of the scores with the cosines of the embeddings. The unpruned model is the one of
the demonstration. With ``--sentence-transformers`` that package opens every folder too, and the largest
difference between a number of its embeddings, of unit length, and of ours is printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from cahp_opt.demo import demo_model
from cahp_opt.files.formats import rows_of
from cahp_opt.runs.columns import ColumnOptions
from cahp_opt.runs.report import REPORT_FILE, Report
from cahp_opt.runs.texts import TableTexts
from cahp_opt.torch import from_pretrained
from cahp_opt.torch.evaluation.evaluation import Judge
from cahp_opt.torch.evaluation.fidelity import fidelity_of
from cahp_opt.torch.texts.encoding import encode_and_count


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("folders", type=Path, nargs="*", help="folders of pruned models")
    options.add_argument("--pairs", type=Path, required=True, help="a table of scored pairs")
    options.add_argument("--sentence-transformers", action="store_true", help="compare with it")
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()

    torch.set_num_threads(given.threads)
    pairs = list(TableTexts(rows_of(given.pairs), ColumnOptions(label_column="score")))
    model = transformers.AutoModel.from_pretrained(demo_model()).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model())
    encoded = encode_and_count(
        pairs, tokenizer, model, batch_size=64, max_length=128, scored_pairs=True
    )
    judge = Judge(model, encoded.batches)
    print(f"{'unpruned':<32} {100 * judge.unpruned.value('spearman'):.2f}", flush=True)
    for folder in given.folders:
        small = from_pretrained(folder).eval()
        told = Report.read(folder / REPORT_FILE)["fidelity"] or {}
        away = (told.get("after") or told.get("before") or {}).get("cosine_distance")
        found = 100 * judge(small).value("spearman")
        print(
            f"{folder!s:<32} {found:.2f}, 1 - cosine on the texts kept back {away}",
            flush=True,
        )
        if given.sentence_transformers:
            texts = [text for pair in pairs for text in (pair.text, pair.pair or "")]
            apart = difference(folder, small, tokenizer, texts)
            print(f"{'':<32} sentence-transformers differs by at most {apart:.1e}", flush=True)


def difference(folder: Path, model: nn.Module, tokenizer: Any, texts: list[str]) -> float:
    """The largest difference of the embeddings of sentence-transformers from ours."""
    import sentence_transformers

    theirs: Any = sentence_transformers.SentenceTransformer(
        str(folder), trust_remote_code=True, device="cpu"
    )
    found: Tensor = theirs.encode(texts, convert_to_tensor=True, normalize_embeddings=True)
    fidelity, ours = fidelity_of(model), list[Tensor]()
    options = {"padding": True, "truncation": True, "max_length": 128, "return_tensors": "pt"}
    with torch.no_grad():
        for start in range(0, len(texts), 64):
            batch = tokenizer(texts[start : start + 64], **options)
            ours.append(fidelity.output(model(**batch), batch))
    return float((found - nn.functional.normalize(torch.cat(ours), dim=-1)).abs().max())


if __name__ == "__main__":
    main()
