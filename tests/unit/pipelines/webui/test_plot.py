"""Values of a plot's axis."""

import pytest

from pipelines.webui.plot import listed, numbers


def test_commas_part_values_and_quotes_hold_them():
    assert listed('a, "b, c" ,d') == ["a", "b, c", "d"]
    assert listed("a\nb,,") == ["a", "b"]
    assert listed("") == []
    assert listed("a\rb\r\nc") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1, 2, 5", [1, 2, 5]),
        ("1-5", [1, 2, 3, 4, 5]),
        ("5-1", [5, 4, 3, 2, 1]),
        ("1-5 (+2)", [1, 3, 5]),
        ("10-5 (-3)", [10, 7]),
        ("1-10 [5]", [1, 3, 5, 7, 10]),
        ("-1", [-1]),
        ("1-3, 8", [1, 2, 3, 8]),
    ],
)
def test_whole_numbers_are_lists_and_ranges(text, expected):
    assert numbers(listed(text), whole=True) == expected


def test_real_numbers_keep_their_parts():
    assert numbers(listed("0-1 (+0.25)"), whole=False) == [0, 0.25, 0.5, 0.75, 1]
    assert numbers(listed("1-10[5]"), whole=False) == [1, 3.25, 5.5, 7.75, 10]


@pytest.mark.parametrize("text", ["a", "nan", "inf", "1-1000000", "1-5 [9999]", "1-5 (+0)", "1--"])
def test_what_is_no_number_and_too_much_is_refused(text):
    with pytest.raises(ValueError):
        numbers(listed(text), whole=True)
