"""How well a model that embeds texts ranks pairs of sentences, and a pruned folder beside it.

    python benchmarks/similarity.py pruned-minilm --pairs relatedness_test.tsv

The pairs are a table with the columns ``score``, ``text`` and ``text_pair``. The figure is 100 times
Spearman's correlation of the scores with the cosines of the embeddings. The unpruned model is the one of
the demonstration. With ``--sentence-transformers`` that package opens every folder too, and the largest
difference between a number of its embeddings, of unit length, and of ours is printed.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from cahp_opt.arrays import Floats
from cahp_opt.demo import demo_model
from cahp_opt.runs.report import REPORT_FILE, Report
from cahp_opt.torch import from_pretrained
from cahp_opt.torch.evaluation.fidelity import fidelity_of


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("folders", type=Path, nargs="*", help="folders of pruned models")
    options.add_argument("--pairs", type=Path, required=True, help="a table of scored pairs")
    options.add_argument("--sentence-transformers", action="store_true", help="compare with it")
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()

    torch.set_num_threads(given.threads)
    dense = demo_model()
    with given.pairs.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    scores = np.array([float(row["score"]) for row in rows])
    model = transformers.AutoModel.from_pretrained(dense).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(dense)
    print(f"{'unpruned':<32} {correlation(model, tokenizer, rows, scores):.2f}", flush=True)
    for folder in given.folders:
        small = from_pretrained(folder).eval()
        told = Report.read(folder / REPORT_FILE)["fidelity"] or {}
        away = (told.get("after") or told.get("before") or {}).get("cosine_distance")
        found = correlation(small, tokenizer, rows, scores)
        print(
            f"{folder!s:<32} {found:.2f}, 1 - cosine on the texts kept back {away}",
            flush=True,
        )
        if given.sentence_transformers:
            texts = [row[side] for row in rows for side in ("text", "text_pair")]
            apart = difference(folder, embedded(small, tokenizer, texts), texts)
            print(f"{'':<32} sentence-transformers differs by at most {apart:.1e}", flush=True)


def correlation(
    model: nn.Module, tokenizer: Any, rows: list[dict[str, str]], scores: Floats
) -> float:
    """100 times Spearman's correlation of the scores with the cosines of the pairs."""
    one, other = (
        embedded(model, tokenizer, [row[side] for row in rows]) for side in ("text", "text_pair")
    )
    cosines = nn.functional.cosine_similarity(one, other).double().numpy()
    return 100 * float(np.corrcoef(ranks(scores), ranks(cosines))[0, 1])


def embedded(model: nn.Module, tokenizer: Any, texts: list[str]) -> Tensor:
    """The embeddings of some texts, ``[texts, width]``."""
    fidelity, found = fidelity_of(model), list[Tensor]()
    with torch.no_grad():
        for start in range(0, len(texts), 64):
            batch = tokenizer(
                texts[start : start + 64],
                padding=True,
                truncation=True,
                max_length=128,
                return_tensors="pt",
            )
            found.append(fidelity.output(model(**batch), batch))
    return torch.cat(found)


def difference(folder: Path, ours: Tensor, texts: list[str]) -> float:
    """The largest difference from our embeddings, ``[texts, width]``, of those of sentence-transformers."""
    import sentence_transformers

    theirs: Any = sentence_transformers.SentenceTransformer(
        str(folder), trust_remote_code=True, device="cpu"
    )
    found = theirs.encode(texts, convert_to_tensor=True, normalize_embeddings=True)
    return float((found - nn.functional.normalize(ours, dim=-1)).abs().max())


def ranks(values: Floats) -> Floats:
    """The ranks of some values, equal ones the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


if __name__ == "__main__":
    main()
