"""A checkpoint's chat template at work: messages become the text of a prompt. Knows no token ids and no model.

What a template does with system prompts, with contents and at the end of a turn is seen once, when it is taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dist.checkpoint.ledger import TEMPLATES, Entry
from dist.checkpoint.rendering import Messages, Refused, Renderer, Stopped
from dist.checkpoint.templates import Behaviour, Template, holds, message, observe
from dist.errors import CheckpointError, PromptError, UsageError, did_you_mean

WAYS_OUT = "--no-use_chat_template sends prompts as they are; --chat_template FILE takes another template."
OF_VALUES = (RecursionError, TypeError, ValueError)
# What transformers gives every template, if the tokenizer has them.
TOKENS = frozenset(
    (
        *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
        "additional_special_tokens",
    )
)
# What it gives besides.
GIVEN = TOKENS | frozenset(
    (
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("raise_exception", "strftime_now", "range", "namespace", "dict", "lipsum", "cycler", "joiner"),
    )
)

# Makes text of messages, perhaps with the beginning of a reply, given a template's own arguments.
Rendered = Callable[[Messages, bool, Mapping[str, Any]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A template that has rendered a message of the user's.

    `arguments` is what it reads besides messages and special tokens. `own_code`: the tokenizer's class makes the
    text, in this process.
    """

    template: Template
    behaviour: Behaviour
    rendered: Rendered
    arguments: tuple[str, ...] = ()
    own_code: bool = False

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise UsageError for arguments that it does not read, or with which it cannot render a message."""
        known = self.arguments
        for name in given:
            if name not in known:
                reads = f"It reads {', '.join(known)}." if known else "It reads none."
                raise UsageError(f"The chat template does not read {name}.", did_you_mean(name, known, reads))
        try:
            self.render([("user", "?")], arguments=given)
        except PromptError as error:
            raise UsageError("The chat template fails with these arguments.", error.why) from error

    def render(
        self,
        messages: Sequence[tuple[str, str]],
        *,
        begin_reply: bool = True,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of (role, content) messages and the beginning of a reply.

        Raises PromptError with the template's words if it refuses them, if it takes too long or too much, or if it
        leaves out what the user said.
        """
        plain = [message(role, text, self.behaviour.parts) for role, text in messages]
        try:
            text = self.rendered(plain, begin_reply, _read_by(self.arguments, arguments))
        except Refused as error:
            has_system = any(role == "system" for role, _ in messages)
            hint = "/system - removes the system prompt." if has_system and self.behaviour.system != "used" else ""
            raise PromptError("The chat template refuses the conversation.", f"It says: {error}", hint) from error
        except Stopped as error:
            raise PromptError("The chat template was stopped.", str(error), WAYS_OUT) from error
        said = next((content for role, content in reversed(messages) if role == "user"), "")
        if not holds(text, said):
            raise PromptError("The chat template leaves out what you said.", "It is not in the prompt.", WAYS_OUT)
        return text

    @property
    def notices(self) -> tuple[str, ...]:
        """What is worth knowing about it, in words."""
        own = ("the tokenizer's own code renders it, without a limit of time",) if self.own_code else ()
        return (*self.behaviour.notices, *own)

    @property
    def words(self) -> str:
        """Where it comes from and what is worth knowing about it."""
        return "; ".join((self.template.words, *self.notices))

    def entries(self, given: Mapping[str, Any]) -> tuple[Entry, ...]:
        """The arguments that it reads and that are not given, for the ledger."""
        left = (name for name in self.arguments if name not in given)
        return tuple(Entry(TEMPLATES, name, False, "an argument that is not given") for name in left)


class Trial:
    """A template with the special tokens that it is given, about to be tried out. Its process begins at once."""

    def __init__(self, template: Template, tokens: Mapping[str, Any]) -> None:
        self._template = template
        self._tokens = tokens
        self._renderer = Renderer(template.text, tokens)

    @cached_property
    def _read(self) -> list[str]:
        """The variables that it reads. Raises CheckpointError if it cannot be parsed."""
        with _named(self._template):
            return self._renderer.arguments()

    def lacks(self) -> bool:
        """Whether it reads special tokens that were not given; raises CheckpointError if it cannot be parsed."""
        return any(name not in self._tokens for name in self._read if name in TOKENS)

    def gets_the_same(self, tokens: Mapping[str, Any]) -> bool:
        """Whether it would be given the same with these special tokens; raises CheckpointError as `lacks` does."""
        return all(self._tokens.get(name) == tokens.get(name) for name in self._read if name in TOKENS)

    def take(self, given: Mapping[str, Any], rendered: Rendered | None = None) -> ChatTemplate:
        """The template, tried out with the arguments in `given`, in its own process or by `rendered`.

        Raises CheckpointError if it cannot be parsed, makes no prompt of a message, or takes too long or too much.
        """
        template, way = self._template, rendered or self._renderer.render
        names = tuple(name for name in self._read if name not in GIVEN)
        read = _read_by(names, given)
        with _named(template):
            try:
                behaviour = observe(lambda messages, begin: way(messages, begin, read))
            except Refused as error:
                missing = [name for name in names if name not in read]
                named = f" It reads {', '.join(missing)}, which is not given." if missing else ""
                example = json.dumps(dict.fromkeys(missing, "..."))
                raise CheckpointError(
                    f"The chat template in {template.source} makes no prompt of a message.",
                    f"It says: {error}.{named}",
                    f"--template_args '{example}' gives it. {WAYS_OUT}" if missing else WAYS_OUT,
                ) from error
        return ChatTemplate(
            template=template,
            behaviour=behaviour,
            rendered=way,
            arguments=names,
            own_code=rendered is not None,
        )


def take_template(
    backend: Any, template: Template, given: Mapping[str, Any] | None = None, trial: Trial | None = None
) -> ChatTemplate:
    """`template` as the tokenizer `backend` of transformers uses it; `trial` is of the same template, before that.

    Raises CheckpointError as `Trial.take` does.
    """
    tokens = backend.special_tokens_map
    if trial is None or not trial.gets_the_same(tokens):
        trial = Trial(template, tokens)
    return trial.take(given or {}, _by_transformers(backend, template) if _has_own_way(backend) else None)


@contextmanager
def _named(template: Template) -> Iterator[None]:
    try:
        yield
    except Stopped as error:
        raise CheckpointError(
            f"The chat template in {template.source} was stopped.", str(error), WAYS_OUT
        ) from error
    except Refused as error:
        line = "" if error.line is None else f"Line {error.line}: "
        raise CheckpointError(
            f"The chat template in {template.source} cannot be parsed.", f"{line}{error}", WAYS_OUT
        ) from error


def _read_by(names: Sequence[str], given: Mapping[str, Any] | None) -> dict[str, Any]:
    # What the template does not read may be an argument of another kind: it stays here.
    return {name: value for name, value in (given or {}).items() if name in names}


def _has_own_way(backend: Any) -> bool:
    """Whether the tokenizer's class makes prompts by code of its own, as few do."""
    return getattr(type(backend).apply_chat_template, "__module__", "") != "transformers.tokenization_utils_base"


def _by_transformers(backend: Any, template: Template) -> Rendered:
    """The template in this process, without bounds."""
    from jinja2 import TemplateError

    def render(messages: Messages, begin_reply: bool, arguments: Mapping[str, Any]) -> str:
        try:
            text: str = backend.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=begin_reply,
                chat_template=template.text,
                **arguments,
            )
        except (TemplateError, ArithmeticError, AttributeError, ImportError, LookupError, *OF_VALUES) as error:
            raise Refused(str(error)) from error
        return text

    return render
