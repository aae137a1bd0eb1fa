"""Conversations as texts, by the chat template of a tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from cahp_opt.runs.texts import Example, TextError


def written_out(example: Example, tokenizer: Any) -> Example:
    """The example with its conversation as the text that the model reads; others as they are.

    Raises:
        TextError: if the tokenizer has no chat template, or the template refuses the conversation.
    """
    if not example.chat:
        return example
    if not getattr(tokenizer, "chat_template", None):
        raise TextError(
            "the data are conversations, and this tokenizer has no chat template to write them with; name a "
            "column of texts by `text_column`, or a model that was trained on conversations."
        )
    try:
        text = tokenizer.apply_chat_template(json.loads(example.text), tokenize=False)
    except Exception as error:  # a template raises what it likes over roles that it does not know
        why = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        start = example.text if len(example.text) <= 80 else f"{example.text[:80]}..."
        raise TextError(
            f"the chat template of the tokenizer refuses the conversation {start} ({why}); leave it out, or "
            "correct it."
        ) from None
    return replace(example, text=str(text))
