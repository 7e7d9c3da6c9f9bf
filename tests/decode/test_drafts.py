"""Where drafts come from: pure functions of the tokens so far."""

from __future__ import annotations

from dist.decode.drafts import Drafts, EarlierReply, LookUp


def test_a_look_up_gives_what_followed_the_longest_and_newest_same_end():
    text = [1, 2, 3, 7, 5, 1, 2, 3, 8, 6, 9, 2, 3, 4, 1, 2, 3]
    tokens, sure = LookUp()(text, 3)
    # Three tokens the same, the newest time; 9 2 3 is as new, but shorter.
    assert (tokens, sure) == ([8, 6, 9], 3)
    assert LookUp()([1, 2, 3, 4], 3) is None


def test_what_comes_round_again_goes_on_coming_round():
    tokens, _ = LookUp()([9, 1, 2, 3, 1, 2, 3], 8)
    assert tokens == [1, 2, 3, 1, 2, 3, 1, 2]


def test_the_index_grows_with_the_text():
    grown, text = LookUp(), [1, 2, 3]
    for token in (4, 5, 1, 2, 6, 1, 2, 3, 4):
        text = [*text, token]
        assert grown(text, 4) == LookUp()(text, 4)


def test_an_earlier_reply_is_followed_and_found_again_after_a_difference():
    prompt, old = [90, 91], [1, 2, 3, 4, 5, 6, 7, 8]
    earlier = EarlierReply(old, len(prompt))
    assert earlier(prompt, 3) == ([1, 2, 3], 0)
    assert earlier([*prompt, 1, 2], 3) == ([3, 4, 5], 0)
    # Another token, and another one: lost. Two of its tokens: found, behind the place where it was lost.
    assert earlier([*prompt, 1, 2, 55], 3) is None
    assert earlier([*prompt, 1, 2, 55, 5], 3) is None
    assert earlier([*prompt, 1, 2, 55, 5, 6], 3) == ([7, 8], 0)
    # Its end is no guess.
    assert earlier([*prompt, 1, 2, 55, 5, 6, 7, 8], 3) is None


def test_a_source_is_taken_by_its_record():
    drafts = Drafts({"lookup": LookUp()})
    text = [1, 2, 3, 4, 9, 2, 3]
    # A look-up of two tokens that goes on in another way begins far below the own tail's record,
    for _ in range(6):
        assert drafts.draft(text, (7, 7), 2) == (7, 7)
        drafts.judge(0)
    # and is tried when that has failed;
    assert drafts.draft(text, (7, 7), 2) == [4, 9]
    drafts.judge(2)
    assert drafts.accepted == {"own": 0, "lookup": 2}
    assert drafts.draft(text, (7, 7), 2, own=True) == (7, 7)


def test_a_look_up_that_goes_on_as_the_tail_does_is_tried_sooner():
    drafts = Drafts({"lookup": LookUp()})
    text = [1, 2, 3, 4, 9, 2, 3]
    for tail, drafted in (((4, 7), (4, 7)), ((4, 7), (4, 7)), ((4, 7), [4, 9])):
        assert drafts.draft(text, tail, 2) == drafted
        drafts.judge(0)
