"""The settings files that ship."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from configs.model import ModelSettings
from configs.settings import Settings
from pipelines.portrait.base_model import BaseModel

PRESETS = Path(__file__).parents[3] / "configs" / "presets"


@pytest.mark.parametrize(
    ("name", "side", "controls"),
    [("sd15", 512, {"canny", "pose", "tile", "colour"}), ("sdxl", 1024, {"canny"})],
    ids=["sd15", "sdxl"],
)
def test_a_preset_names_all_that_portraits_use(name: str, side: int, controls: set[str]) -> None:
    settings = Settings.load(PRESETS / f"portrait_{name}.yaml")
    base = BaseModel.of(settings.models[settings.default_model])
    assert base.photographic
    assert base.is_xl == (name == "sdxl")
    assert base.side_px == side
    assert set(base.controls) == controls
    assert base.face_adapter is not None
    assert base.lcm_lora is not None
    assert all("{who}" in look.prompt for look in base.looks.values())


def test_the_shipped_model_draws_and_knows_no_photos() -> None:
    base = BaseModel.of(ModelSettings())
    assert (base.photographic, base.side_px, base.template_size) == (False, 128, (128, 128))


@pytest.mark.parametrize("field", ["controls", "ip_adapter"])
def test_a_guide_that_the_model_does_not_have_is_refused(field: str) -> None:
    portrait = {"controls": {"canny": "edges"}, "ip_adapter": "edges"}
    with pytest.raises(ValidationError, match=f"portrait.{field} names edges"):
        ModelSettings.model_validate({"portrait": {field: portrait[field]}})
