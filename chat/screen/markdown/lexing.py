"""A lexer of rules, run over one line after the other. Imported when the first code block comes.

The toolkit's own loop tries a state's rules one by one at every token, some forty in Python's; here they are one
expression, whose alternatives the regular expression engine skips by their first character.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

from pygments.lexer import LexerContext, RegexLexer
from pygments.token import Error, Text, _TokenType

# How a rule matches, what it makes of a match, and which states come next.
Rule = tuple[Callable[..., Any], Any, Any]
Find = Callable[[str, int, int], tuple[Any, Rule] | None]

FLAGS = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}
LEADING_FLAGS = re.compile(r"\A\(\?[aimsux]+\)")
# What an expression cannot keep when others stand before it: numbered or named groups, flags for all of it.
BOUND = re.compile(r"\\[1-9]|\(\?P|\(\?\(|\(\?[aiLmsux]+\)")


class LineLexer:
    """One text by the rules of `lexer`, line by line.

    Raises TypeError, AttributeError or KeyError where these rules want more than a line and a stack of states.
    """

    def __init__(self, lexer: RegexLexer) -> None:
        self._lexer = lexer
        self._stack = ["root"]

    def line(self, line: str) -> Iterator[tuple[_TokenType, str]]:
        """The pieces of the next line, its line end included."""
        lexer = self._lexer
        context = LexerContext(line, 0, list(self._stack))
        while True:
            found = _finder(lexer, context.stack[-1])(line, context.pos, context.end)
            if found is None:
                if context.pos >= context.end:
                    break
                yield (Text if line[context.pos] == "\n" else Error), line[context.pos]
                if line[context.pos] == "\n":
                    context.stack = ["root"]
                context.pos += 1
                continue
            match, (_, action, new_state) = found
            if type(action) is _TokenType:
                yield action, match.group()
                context.pos = match.end()
            elif action is not None:
                yield from ((kind, text) for _, kind, text in action(lexer, match, context))
            if new_state is not None:
                _enter(context.stack, new_state)
        self._stack = context.stack


def _enter(stack: list[str], new: int | str | tuple[str, ...]) -> None:
    """Go on to other states, as `RegexLexer` does."""
    if isinstance(new, int):
        del stack[max(1, len(stack) + new) if new < 0 else max(1, new) :]
        return
    for state in (new,) if isinstance(new, str) else new:
        if state == "#pop":
            del stack[max(1, len(stack) - 1) :]
        else:
            stack.append(stack[-1] if state == "#push" else state)


@lru_cache(maxsize=256)
def _finder(lexer: RegexLexer, state: str) -> Find:
    """What finds the first rule of a state that matches, and its match."""
    parts = list(_parts(lexer._tokens[state]))  # type: ignore[attr-defined]

    def find(line: str, at: int, end: int) -> tuple[Any, Rule] | None:
        for match_any, rules in parts:
            match = match_any(line, at, end)
            if not match:
                continue
            if len(rules) == 1:
                return match, rules[0]
            rule = rules[int(match.lastgroup[1:])]
            # An action that takes the match apart wants its own groups.
            return (match if type(rule[1]) is _TokenType else rule[0](line, at, end)), rule
        return None

    return find


def _parts(rules: Sequence[Rule]) -> Iterator[tuple[Callable[[str, int, int], Any], Sequence[Rule]]]:
    """The rules in order, as many of them in one expression as can be.

    There an empty group called by its number follows each: groups around them would hide their first characters.
    """
    for alone, some in groupby(rules, lambda rule: _source(rule) is None):
        together = list(some)
        try:
            joined = (
                None
                if alone
                else re.compile("|".join(f"{_source(one)}(?P<r{at}>)" for at, one in enumerate(together)))
            )
        except (re.error, OverflowError):
            joined = None
        if joined is None or len(together) == 1:
            yield from ((rule[0], [rule]) for rule in together)
        else:
            yield joined.match, together


def _source(rule: Rule) -> str | None:
    """A rule's expression with its own flags, to stand among others; None if it cannot."""
    expression = getattr(rule[0], "__self__", None)
    if not isinstance(expression, re.Pattern):
        return None
    flags = "".join(letter for letter, flag in FLAGS.items() if expression.flags & flag)
    pattern = LEADING_FLAGS.sub("", expression.pattern)
    if BOUND.search(pattern):
        return None
    end = "\n)" if expression.flags & re.VERBOSE else ")"
    return f"(?{flags}:{pattern}{end}"
