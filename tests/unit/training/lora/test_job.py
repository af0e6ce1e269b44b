"""What a job may ask for, and what its pictures are called."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from training.lora.job import LoraJob, problems

BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"rank": 0}, "rank: ", "greater than or equal to 1, given '0'"),
    ({"rank": 10_000}, "rank: ", "less than or equal to 512, given '10000'"),
    ({"rank": "many"}, "rank: ", "valid integer"),
    ({"alpha": 0}, "alpha: ", "greater than 0"),
    ({"steps": 0}, "steps: ", "greater than or equal to 1, given '0'"),
    ({"steps": 10**9}, "steps: ", "less than or equal to 100000"),
    ({"batch_size": 0}, "batch_size: ", "greater than or equal to 1"),
    ({"resolution": 100}, "resolution: ", "multiple of 8"),
    ({"resolution": 8}, "resolution: ", "greater than or equal to 64"),
    ({"learning_rate": float("nan")}, "learning_rate: ", "nan"),
    ({"learning_rate": -1}, "learning_rate: ", "greater than 0"),
    ({"min_snr_gamma": 0}, "min_snr_gamma: ", "greater than 0"),
    ({"ema_decay": 1}, "ema_decay: ", "less than 1"),
    ({"noise_offset": 2}, "noise_offset: ", "less than or equal to 1"),
    ({"kind": "video"}, "kind: ", "'style', 'subject', 'scene' or 'portrait'"),
    ({"targets": "none"}, "targets: ", "'attention'"),
    ({"optimizer": "sgd"}, "optimizer: ", "'adamw'"),
    ({"seed": -1}, "seed: ", "greater than or equal to 0"),
    ({"crops": 17}, "crops: ", "less than or equal to 16"),
    ({"validation_prompts": ["a"] * 9}, "validation_prompts: ", "at most 8"),
    ({"validation_prompts": [""]}, "validation_prompts.0: ", "at least 1 character"),
    ({"trigger": "x" * 101}, "trigger: ", "at most 100 characters"),
    ({"ranks": 4}, "ranks: ", "no such field"),
    ({"kind": "subject", "class_word": "dog"}, "trigger must", "kind subject"),
    ({"kind": "subject", "trigger": "zorblax"}, "class_word must", "dog"),
    ({"kind": "portrait"}, "trigger must", "kind portrait"),
    ({"prior_pictures": 4}, "prior_pictures are", "given style"),
    ({"steps": 5, "warmup_steps": 5}, "warmup_steps must", "less than steps, 5, given 5"),
    ({"text_encoder_learning_rate": 1e-4}, "text_encoder_learning_rate", "text_encoder is false"),
    (
        {
            "text_encoder_learning_rate": 1e-4,
            "text_encoder": True,
            "optimizer": "prodigy",
        },
        "text_encoder_learning_rate",
        "prodigy",
    ),
]


@pytest.mark.parametrize(("fields", "start", "part"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_job_is_refused_with_the_field_and_the_limit(
    fields: dict[str, Any], start: str, part: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        LoraJob.model_validate(fields)
    (line,) = problems(caught.value)
    assert line.startswith(start)
    assert part in line


def test_every_wrong_field_has_a_line() -> None:
    with pytest.raises(ValidationError) as caught:
        LoraJob.model_validate({"rank": 0, "steps": 0, "speed": "fast"})
    assert [line.split(":")[0] for line in problems(caught.value)] == ["rank", "steps", "speed"]


def test_captions_by_kind_have_the_trigger_word_once() -> None:
    style = LoraJob(trigger="zorblax")
    assert style.caption_of(None) == "a picture in the style of zorblax"
    assert style.caption_of("a cat") == "zorblax, a cat"
    assert style.caption_of("a cat by zorblax") == "a cat by zorblax"
    assert style.caption_of("a cat in {trigger} style") == "a cat in zorblax style"
    subject = LoraJob(kind="subject", trigger="zorblax", class_word="dog")
    assert subject.caption_of(None) == "a photo of zorblax dog"
    assert subject.prior_caption == "a photo of dog"
    portrait = LoraJob(
        kind="portrait", trigger="zorblax", caption="{trigger} {class_word}, smiling"
    )
    assert portrait.caption_of(None) == "zorblax person, smiling"
    assert portrait.prior_caption == "portrait of person"
    scene = LoraJob(kind="scene", trigger="zorblax")
    assert scene.caption_of("a beach") == "a beach"
    assert scene.caption_of(None) == ""


def test_defaults_that_follow_from_other_fields() -> None:
    assert LoraJob(rank=8).network_alpha == 8
    assert LoraJob(rank=8, alpha=2).network_alpha == 2
    assert (LoraJob().unet_rate, LoraJob().text_rate) == (1e-4, 5e-5)
    prodigy = LoraJob(optimizer="prodigy", text_encoder=True)
    assert (prodigy.unet_rate, prodigy.text_rate) == (1, 1)
