"""The slash commands that look closely at replies: compare, copy, figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from chat.commands.files import checkpoint_values
from chat.commands.row import Value, command, exchanges, first_word, unquoted, whole_number
from chat.commands.settings import known_setting, setting_names, setting_values
from chat.screen.markdown.stream import code_blocks
from chat.screen.stats_lines import stats_rows
from dist.counted import counted
from dist.errors import UsageError

if TYPE_CHECKING:
    from chat.conversation.repl import Repl

SHOWN_TOKENS = 500
SHOWN_MESSAGES = 40


STEP = "step"


def _compared(repl: Repl, words: tuple[str, ...], word: str) -> Iterable[Value]:
    """A setting or steps, then values that are not there yet; or a reply of the last comparison."""
    kept = repl.comparing.kept
    if not words:
        keep = [("keep ", "continue with a reply of the last comparison")] if kept else []
        return (*keep, (f"{STEP} ", "checkpoints of this run, or others"), *setting_names())
    if words[0] == "keep":
        return ((str(number), label) for number, label in enumerate(kept, 1)) if len(words) == 1 else ()
    if words[0] == STEP:
        return (value for value in checkpoint_values(repl, word) if value[0] not in words)
    return (value for value in setting_values(words[0]) if value[0] not in words)


@command(
    "compare",
    "/compare NAME VALUE VALUE...|step STEP...|keep N",
    "answer the last message once per value of a setting, or per step, and compare; keep: continue with reply N",
    values=_compared,
    example="/compare refine_iter 1 2 auto, or /compare step 100 200 latest",
)
def compare(repl: Repl, argument: str) -> None:
    name, *values = argument.split() or [""]
    if name == "keep":
        repl.comparing.keep(whole_number(" ".join(values), "/compare keep"))
        return
    if name == STEP:
        repl.comparing.compare_steps(values)
        return
    if name:
        known_setting(name)
    if len(set(values)) < 2:
        raise UsageError(
            "/compare needs a setting and two values or more.", "", "For example: /compare refine_iter 1 2 auto"
        )
    repl.comparing.compare(name, values)


HERE = "here"


@command(
    "replay",
    "/replay [here]",
    "decode every reply again with the checkpoint that made it (here: the loaded one); say if any differs",
    values=first_word(lambda repl, word: [(HERE, "all with the model that is loaded now")]),
    example="/replay here",
)
def replay(repl: Repl, argument: str) -> None:
    if argument not in ("", HERE):
        raise UsageError(f"/replay cannot take {argument!r}.", "It takes nothing, or here.")
    repl.replaying.replay(own=not argument)


def _copied(repl: Repl, words: tuple[str, ...], word: str) -> Iterable[Value]:
    """`code`, then the number of a block."""
    blocks = code_blocks(repl.talk.transcript.last_reply or "")
    if not words:
        return (("code", f"the reply has {counted(len(blocks), 'code block')}"),) if blocks else ()
    return ((str(k), text.split("\n")[0][:60]) for k, text in enumerate(blocks, 1)) if words == ("code",) else ()


@command(
    "copy",
    "/copy [code [K]]",
    "put the last reply, or its first or K-th code block, on the clipboard of your terminal",
    values=_copied,
    example="/copy code 2",
)
def copy(repl: Repl, argument: str) -> None:
    from chat.console.output import osc_52  # and with it prompt_toolkit, which a plain terminal does without

    text, what = repl.talk.transcript.last_reply, "the last reply"
    if not text:
        raise UsageError("There is no reply to copy.")
    word, _, number = argument.partition(" ")
    if word not in ("", "code"):
        raise UsageError(f"/copy cannot take {argument!r}.", "It takes nothing, or code, or code and a number.")
    if word:
        blocks, k = code_blocks(text), whole_number(number.strip(), "/copy code")
        if k > len(blocks):
            there = counted(len(blocks), "code block") if blocks else "no code blocks"
            raise UsageError(f"There is no code block {k}.", f"The last reply has {there}.")
        text, what = blocks[k - 1], f"code block {k} of {len(blocks)}"
    if not repl.page.console.send(osc_52(text)):
        raise UsageError("Nothing can be copied here.", "This terminal is used without escape codes.")
    repl.note(
        f"Sent {what} to the terminal's clipboard: {len(text):,} characters. Not every terminal supports this."
    )


@command("context", "/context", "what each message takes of the context, what is cached, what does not fit")
def show_context(repl: Repl, argument: str) -> None:
    found = repl.talk.context()
    if found is None:
        repl.note("There are no messages yet.")
        return
    cached = repl.cached_tokens
    rows = []
    for share in found.shares[-SHOWN_MESSAGES:]:
        state = "left out" if share.left_out else "cached" if share.end <= cached else ""
        rows.append(
            (share.message.role, f"{share.tokens:,}", state, " ".join(share.message.content[:200].split())[:50])
        )
    rows.append(("template", f"{found.template:,}", "", ""))
    more = len(found.shares) - SHOWN_MESSAGES
    if more > 0:
        repl.note(f"{counted(more, 'message')} before these.")
    repl.page.table(rows, head=("message", "tokens", "", ""))
    repl.note(
        f"{found.total:,} of {found.limit:,} tokens in {exchanges(len(repl.talk.transcript.exchanges))}; "
        f"{min(cached, found.total):,} are in the KV cache."
    )
    out = repl.talk.next_left_out()
    if out:
        repl.note(f"The next turn leaves out the oldest {exchanges(out)}.")


@command(
    "why",
    "/why [WORD]",
    "how likely the model finds the last reply's tokens: the least likely ones, or those of WORD",
    example="/why Paris",
)
def why(repl: Repl, argument: str) -> None:
    repl.why(unquoted(argument))


@command("stats", "/stats", "figures of the last reply")
def stats(repl: Repl, argument: str) -> None:
    last = repl.talk.last_reply
    if last is None:
        repl.note("No reply has been made yet.")
        return
    repl.page.table(stats_rows(last))


@command(
    "prompt",
    "/prompt [ids]",
    "what the model was given last, special tokens included; ids: token by token",
    values=first_word(lambda repl, word: [("ids", "each token with its id")]),
    example="/prompt ids",
)
def prompt(repl: Repl, argument: str) -> None:
    if argument not in ("", "ids"):
        raise UsageError(f"/prompt cannot take {argument!r}.", "It takes nothing, or ids.")
    asked = repl.talk.transcript.without_reply()
    if asked.last_question is None:
        raise UsageError("There is no prompt yet.", "/prompt shows what your last message was put into.")
    tokenizer, ids = repl.talk.tokenizer, repl.talk.fitted(asked).token_ids
    if argument:
        rows = [(f"{at}", f"{one}", repr(tokenizer.decode([one], False))) for at, one in enumerate(ids)]
        repl.page.table(rows[-SHOWN_TOKENS:], head=("place", "id", "token"))
        if len(rows) > SHOWN_TOKENS:
            repl.note(f"The last {SHOWN_TOKENS} of {len(rows):,} tokens.")
    else:
        repl.page.raw(tokenizer.decode(ids, False))
        repl.note(f"{counted(len(ids), 'token')}.")
