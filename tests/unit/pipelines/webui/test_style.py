"""Styles: golden values of the A1111 web UI."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.webui.style import extract_style, merge_style, merge_styles
from tests.unit.pipelines.webui.golden import GOLDEN


@pytest.mark.parametrize(("style", "prompt", "merged"), GOLDEN["styles_merge"])
def test_a_style_is_put_on(style: str, prompt: str, merged: str) -> None:
    assert merge_style(style, prompt) == merged


@pytest.mark.parametrize(("style", "prompt", "found"), GOLDEN["styles_extract"])
def test_a_style_is_found_again(style: str, prompt: str, found: Any) -> None:
    assert list(extract_style(style, prompt)) == found


def test_styles_are_put_on_one_after_the_other() -> None:
    assert merge_styles(["{prompt}, oil", "big {prompt}"], "cat") == "big cat, oil"
