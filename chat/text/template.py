"""A checkpoint's chat template at work: messages become the text of a prompt. Knows no token ids and no model.

What a template does with system prompts, with contents and at the end of a turn is seen once, when it is taken.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dist.checkpoint.ledger import TEMPLATES, Entry
from dist.checkpoint.templates import (
    GENERATION_TAG,
    Behaviour,
    Messages,
    Template,
    holds,
    message,
    observe,
    plain_render,
)
from dist.errors import CheckpointError, PromptError, UsageError

WAYS_OUT = "--no-use_chat_template sends prompts as they are; --chat_template FILE takes another template."
# What transformers gives every template.
GIVEN = frozenset(
    (
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("raise_exception", "strftime_now", "range", "namespace", "dict", "lipsum", "cycler", "joiner"),
        *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
        "additional_special_tokens",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A template that has rendered a message of the user's. `backend` is its transformers tokenizer."""

    backend: Any
    template: Template
    behaviour: Behaviour

    @property
    def arguments(self) -> Sequence[str]:
        """What it reads besides messages and special tokens."""
        return arguments(self.template)

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise UsageError for arguments that it does not read, or with which it makes no prompt of a message."""
        known = self.arguments
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                reads = f"It reads {', '.join(known)}." if known else "It reads none."
                raise UsageError(
                    f"The chat template does not read {name}.", f"Did you mean {near[0]}?" if near else reads
                )
        try:
            self.render([("user", "?")], arguments=given)
        except PromptError as error:
            raise UsageError("The chat template cannot work with that.", error.why) from error

    def render(
        self,
        messages: Sequence[tuple[str, str]],
        *,
        begin_reply: bool = True,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of (role, content) messages and the beginning of a reply.

        Raises PromptError with the template's words if it refuses them, or if it leaves out what the user said.
        """
        plain = [message(role, text, self.behaviour.parts) for role, text in messages]
        try:
            text = _render(self.backend, self.template, plain, begin_reply, arguments or {})
        except refusals() as error:
            has_system = any(role == "system" for role, _ in messages)
            hint = "/system - removes the system prompt." if has_system and self.behaviour.system != "used" else ""
            raise PromptError("The chat template refuses the conversation.", f"It says: {error}", hint) from error
        said = next((content for role, content in reversed(messages) if role == "user"), "")
        if not holds(text, said):
            raise PromptError("The chat template leaves out what you said.", "It is not in the prompt.", WAYS_OUT)
        return text

    @property
    def notices(self) -> tuple[str, ...]:
        """What is worth knowing about it, in words."""
        return self.behaviour.notices

    @property
    def words(self) -> str:
        """Where it comes from and what is worth knowing about it."""
        return "; ".join((self.template.words, *self.notices))

    def entries(self, given: Mapping[str, Any]) -> tuple[Entry, ...]:
        """The arguments that it reads and that are not given, for the ledger."""
        left = (name for name in self.arguments if name not in given)
        return tuple(Entry(TEMPLATES, name, False, "an argument that is not given") for name in left)


def refusals() -> tuple[type[Exception], ...]:
    """What rendering raises when a template refuses or cannot deal with messages."""
    from jinja2 import TemplateError

    return (TemplateError, ValueError, TypeError, KeyError, AttributeError, IndexError, ImportError)


def take_template(backend: Any, template: Template, given: Mapping[str, Any] | None = None) -> ChatTemplate:
    """`template`, tried out with the arguments in `given`.

    Raises CheckpointError if it cannot be parsed or makes no prompt of a message.
    """
    check_syntax(template)

    def render(messages: Messages, begin_reply: bool) -> str:
        return _render(backend, template, messages, begin_reply, given or {})

    try:
        behaviour = observe(render, refusals())
    except refusals() as error:
        missing = [name for name in arguments(template) if name not in (given or {})]
        named = f" It reads {', '.join(missing)}, which is not given." if missing else ""
        example = json.dumps(dict.fromkeys(missing, "..."))
        raise CheckpointError(
            f"The chat template in {template.source} makes no prompt of a message.",
            f"It says: {error}.{named}",
            f"--template_args '{example}' gives it. {WAYS_OUT}" if missing else WAYS_OUT,
        ) from error
    return ChatTemplate(backend=backend, template=template, behaviour=behaviour)


def check_syntax(template: Template) -> None:
    """Raise CheckpointError, with the line, for a template that cannot be parsed. Needs no tokenizer."""
    from jinja2 import TemplateSyntaxError

    try:
        plain_render(template, {})
    except TemplateSyntaxError as error:
        raise CheckpointError(
            f"The chat template in {template.source} cannot be parsed.",
            f"Line {error.lineno}: {error.message}",
            WAYS_OUT,
        ) from error


@lru_cache(maxsize=64)
def arguments(template: Template) -> tuple[str, ...]:
    """The variables that a template reads besides those that transformers gives it."""
    from jinja2 import TemplateError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        parsed = environment.parse(GENERATION_TAG.sub("", template.text))
    except TemplateError:
        return ()
    return tuple(sorted(meta.find_undeclared_variables(parsed) - GIVEN))


def _render(
    backend: Any, template: Template, messages: Messages, begin_reply: bool, given: Mapping[str, Any]
) -> str:
    # What the template does not read may be an argument of another kind: it stays here.
    read = {name: value for name, value in given.items() if name in arguments(template)} if given else {}
    text: str = backend.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=begin_reply, chat_template=template.text, **read
    )
    return text
