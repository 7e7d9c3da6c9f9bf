"""Conversations as values, and their way into token ids by a real tokenizer and template."""

from __future__ import annotations

import dataclasses

import pytest
from checkpoints import save_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from other_template import with_template

from chat.text.prompt import fit, prompt_ids
from chat.text.tokenizer import ChatTokenizer, load_tokenizer
from chat.text.transcript import Message, Transcript, message_from
from dist.errors import PromptError
from dist.settings import GenerationSettings

SMALL = GenerationSettings(max_length=200, max_new_tokens=20)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return load_tokenizer(folder)


def greedy_otherwise(tokenizer: ChatTokenizer, text: str) -> tuple[int, ...]:
    """Ids of `text` that the tokenizer would not choose itself: one a character (in ASCII)."""
    ids = tuple(one for mark in text for one in tokenizer.encode(mark))
    assert ids != tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    return ids


def contents(transcript: Transcript) -> list[str]:
    return [message.content for message in transcript.messages]


# The value.


def test_messages_are_added_without_changing_the_transcript_before() -> None:
    empty = Transcript()
    one = empty.with_system("Be kind.").with_user("Hello")
    two = one.with_reply("Hi", (1, 2))
    assert contents(empty) == []
    assert contents(one) == ["Be kind.", "Hello"]
    assert two.messages[-1] == Message("assistant", "Hi", (1, 2))


def test_the_system_prompt_is_replaced_and_removed() -> None:
    transcript = Transcript().with_user("a").with_system("one").with_system("two")
    assert contents(transcript) == ["two", "a"]
    assert transcript.system == "two"
    assert contents(transcript.with_system("")) == ["a"]
    assert Transcript().system == ""


def test_the_oldest_exchanges_are_left_out_whole_and_the_system_prompt_stays() -> None:
    transcript = Transcript().with_system("s")
    for word in "abc":
        transcript = transcript.with_user(word).with_reply(word.upper())
    assert contents(transcript.without_oldest(2)) == ["s", "c", "C"]
    assert contents(transcript.without_oldest(9)) == ["s"]
    assert contents(transcript.without_oldest(0)) == contents(transcript)


def test_a_message_without_a_reply_is_marked_when_the_next_one_comes() -> None:
    transcript = Transcript().with_user("a").with_user("b")
    assert [message.unanswered for message in transcript.messages] == [True, False]
    assert transcript.last_question == "b"
    assert contents(transcript.for_model()) == ["b"]


def test_retry_answers_the_same_message_again() -> None:
    transcript = Transcript().with_user("a").with_reply("A")
    assert transcript.without_reply() == Transcript().with_user("a")
    cancelled = Transcript().with_user("a").mark_unanswered()
    assert contents(cancelled.for_model()) == ["a"]
    answered = cancelled.with_reply("A")
    assert [message.unanswered for message in answered.messages] == [False, False]


def test_lone_surrogates_become_replacement_characters() -> None:
    assert Message("user", "a\udce9b \ud83d\ude00").content == "a\ufffdb \U0001f600"


def test_a_message_comes_back_from_its_plain_form() -> None:
    for message in (
        Message("user", "x", unanswered=True),
        Message("assistant", "y", (1, 2), stopped=True, left_out=3),
    ):
        assert message_from(message.as_dict()) == message


# Into token ids.


def test_a_prompt_goes_through_the_template(tokenizer: ChatTokenizer) -> None:
    ids = prompt_ids(Transcript().with_system("s").with_user("q"), tokenizer, True)
    assert tokenizer.decode(ids, False) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    )


def test_without_a_template_texts_are_joined_by_newlines(tokenizer: ChatTokenizer) -> None:
    transcript = Transcript().with_system("s").with_user("q").with_reply("r").with_user("p")
    assert tokenizer.decode(prompt_ids(transcript, tokenizer, False), False) == "s\nq\nr\np"


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("usual", [True, False])
def test_the_next_prompt_begins_with_the_last_prompt_and_the_reply_s_own_ids(
    tokenizer: ChatTokenizer, ended: bool, usual: bool
) -> None:
    first = Transcript().with_system("You are kind.").with_user("What is the capital of France?")
    text = "The capital is Paris."
    reply = tokenizer.encode(text) if usual else greedy_otherwise(tokenizer, text)
    reply = (*reply, tokenizer.eos_id) if ended else reply
    second = first.with_reply(text, reply).with_user("And what is it?")
    before, after = prompt_ids(first, tokenizer, True), prompt_ids(second, tokenizer, True)
    assert after[: len(before) + len(reply)] == (*before, *reply)
    third = second.with_reply(text, reply).with_user("In plain words.")
    assert prompt_ids(third, tokenizer, True)[: len(after) + len(reply)] == (*after, *reply)


def test_own_ids_are_kept_without_a_template_too(tokenizer: ChatTokenizer) -> None:
    reply = greedy_otherwise(tokenizer, "Paris is the capital")
    transcript = Transcript().with_user("a").with_reply("Paris is the capital", reply).with_user("b")
    assert prompt_ids(transcript, tokenizer, False) == (
        *tokenizer.encode("a\n"),
        *reply,
        *tokenizer.encode("\nb"),
    )


