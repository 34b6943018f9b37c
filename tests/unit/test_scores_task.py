"""The one renderer and the one parser."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ppe_lora.tasks.scores import Answer, Reason, Rejected, ScoresTask

AB = ScoresTask(keys=("a", "b"))
TENTHS = ScoresTask(keys=("a", "b"), low=-5, high=5, decimals=1)
PROFILE = ScoresTask()


def test_render_is_the_contract_text():
    """The format every stored row, grammar and served answer depends on."""
    target = dict(zip(PROFILE.keys, (42, 77, 39, 81, 28, 74), strict=True))
    text = '{"energy":42,"warmth":77,"brightness":39,"acousticness":81,"complexity":28,"nostalgia":74}'
    assert PROFILE.render(target) == text


def test_render_fixes_key_order_and_decimals():
    """A target given in another order, or as 7 for 7.0, must not change the text."""
    assert AB.render({"b": 7.0, "a": 42}) == '{"a":42,"b":7}'
    assert TENTHS.render({"b": -5, "a": 0.5}) == '{"a":0.5,"b":-5.0}'


def test_zero_has_one_text():
    """-0.0 equals 0.0 and is written otherwise: an answer that the trie of legal texts does not have."""
    assert TENTHS.render_value(-0.04) == TENTHS.render_value(TENTHS.round(-0.04)) == TENTHS.render_value(-0.0) == "0.0"
    assert str(TENTHS.round(-0.04)) == "0.0"


def test_render_names_every_problem():
    with pytest.raises(ValueError, match="missing key 'b'; unknown key 'c'; a: expected 0 to 100; got 101"):
        AB.render({"a": 101, "c": 1})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Reason.NOT_JSON),
        ("energy is high", Reason.NOT_JSON),
        ('{"a":1,"b":2', Reason.NOT_JSON),
        ('{"a":1,"b":NaN}', Reason.NOT_JSON),
        ('{"a":1,"b":042}', Reason.NOT_JSON),
        ('{"a":1,"b":2} ok', Reason.TRAILING_TEXT),
        ('{"a":1,"b":2}{"a":1,"b":2}', Reason.TRAILING_TEXT),
        ("[1,2]", Reason.NOT_AN_OBJECT),
        ("12", Reason.NOT_AN_OBJECT),
        ('{"a":1}', Reason.MISSING_KEY),
        ('{"a":1,"b":2,"c":3}', Reason.UNKNOWN_KEY),
        ('{"a":1,"b":2,"a":3}', Reason.UNKNOWN_KEY),
        ('{"a":"1","b":2}', Reason.NOT_A_NUMBER),
        ('{"a":true,"b":2}', Reason.NOT_A_NUMBER),
        ('{"a":null,"b":2}', Reason.NOT_A_NUMBER),
        ('{"a":1.5,"b":2}', Reason.NOT_A_NUMBER),
        ('{"a":101,"b":2}', Reason.OUT_OF_RANGE),
        ('{"a":-1,"b":2}', Reason.OUT_OF_RANGE),
        ('{"a":1e999,"b":2}', Reason.OUT_OF_RANGE),
    ],
)
def test_every_rejection_has_its_reason_and_keeps_the_text(text, reason):
    """A rejected text that is repaired or mislabelled would hide a broken model."""
    outcome = AB.parse(text)
    assert isinstance(outcome, Rejected)
    assert (outcome.reason, outcome.text) == (reason, text)


def test_only_whole_json_counts_as_json():
    """json_valid_rate must not count text after the object as JSON, nor a bare wrong value as broken JSON."""
    assert AB.parse('{"a":1}').is_json
    assert not AB.parse('{"a":1,"b":2} ok').is_json
    assert not AB.parse("{").is_json


def test_white_space_and_key_order_are_free():
    assert AB.parse(' {"b": 2,\n "a": 1} ') == Answer((1.0, 2.0))


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=2))
def test_what_is_rendered_is_parsed_back(tenths):
    """A renderer and a parser that disagree would score every perfect model as broken."""
    a, b = (value / 10 for value in tenths)
    assert TENTHS.parse(TENTHS.render({"a": a, "b": b})) == Answer((a, b))


@given(st.text())
def test_parse_never_fails_on_any_text(text):
    AB.parse(text)


def test_messages_put_the_instruction_first_and_sort_the_context():
    """Prompts that depend on dictionary order would differ between training and serving."""
    one = PROFILE.messages("雨の夜に", "ja", {"weather": "雨", "time": "夜"})
    other = PROFILE.messages("雨の夜に", "ja", {"time": "夜", "weather": "雨"})
    assert one == other
    assert [message["role"] for message in one] == ["system", "user"]
    assert one[1]["content"] == "雨の夜に\n状況: time=夜, weather=雨"
    assert "energy, warmth, brightness, acousticness, complexity, nostalgia" in one[0]["content"]


def test_round_stays_in_range_and_takes_halves_to_even():
    """Rounding halves up would shift the mean of ratings that are all multiples of 2.5 by a tenth of a point."""
    assert [PROFILE.round(value) for value in (-3, 0.5, 1.5, 52.5, 2.49, 120)] == [0, 0, 2, 52, 2, 100]
    assert [TENTHS.round(value) for value in (-0.04, 0.26, 9)] == [0.0, 0.3, 5]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"low": 5, "high": 5}, "low must be below high; got low 5, high 5"),
        ({"keys": ("a", "a")}, "keys must differ from each other; got a, a"),
        ({"keys": ("a b",)}, "a key is ASCII letters, digits and underscores; got 'a b'"),
        ({"keys": ("a",), "aliases": {"z": {"en": ("x",)}}}, "aliases name keys the task does not have: z"),
    ],
)
def test_impossible_tasks_are_refused(section, message):
    with pytest.raises(ValidationError, match=message):
        ScoresTask(**section)
