"""The shipped checkpoint: plain diffusers loads it, and its pictures show the asked colours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image

from training.embedded_model.attributes import COLOURS
from training.embedded_model.measure import nearest

FOLDER = Path(__file__).parents[3] / "pipelines" / "embedded"


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    return pipe


def draw(pipe: StableDiffusionPipeline, prompts: list[str], steps: int) -> list[np.ndarray]:
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    result = pipe(
        prompts,
        num_inference_steps=steps,
        guidance_scale=5.0,
        generator=generators,
        output_type="np",
    )
    return [np.round(image * 255) for image in result.images]


def corners(picture: np.ndarray) -> np.ndarray:
    """The median colour of the two upper corners, where every avatar shows its background."""
    pixels = np.concatenate([picture[2:14, 2:14], picture[2:14, -14:-2]])
    return np.median(pixels.reshape(-1, 3), axis=0)


def test_the_folder_is_small_and_has_a_card_with_a_picture() -> None:
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size <= 40_000_000
    assert "avataaars" in (FOLDER / "README.md").read_text("utf-8").lower()
    with Image.open(FOLDER / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 128
    assert (FOLDER / "contact_sheet.png").stat().st_size < 400_000


def test_it_is_a_plain_stable_diffusion_1_pipeline(pipe: StableDiffusionPipeline) -> None:
    assert pipe.safety_checker is None
    assert pipe.unet.config.in_channels == 4
    assert pipe.unet.config.sample_size == 16
    assert pipe.vae_scale_factor == 8
    assert pipe.tokenizer.model_max_length == 77
    assert pipe.scheduler.config.prediction_type == "epsilon"


def test_weights_are_half_precision_safetensors() -> None:
    from safetensors import safe_open

    files = list(FOLDER.rglob("*.safetensors"))
    assert {f.parent.name for f in files} == {"text_encoder", "unet", "vae"}
    for file in files:
        with safe_open(file, "pt") as weights:
            tensor = weights.get_tensor(next(iter(weights.keys())))
        assert tensor.dtype == torch.float16, file
    assert not list(FOLDER.rglob("*.bin"))


def test_the_background_has_the_asked_colour(pipe: StableDiffusionPipeline) -> None:
    asked = ["green", "blue", "yellow", "red"]
    prompts = [
        "portrait of a person with tan skin, short black hair, smiling, wearing a white shirt, "
        f"{colour} background"
        for colour in asked
    ]
    drawn = [nearest(corners(picture), COLOURS) for picture in draw(pipe, prompts, steps=20)]
    assert drawn == asked


def test_the_clothes_have_the_asked_colour(pipe: StableDiffusionPipeline) -> None:
    asked = ["red", "green", "purple"]
    prompts = [f"a person wearing a {colour} shirt, white background" for colour in asked]
    pictures = draw(pipe, prompts, steps=20)
    chests = [np.median(p[118:126, 50:78].reshape(-1, 3), axis=0) for p in pictures]
    assert [nearest(chest, COLOURS) for chest in chests] == asked


def test_words_it_never_saw_and_no_words_at_all_give_a_picture(
    pipe: StableDiffusionPipeline,
) -> None:
    for picture in draw(pipe, ["", "一只猫在月球上 🌙", "quantum zebra " * 50], steps=4):
        assert picture.shape == (128, 128, 3)
        assert np.isfinite(picture).all()
        assert picture.std() > 10