def test_a_reply_cut_inside_a_character_keeps_its_ids(tokenizer: ChatTokenizer) -> None:
    reply = tokenizer.encode("\u4e16\u4e16")[:-1]
    text = tokenizer.decode(reply)
    assert text.endswith("\ufffd")
    transcript = Transcript().with_user("a").with_reply(text, reply).with_user("b")
    ids = prompt_ids(transcript, tokenizer, True)
    start = len(prompt_ids(Transcript().with_user("a"), tokenizer, True))
    assert ids[start : start + len(reply)] == reply


@pytest.mark.parametrize(
    ("body", "content"),
    [
        ("{{ message.content | trim }}", "  Paris \n"),
        ("{{ message.content.split('</think>')[-1] }}", "<think>hm</think>Paris"),
        ("{{ message.content | upper }}", "Paris is"),
    ],
)
def test_a_template_that_changes_contents_is_obeyed(tokenizer: ChatTokenizer, body: str, content: str) -> None:
    changing = with_template(tokenizer, "{% for message in messages %}|" + body + "{% endfor %}|")
    reply = greedy_otherwise(changing, content)
    transcript = Transcript().with_user("a").with_reply(content, reply).with_user("b")
    plain = Transcript((Message("user", "a"), Message("assistant", content), Message("user", "b")))
    assert prompt_ids(transcript, changing, True) == prompt_ids(plain, changing, True)


def test_ids_that_do_not_decode_to_the_reply_s_text_are_not_used(tokenizer: ChatTokenizer) -> None:
    wrong = tokenizer.encode("London")
    transcript = Transcript().with_user("a").with_reply("Paris", wrong).with_user("b")
    plain = Transcript().with_user("a").with_reply("Paris").with_user("b")
    assert prompt_ids(transcript, tokenizer, True) == prompt_ids(plain, tokenizer, True)


def test_a_reply_with_a_special_token_inside_is_given_as_its_text(tokenizer: ChatTokenizer) -> None:
    reply = (*tokenizer.encode("Pa"), 0, *tokenizer.encode("ris"))
    transcript = Transcript().with_user("a").with_reply(tokenizer.decode(reply), reply).with_user("b")
    assert 0 not in prompt_ids(transcript, tokenizer, True)


@given(texts=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4), template=st.booleans())
@settings(max_examples=60, deadline=None)
def test_spliced_or_not_the_prompt_s_text_is_the_template_s(
    tokenizer: ChatTokenizer, texts: list[str], template: bool
) -> None:
    spliced, plain = Transcript(), Transcript()
    for text in texts:
        ids = tuple(one for mark in text for one in tokenizer.encode(mark))
        spliced = spliced.with_user("q").with_reply(text, (*ids, tokenizer.eos_id))
        plain = plain.with_user("q").with_reply(text)
    decoded = [
        tokenizer.decode(prompt_ids(one.with_user("end"), tokenizer, template), False) for one in (spliced, plain)
    ]
    assert decoded[0] == decoded[1]


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_prompt_is_refused(tokenizer: ChatTokenizer, text: str, template: bool) -> None:
    with pytest.raises(PromptError, match="The prompt is empty"):
        prompt_ids(Transcript().with_system("s").with_user(text), tokenizer, template)


def test_what_a_template_refuses_is_reported_in_its_own_words(tokenizer: ChatTokenizer) -> None:
    refusing = with_template(
        tokenizer,
        "{% if messages|length > 2 %}{{ raise_exception('Roles must alternate, please.') }}{% endif %}"
        "{% for message in messages %}{{ message.content }}{% endfor %}",
    )
    transcript = Transcript().with_user("a").with_reply("b").with_user("c")
    with pytest.raises(PromptError) as caught:
        prompt_ids(transcript, refusing, True)
    assert str(caught.value) == (
        "The chat template refuses the conversation. It says: Roles must alternate, please."
    )


# What fits.


def exchanges(count: int) -> Transcript:
    transcript = Transcript().with_system("Be kind.")
    for number in range(count):
        transcript = transcript.with_user(f"Question {number}").with_reply(f"Answer {number}")
    return transcript.with_user("Last question")


def test_a_prompt_that_fits_is_left_whole(tokenizer: ChatTokenizer) -> None:
    transcript = exchanges(1)
    fitted = fit(transcript, tokenizer, SMALL, None, use_template=True)
    assert fitted.token_ids == prompt_ids(transcript, tokenizer, True)
    assert fitted.left_out == ()
    assert fitted.limit == 200


@pytest.mark.parametrize("count", [2, 3, 5, 9, 20])
def test_the_fewest_oldest_exchanges_are_left_out_whole(tokenizer: ChatTokenizer, count: int) -> None:
    transcript = exchanges(count)
    fitted = fit(transcript, tokenizer, SMALL, None, use_template=True)
    out = len(fitted.left_out)
    assert fitted.left_out == transcript.exchanges[:out]
    assert fitted.token_ids == prompt_ids(transcript.without_oldest(out), tokenizer, True)
    assert len(fitted.token_ids) + 20 <= 200
    assert out == 0 or len(prompt_ids(transcript.without_oldest(out - 1), tokenizer, True)) + 20 > 200
    text = tokenizer.decode(fitted.token_ids)
    assert "Be kind." in text
    assert "Last question" in text


