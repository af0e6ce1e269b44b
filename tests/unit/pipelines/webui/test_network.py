"""Tags of extra networks: golden values of the A1111 web UI."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.webui.network import LoraTag, extract_networks, lora_tags
from tests.unit.pipelines.webui.golden import GOLDEN


@pytest.mark.parametrize(("text", "golden"), GOLDEN["extra_networks"])
def test_tags_leave_the_prompt(text: str, golden: dict[str, Any]) -> None:
    assert extract_networks(text) == (golden["prompt"], golden["networks"])


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("<lora:a>", LoraTag("a")),
        ("<lora:a:0.5>", LoraTag("a", 0.5, 0.5)),
        ("<lyco:a:0.5:0.8>", LoraTag("a", 0.5, 0.8)),
        ("<lora:a:te=0.5:unet=0.8>", LoraTag("a", 0.5, 0.8)),
        ("<lora:a:unet=0.8>", LoraTag("a", 1.0, 0.8)),
        ("<lora:a:0.5:unet=0.8:dyn=4>", LoraTag("a", 0.5, 0.8, 4)),
        ("<lora:a:1:1:8>", LoraTag("a", 1.0, 1.0, 8)),
    ],
)
def test_a_lora_has_a_weight_for_the_text_encoders_and_one_for_the_unet(
    text: str, tag: LoraTag
) -> None:
    assert lora_tags(extract_networks(text)[1]) == [tag]


def test_a_weight_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="much"):
        lora_tags(extract_networks("<lora:a:much>")[1])
