"""YAML that a few lines make huge, and refusals that stay one line."""

from __future__ import annotations

import math

import pytest

from softtrunc.feedback.errors import UserError, all_of, several
from softtrunc.feedback.yaml import parse_yaml


def laughs(depth: int, entry: str) -> str:
    lines = [f"a0: &a0 {'[1, 2]' if entry == 'list' else '{x: 1, y: 2}'}"]
    for level in range(1, depth):
        if entry == "list":
            lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
        else:
            before = ", ".join([f"*a{level - 1}"] * 10)
            lines.append(f"a{level}: &a{level} {{<<: [{before}], k{level}: 1}}")
    return "\n".join(lines)


@pytest.mark.parametrize("entry", ["list", "merge"])
def test_aliases_that_multiply_are_refused_unread(entry):
    with pytest.raises(ValueError, match=r"aliases make it more than 100,000 values"):
        parse_yaml(laughs(9, entry))


def test_an_alias_within_what_it_names_is_refused():
    for text in ("a: &a [*a]", "&a {b: *a}"):
        with pytest.raises(ValueError, match="an alias stands within what it names"):
            parse_yaml(text)


@pytest.mark.parametrize("text", ["k: 1\nk: 2", "{a: {k: 1, k: 1}}", "<<: {x: 1}\n<<: {y: 2}"])
def test_a_key_that_stands_twice_is_refused(text):
    with pytest.raises(ValueError, match="stands twice"):
        parse_yaml(text)


@pytest.mark.parametrize("word", ["2001-99-99", "0b_", "!!timestamp x", "{[a]: 1}", "9" * 5000])
def test_words_that_are_no_value_are_refused(word):
    with pytest.raises(ValueError, match=r"^not valid YAML: .") as refused:
        parse_yaml(f"name: {word}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("depth", [51, 5000])
@pytest.mark.parametrize("ends", ["[]", ("{a: ", "}")])
def test_values_nested_too_deep_are_refused(depth, ends):
    assert parse_yaml(ends[0] * 49 + ends[1] * 49) is not None
    with pytest.raises(ValueError, match="nested more than 50 deep"):
        parse_yaml(ends[0] * depth + ends[1] * depth)


@pytest.mark.parametrize("word", ["1e400", "-1e400", "1.5e+999", "[{a: 2e309}]"])
def test_a_number_that_no_float_holds_is_not_infinity(word):
    with pytest.raises(ValueError, match=r"is larger than any float: infinity is \.inf"):
        parse_yaml(f"k: {word}")
    assert parse_yaml("[.inf, -.INF, 1e308]") == [math.inf, -math.inf, 1e308]


def test_plain_aliases_and_merges_are_read():
    text = "base: &b {x: 1, y: 2}\nmine: {<<: *b, y: 3}\nlist: [*b, *b]"
    found = parse_yaml(text)
    assert found["mine"] == {"x": 1, "y": 3}
    assert found["list"] == [{"x": 1, "y": 2}] * 2


def test_many_problems_make_one_short_line_and_all_stand_in_the_notes():
    problems = [f"missing weight.{number}" for number in range(500)]
    assert several(problems[:2]) == "missing weight.0; missing weight.1"
    error = all_of("here", problems)
    assert str(error).startswith("here: missing weight.0; missing weight.1;")
    assert str(error).endswith(" more)")
    assert len(str(error)) < 160
    assert error.__notes__[0].split("\n") == problems
    assert len(several(["x" * 9000])) < 160


def test_a_refusal_is_one_line_however_long_its_causes():
    text = str(UserError("begin\n" + "x" * 9000 + "\nend"))
    assert "\n" not in text
    assert len(text) < 290
    assert text.startswith("begin x")
    assert text.endswith("x end")