def test_room_for_64_tokens_of_reply_is_enough(tokenizer: ChatTokenizer) -> None:
    transcript = Transcript().with_user("Question")
    length = len(prompt_ids(transcript, tokenizer, True))
    for new, room in ((1000, 64), (64, 64), (63, 63), (1, 1)):
        exact = GenerationSettings(max_new_tokens=new, max_length=length + room)
        assert fit(transcript, tokenizer, exact, None, use_template=True).limit == length + room
        with pytest.raises(PromptError):
            fit(transcript, tokenizer, exact.with_value("max_length", length + room - 1), None, use_template=True)


def test_what_cannot_fit_is_refused_with_the_numbers(tokenizer: ChatTokenizer) -> None:
    transcript = exchanges(3).with_user("word " * 100)
    length = len(prompt_ids(Transcript((transcript.messages[0], transcript.messages[-1])), tokenizer, True))
    with pytest.raises(PromptError) as caught:
        fit(transcript, tokenizer, SMALL, None, use_template=True)
    assert str(caught.value) == (
        f"The prompt is too long. It has {length} tokens; with room for 20 tokens of reply the limit is 200 "
        "(max_length). Shorten it, or raise max_length."
    )


def test_a_limit_that_the_checkpoint_sets_is_named_as_its_own(tokenizer: ChatTokenizer) -> None:
    transcript = exchanges(1).with_user("word " * 100)
    source = "checkpoint's generation_config.json"
    with pytest.raises(PromptError, match=r"\(max_length, from the checkpoint's generation_config.json\)"):
        fit(transcript, tokenizer, SMALL, None, use_template=True, max_length_from=source)


def test_a_token_that_the_model_has_no_embedding_for_is_refused(tokenizer: ChatTokenizer) -> None:
    few = dataclasses.replace(tokenizer, rows=200)
    with pytest.raises(PromptError, match="The model has no embedding for "):
        fit(Transcript().with_user("The capital of France"), few, SMALL, None, use_template=True)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{% for message in messages if message.role != 'system' %}{{ message.content }}{% endfor %}", "ignored"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
            "{% for message in messages %}{{ message.content }}{% endfor %}",
            "refused",
        ),
        ("{% for message in messages %}{{ message.content }}{% endfor %}", "used"),
    ],
)
def test_what_becomes_of_a_system_prompt_is_seen_when_a_template_is_taken(
    tokenizer: ChatTokenizer, body: str, words: str
) -> None:
    taken = with_template(tokenizer, body)
    assert taken.template is not None
    assert taken.template.behaviour.system == words
    if words == "refused":
        with pytest.raises(PromptError, match=r"It says: no /system - removes the system prompt\."):
            prompt_ids(Transcript().with_system("s").with_user("a"), taken, True)


def test_contents_go_as_parts_where_a_template_wants_them_so(tokenizer: ChatTokenizer) -> None:
    part = "{% for part in message.content %}<{{ part.text }}>{% endfor %}"
    taken = with_template(tokenizer, "{% for message in messages %}" + part + "{% endfor %}")
    assert taken.template is not None and taken.template.behaviour.parts
    assert tokenizer.decode(prompt_ids(Transcript().with_user("Hello"), taken, True), False) == "<Hello>"


def test_a_tokenizer_that_makes_prompts_by_its_own_code_is_said_to_have_no_limit(tokenizer: ChatTokenizer) -> None:
    def apply_chat_template(self: object, messages: list[dict[str, str]], **given: object) -> str:
        return "".join(f"<{message['content']}>" for message in messages)

    plain = type(tokenizer.backend)
    tokenizer.backend.__class__ = type("Own", (plain,), {"apply_chat_template": apply_chat_template})
    try:
        template = with_template(
            tokenizer, "{% for message in messages %}{{ message.content }}{% endfor %}"
        ).template
        assert template is not None
        assert template.render([("user", "a")]) == "<a>"
    finally:
        tokenizer.backend.__class__ = plain
    assert template.words == "a test; the tokenizer's own code renders it, without a limit of time"


def test_the_model_s_positions_limit_too(tokenizer: ChatTokenizer) -> None:
    transcript = exchanges(3)
    assert fit(transcript, tokenizer, GenerationSettings(), 150, use_template=True).limit == 150
    with pytest.raises(PromptError, match=r"limit is 90 \(the positions that the model has\). Shorten it.$"):
        fit(transcript.with_user("word " * 100), tokenizer, GenerationSettings(), 90, use_template=True)


def test_leaving_out_can_be_refused(tokenizer: ChatTokenizer) -> None:
    transcript = exchanges(9)
    length = len(prompt_ids(transcript, tokenizer, True))
    with pytest.raises(PromptError, match=f"It has {length} tokens"):
        fit(transcript, tokenizer, SMALL, None, use_template=True, refuse=True)
