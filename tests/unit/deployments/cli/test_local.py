"""`generate --local` on a tiny model of the real classes, and its refusals."""

from pathlib import Path

import pytest

from deployments.cli.fault import CliFault, ExitCode
from deployments.cli.local import draw

FIELDS = {"prompt": "x", "num_images": 1, "output_format": "png"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"width": 100}, "width"),
        ({"num_images": 11}, "num_images"),
        ({"num_inference_steps": 1000}, "num_inference_steps"),
        ({"scheduler": "NoScheduler"}, "scheduler"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"model": "other"}, "other"),
        ({"styles": ["oil"]}, "styles"),
    ],
)
def test_a_bad_request_is_refused_before_the_model_is_loaded(
    change: dict[str, object], field: str
) -> None:
    with pytest.raises(CliFault) as caught:
        draw(FIELDS | change, {}, None)
    assert caught.value.code is ExitCode.USAGE
    assert field in "\n".join((str(caught.value), *caught.value.details))


def test_a_damaged_initial_picture_is_a_usage_fault() -> None:
    with pytest.raises(CliFault, match="init_image") as caught:
        draw(FIELDS, {"init_image": b"\x89PNG\r\n\x1a\nnonsense"}, None)
    assert caught.value.code is ExitCode.USAGE


def test_a_model_that_is_not_there_is_told_by_name(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"models: {{mine: {{source: {tmp_path}/none}}}}\n")
    with pytest.raises(CliFault, match="mine cannot be loaded") as caught:
        draw(FIELDS, {}, file)
    assert caught.value.code is ExitCode.FAILED
