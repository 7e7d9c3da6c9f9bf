"""A conversation as one HTML page: Markdown and code rendered, light and dark, nothing fetched. Pure."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from typing import Any

from chat.sessions.exported import HEADINGS, Conversation, facts_of, with_states
from chat.text.transcript import SYSTEM

NAME = re.compile(r"(?<!\w)__[^\W_]\w*__(?!\w)")
MARKS = re.compile(r"[*_]+(?=[^\W_])")
STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --page: #ffffff; --user: #eef2f7; --code: #f6f8fa;
  --quiet: #59636e; --line: #d1d9e0; --link: #0b57d0 }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --page: #0d1117; --user: #161f2b; --code: #161b22;
  --quiet: #9198a1; --line: #3d444d; --link: #8ab4f8 } }
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.4rem } section > h2 { font-size: .85rem; color: var(--quiet); margin: 1.6rem 0 .3rem }
section.user > div, section.system > div { background: var(--user); border-radius: .6rem; padding: .1rem .9rem }
pre, code { font-family: ui-monospace, monospace; font-size: .88em; background: var(--code); border-radius: .4rem }
code { padding: .1em .3em } pre { padding: .8rem; overflow-x: auto } pre code { padding: 0 }
table { border-collapse: collapse } th, td { border: 1px solid var(--line); padding: .25rem .6rem }
blockquote { border-left: .2rem solid var(--line); margin-left: 0; padding-left: 1rem; color: var(--quiet) }
a { color: var(--link) } .said { white-space: pre-wrap; margin: .6rem 0 }
p.facts { font-size: .75rem; color: var(--quiet); border-top: 1px solid var(--line); padding-top: .3rem }
"""


def as_html(conversation: Conversation) -> bytes:
    """The page, in UTF-8."""
    render = _renderer()
    sections = []
    if conversation.system:
        sections.append(_section(SYSTEM, "", f'<p class="said">{html.escape(conversation.system)}</p>'))
    for node, state in with_states(conversation):
        # What the user wrote is shown as it was typed.
        body = render(node.text) if node.made is not None else f'<p class="said">{html.escape(node.text)}</p>'
        facts = "" if node.made is None else f'<p class="facts">{html.escape(facts_of(node.made))}</p>'
        sections.append(_section(node.role, state, body, facts))
    title = html.escape(conversation.title)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}{_code_style()}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )
    return _visible(page).encode(errors="replace")


def _section(role: str, state: str, body: str, facts: str = "") -> str:
    heading = f"{HEADINGS[role]} ({state})" if state else HEADINGS[role]
    return f'<section class="{role}"><h2>{html.escape(heading)}</h2><div>{body}</div>{facts}</section>'


def _renderer() -> Callable[[str], str]:
    """Markdown to HTML: raw HTML is shown as text, pictures are not fetched, backslashes and entities stay."""
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False, "highlight": _highlight}).enable(["table", "strikethrough"])
    markdown.disable(["image", "escape", "entity", "reference", "lheading"])
    markdown.inline.ruler.before("strikethrough", "within_words", _within_words)

    def fence(tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
        return f"<pre><code>{_highlight(tokens[at].content, tokens[at].info.strip(), '')}</code></pre>\n"

    markdown.add_render_rule("fence", lambda self, tokens, at, options, env: fence(tokens, at, options, env))
    return lambda text: str(markdown.render(text))


def _within_words(state: Any, silent: bool) -> bool:
    """Asterisks and underscores within words and numbers, and names like __init__, are themselves."""
    text, start = state.src, state.pos
    found = NAME.match(text, start) or (MARKS.match(text, start) if text[start - 1 : start].isalnum() else None)
    if found is None:
        return False
    end = found.end()
    if not silent:
        state.pending += text[start:end]
    state.pos = end
    return True


def _highlight(code: str, language: str, attributes: str) -> str:
    """The code with its parts in <span>s; as it is for a language that nobody knows."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language.split()[0] if language.split() else "text", stripnl=False)
    except ClassNotFound:
        return html.escape(code)
    return str(highlight(code, lexer, HtmlFormatter(nowrap=True)))


def _code_style() -> str:
    from pygments.formatters import HtmlFormatter

    colours = []
    for name in ("default", "github-dark"):
        style: str = HtmlFormatter(style=name).get_style_defs("pre")  # type: ignore[no-untyped-call]
        # Not the background: the page has its own.
        colours.append("\n".join(line for line in style.splitlines() if line.startswith("pre .")))
    return f"{colours[0]}\n@media (prefers-color-scheme: dark) {{\n{colours[1]}\n}}\n"


def _visible(text: str) -> str:
    """Control characters, which HTML cannot hold, as their pictures."""
    return "".join(chr(0x2400 + ord(one)) if ord(one) < 32 and one not in "\t\n" else one for one in text)
