"""Runs a GGUF file in a process of its own, because what llama.cpp does not expect ends its process.

It reads ``{"file", "prompts", "tokens", "texts", "length", "threads"}`` as JSON, and writes the greedy tokens
after every prompt, each with its log-probability, or null where that is not told, and the ids of every text. It imports nothing of this library, so that it starts at once.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener


def answer_request() -> None:
    """Answer one request from standard input, on the last line of standard output."""
    asked: dict[str, Any] = json.loads(sys.stdin.read())
    llama: Any = importlib.import_module("xllamacpp")
    options = llama.CommonParams()
    options.model.path = asked["file"]
    options.n_ctx = asked["length"]
    options.n_parallel = 1
    options.warmup = False
    options.cpuparams.n_threads = asked["threads"]
    options.cpuparams_batch.n_threads = asked["threads"]
    server = llama.Server(options)
    greedy = [_greedy(server, prompt, asked["tokens"]) for prompt in asked["prompts"]]
    ids = [_ids(server.listening_address, text) for text in asked["texts"]]
    print(json.dumps([greedy, ids]), flush=True)


def _greedy(server: Any, prompt: list[int], tokens: int) -> list[tuple[int, float | None]]:
    """One token after another: several at once come without those that end in the middle of a character."""
    found: list[tuple[int, float | None]] = []
    for _ in range(tokens):
        answer = server.handle_completions(
            {
                "prompt": [*prompt, *(token for token, _ in found)],
                "max_tokens": 1,
                "temperature": 0,
                "cache_prompt": False,
                "logprobs": 1,
                "return_tokens": True,
                "verbose": True,
            }
        )
        told: Any = (answer["choices"][0]["logprobs"] or {"content": ()})["content"]
        token = answer["__verbose"]["tokens"][0]
        found.append((token, told[0]["logprob"] if told else None))
    return found


def _ids(address: str, text: str) -> list[int]:
    """The ids of a text. Only the server that listens at its address tells them."""
    body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
    asked = Request(f"{address}/tokenize", body, {"Content-Type": "application/json"})
    with build_opener(ProxyHandler({})).open(asked) as answer:  # it is this machine
        ids: list[int] = json.loads(answer.read())["tokens"]
    return ids


if __name__ == "__main__":
    answer_request()
