"""Ids and names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.loras.model import NewLora, as_name, folded, is_id, new_id
from deployments.tasks.lora import tags


def test_ids_sort_by_the_time_of_their_making(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for now in (1.7e9, 1.7e9 + 0.002, 1.8e9, 4e9):
        monkeypatch.setattr("time.time", lambda now=now: now)
        made.append(new_id())
    assert made == sorted(set(made))
    assert all(map(is_id, made))
    assert not is_id(made[0].lower()[:-1] + "u")


@given(st.text() | st.from_regex(r"lora_[0-9A-Z]{26}", fullmatch=True))
def test_any_text_has_a_nearest_name_that_a_prompt_can_hold(text: str) -> None:
    name = NewLora(name=as_name(text), owner="ann").name
    (found,) = tags(f"<lora:{name}:0.5>")
    assert found.name == name


@pytest.mark.parametrize(
    ("one", "other"), [("Straße", "STRASSE"), ("e\u0301te\u0301", "ÉTÉ"), (" ink ", "Ink")]
)
def test_names_that_read_alike_are_alike(one: str, other: str) -> None:
    assert folded(one) == folded(other)
