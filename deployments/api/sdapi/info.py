"""The `info` of an answer: what was asked for, and what each picture is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from deployments.api.errors import shown
from deployments.api.sdapi.checkpoint import short_hash
from deployments.api.sdapi.drawing import Drawn
from deployments.api.sdapi.label import VERSION, strength
from deployments.api.sdapi.wanted import Wanted


def info_of(wanted: Wanted, pictures: Sequence[Drawn], grids: Sequence[Drawn]) -> str:
    """The answer's `info`, which is JSON as text: of all pictures, and of the grids before them.

    What the whole call asked for is that of the first picture, where there is any.
    """
    first = pictures[0].wanted if pictures else wanted
    seeds = [one.seeds["Seed"] for one in pictures]
    subseeds = [one.subseed for one in pictures]
    width, height = wanted.size
    finished = max((one.finished_at for one in (*grids, *pictures)), default=datetime.now(UTC))
    return json.dumps(
        {
            "prompt": first.prompt,
            "all_prompts": [one.wanted.prompt for one in pictures],
            "negative_prompt": first.negative_prompt,
            "all_negative_prompts": [one.wanted.negative_prompt for one in pictures],
            "seed": seeds[0] if seeds else wanted.given("seed"),
            "all_seeds": seeds,
            "subseed": subseeds[0] if subseeds else wanted.given("subseed"),
            "all_subseeds": subseeds,
            "subseed_strength": wanted.given("subseed_strength"),
            "width": width,
            "height": height,
            "sampler_name": wanted.sampler,
            "cfg_scale": wanted.given("cfg_scale"),
            "steps": wanted.given("steps"),
            "batch_size": wanted.given("batch_size"),
            "restore_faces": wanted.restores_faces,
            "face_restoration_model": wanted.face_restorer,
            "sd_model_name": wanted.model,
            "sd_model_hash": short_hash(wanted.cards, wanted.model),
            "sd_vae_name": wanted.vae,
            "sd_vae_hash": None,
            "seed_resize_from_w": wanted.given("seed_resize_from_w"),
            "seed_resize_from_h": wanted.given("seed_resize_from_h"),
            "denoising_strength": strength(wanted),
            "extra_generation_params": {},
            "index_of_first_image": len(grids),
            "infotexts": [one.text for one in (*grids, *pictures) if one.file is not None],
            "styles": wanted.body.styles or [],
            "job_timestamp": finished.strftime("%Y%m%d%H%M%S"),
            "clip_skip": wanted.clip_skip,
            "is_using_inpainting_conditioning": False,
            "version": VERSION,
            "comments": "\n".join([*wanted.comments, *_unknown_loras(pictures)]),
        }
    )


def _unknown_loras(pictures: Sequence[Drawn]) -> list[str]:
    """What is said of LoRAs that the prompts name and no picture wears."""
    names = dict.fromkeys(name for one in pictures for name in one.unknown_loras)
    return [f"LoRAs that are not here were left out: {shown(', '.join(names))}"] if names else []
