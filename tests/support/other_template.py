"""A tokenizer with another chat template, for tests."""

from __future__ import annotations

import dataclasses

from chat.text.template import take_template
from chat.text.tokenizer import ChatTokenizer
from dist.checkpoint.templates import Template


def with_template(tokenizer: ChatTokenizer, text: str) -> ChatTokenizer:
    """The same tokenizer with this template; the original keeps its own."""
    return dataclasses.replace(
        tokenizer, template=take_template(tokenizer.backend, Template(text=text, source="a test"))
    )
