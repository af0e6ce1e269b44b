"""Names of samplers and schedulers, and image-to-image's steps: golden values of the web UI."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.webui.sampler import (
    WEBUI_SAMPLERS,
    WEBUI_SCHEDULERS,
    default_eta,
    image_steps,
    resolve_sampler,
)
from tests.unit.pipelines.webui.golden import GOLDEN


def test_the_samplers_are_those_of_the_web_ui_in_its_order() -> None:
    assert [
        {"name": name, "aliases": one.aliases, "options": one.options}
        for name, one in WEBUI_SAMPLERS.items()
    ] == [{k: v for k, v in golden.items() if k != "function"} for golden in GOLDEN["samplers"]]


def test_the_schedulers_are_those_of_the_web_ui_in_its_order() -> None:
    assert [
        {
            "name": one.name,
            "label": one.label,
            "aliases": [one.alias] if one.alias else None,
            "default_rho": one.default_rho,
            "need_inner_model": one.need_inner_model,
        }
        for one in WEBUI_SCHEDULERS
    ] == GOLDEN["schedulers"]


@pytest.mark.parametrize(
    ("sampler", "scheduler", "name", "label"), GOLDEN["sampler_scheduler_resolution"]
)
def test_a_name_may_end_with_its_scheduler(
    sampler: str | None, scheduler: str | None, name: str, label: str
) -> None:
    assert resolve_sampler(sampler, scheduler) == (name, label)


@pytest.mark.parametrize("golden", GOLDEN["img2img_steps"])
def test_a_strength_leaves_the_steps_that_the_web_ui_leaves(golden: dict[str, Any]) -> None:
    steps = image_steps(
        golden["requested"], golden["denoising_strength"], exact=golden["exact_steps"]
    )
    assert list(steps) == [golden["schedule_steps"], golden["t_enc"]]
    assert steps.sigma_updates == golden["kdiff_updates"]
    assert steps.timestep_updates == golden["timestep_sampler_updates_DDIM"]


def test_exact_steps_of_an_endless_schedule_are_refused() -> None:
    assert image_steps(50, 0.001, exact=True).schedule_steps == 50_000
    with pytest.raises(ValueError, match="50 steps at strength 1e-09 are of a schedule of 5"):
        image_steps(50, 1e-9, exact=True)


def test_samplers_by_timestep_add_no_noise_unless_asked() -> None:
    assert default_eta("DDIM") == 0
    assert default_eta("Euler a") == 1
