"""Settings refuse what cannot be, and say what can."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist.errors import UsageError
from dist.group.wire import Verdict, order_from_bytes, order_to_bytes
from dist.protocol import Turn
from dist.setting_kinds import OF_RANK_0, JsonObject, OneOf, Real, Text, Texts, Whole
from dist.settings import (
    SETTINGS,
    GenerationSettings,
    Setting,
    pack_settings,
    parse_setting,
    setting_text,
    unpack_settings,
)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("refine_iter", "0", "refine_iter cannot be '0'. It takes a whole number from 1 to 4096, or auto"),
        ("refine_iter", 2.5, "refine_iter cannot be 2.5. It takes a whole number"),
        ("add_eos_length", "-1", "add_eos_length cannot be '-1'. It takes a whole number from 0 to 4095."),
        ("temperature", "nan", "temperature cannot be 'nan'. It takes a number from 0 (greedy) to 10."),
        ("top_p", 0, "top_p cannot be 0. It takes a number above 0, at most 1 (off)."),
        ("max_length", 2**31, "max_length cannot be 2147483648. It takes a whole number from 2 to 2147483647."),
        ("top_k", 1e300, "top_k cannot be 1e+300. It takes a whole number from 0 (off) to 2147483647."),
        ("max_new_tokens", True, "max_new_tokens cannot be True."),
        ("seed", "x", "seed cannot be 'x'. It takes a whole number from 0, or none"),
        ("stop", "", "stop cannot be ''. It takes text, several texts in double quotes"),
        ("stop", '"open', "stop cannot be '\"open'. It takes text"),
        ("stop", [1], "stop cannot be [1]."),
        ("decoder", "fast", "decoder cannot be 'fast'. It takes cached or plain."),
    ],
)
def test_a_bad_value_says_the_range_and_changes_nothing(name, value, message):
    settings = GenerationSettings()
    with pytest.raises(UsageError) as caught:
        settings.with_value(name, value)
    assert str(caught.value).startswith(message)
    assert settings == GenerationSettings()


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("none", ()),
        (None, ()),
        ("User:", ("User:",)),
        ('say "no"', ('say "no"',)),
        ('"\\n\\n" "none"', ("\n\n", "none")),
        (["a", "b", "a"], ("a", "b")),
    ],
)
def test_stop_texts_are_read(given, read):
    settings = GenerationSettings().with_value("stop", given)
    assert settings.stop == read
    assert parse_setting("stop", setting_text(read)) == read


def test_words_and_text_are_read():
    settings = GenerationSettings().with_value("refine_iter", "AUTO").with_value("temperature", "0.7")
    settings = settings.with_value("seed", "5").with_value("seed", "none").with_value("add_eos_length", " 7")
    assert (settings.refine_iter, settings.temperature, settings.seed) == ("auto", 0.7, None)
    assert settings.add_eos_length == 7
    assert settings.samples


def test_every_row_of_the_table_has_its_default_and_examples_in_range():
    settings = GenerationSettings()
    assert all(getattr(settings, name) == row.default for name, row in SETTINGS.items())
    for row in SETTINGS.values():
        for example in row.examples:
            row.kind.parse(example)


def values_of(row: Setting) -> st.SearchStrategy[object]:
    """Every value that a row allows."""
    kind = row.kind
    if isinstance(kind, OneOf):
        return st.sampled_from(kind.words)
    if isinstance(kind, Texts):
        return st.lists(st.text(min_size=1), unique=True)
    if isinstance(kind, Text):
        return st.text()
    if isinstance(kind, JsonObject):
        return st.dictionaries(st.text(), st.booleans() | st.text())
    assert isinstance(kind, (Whole, Real))
    numbers: st.SearchStrategy[object] = (
        st.integers(kind.low, kind.high)
        if isinstance(kind, Whole)
        else st.floats(kind.low, kind.high, exclude_min=kind.above)
    )
    return numbers if kind.word is None else numbers | st.just(kind.word.value)


ANY_SETTINGS = st.fixed_dictionaries({name: values_of(row) for name, row in SETTINGS.items()})


@given(values=ANY_SETTINGS)
def test_settings_survive_packing_and_the_wire(values):
    settings = GenerationSettings(**values)
    assert settings.as_dict() == values
    packed = pack_settings(settings)
    assert all(-(2**63) <= number < 2**63 for number in packed)
    # What only rank 0 obeys does not travel.
    kept = {name: row.default for name, row in SETTINGS.items() if isinstance(row.kind, OF_RANK_0)}
    travelled = dataclasses.replace(settings, **kept)
    assert unpack_settings(packed) == travelled
    verdict = Verdict(token_ids=[3, 2**31], ends=[None, 1], settings=travelled, cancel=True)
    assert Verdict.unpacked(verdict.packed(), 2) == verdict
    turn = Turn(prompts=((1,),), settings=settings, placeholder=2, stop_ids=(), row_settings=(settings,))
    assert order_from_bytes(order_to_bytes(turn)) == turn


def test_the_table_and_the_dataclass_hold_the_same_names():
    assert [field.name for field in dataclasses.fields(GenerationSettings)] == list(SETTINGS)
