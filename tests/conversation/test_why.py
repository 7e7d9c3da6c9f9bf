"""/why: how likely the tokens of the last reply are, as a plain forward over prompt and reply has it."""

from __future__ import annotations

import re

import pytest
import torch
from hold import holder

from chat.text.prompt import prompt_ids
from chat.text.transcript import Transcript
from dist.settings import GenerationSettings

START = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=20)
ROW = re.compile(r'^ +(\d+) +(\*?)"(.*?)" +(-\d+\.\d\d) +(<?[\d.]+) % +(.*)$', re.M)


@pytest.fixture
def talk(tiny, tmp_path):
    return holder(tiny[1], tiny[2], tmp_path, START)


def test_the_doubtful_tokens_are_those_of_a_plain_forward(tiny, talk):
    model, _, tokenizer = tiny
    repl, console = talk("Hello", "/why")
    messages = repl.talk.transcript.messages
    prompt, ids = prompt_ids(Transcript(messages[:2]), tokenizer, True), messages[2].token_ids
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids[:-1]]])).logits[0, len(prompt) - 1 :]
    right = logits.log_softmax(dim=-1)
    own = [right[at, token].item() for at, token in enumerate(ids)]
    rows = ROW.findall(console.shown)
    least = sorted(sorted(range(len(ids)), key=own.__getitem__)[:12])
    assert [int(number) - 1 for number, *_ in rows] == least
    for number, star, _, value, percent, _ in rows:
        at = int(number) - 1
        assert float(value) == pytest.approx(own[at], abs=0.01)
        share = 100 * right[at, ids[at]].exp().item()
        assert percent == (f"{share:.1f}" if share >= 0.05 else "<0.1")
        assert bool(star) == (right[at].argmax().item() != ids[at])
    assert re.search(rf"^{len(ids)} tokens, .*likeliest.*; log p {sum(own):.2f}, ", console.shown, re.M)
    # Nothing has changed, and the next reply is the one that it would have been.
    assert len([node for node in repl.talk.tree.nodes() if node.made]) == 1
    assert talk("Hello", "/why", "More")[0].talk.transcript == talk("Hello", "More")[0].talk.transcript


def test_a_word_is_looked_up_across_tokens(talk):
    repl, _ = talk("Hello")
    text = repl.talk.transcript.last_reply
    word = re.search(r"[A-Za-z]{2,}|[A-Za-z]", text)[0]
    repl, console = talk("Hello", f"/why {word}", "/why never said", "/set logprobs 1", f"/why {word}")
    rows = ROW.findall(console.shown)
    assert rows and len(rows) % 2 == 0
    assert word[0] in "".join(shown for _, _, shown, *_ in rows)
    assert "The last reply does not hold 'never said'." in console.shown
    assert [best.count("%") for *_, best in rows] == [3] * (len(rows) // 2) + [1] * (len(rows) // 2)
    assert "There is no reply to look at." in talk("/why")[1].shown
