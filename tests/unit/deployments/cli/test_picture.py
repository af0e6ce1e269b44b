"""Files in and out."""

from pathlib import Path

import pytest

from deployments.cli import picture
from deployments.cli.fault import CliFault, ExitCode

PNG = b"\x89PNG\r\n\x1a\n..."


def test_the_format_follows_the_option_then_the_name_then_is_png() -> None:
    assert picture.chosen_format(None, Path("a.JPEG")) == "jpg"
    assert picture.chosen_format("webp", None) == "webp"
    assert picture.chosen_format("jpeg", Path("a.jpg")) == "jpg"
    assert picture.chosen_format(None, None) == "png"


@pytest.mark.parametrize(("asked", "name"), [("png", "a.jpg"), (None, "a.gif"), (None, "a.tar.gz")])
def test_a_format_that_does_not_fit_is_a_usage_fault(asked: str | None, name: str) -> None:
    with pytest.raises(CliFault) as caught:
        picture.chosen_format(asked, Path(name))
    assert caught.value.code is ExitCode.USAGE


def test_several_pictures_are_numbered_and_one_is_not(tmp_path: Path) -> None:
    target = tmp_path / "fox.png"
    assert picture.write_pictures(target, [b"1"]) == [target]
    paths = picture.write_pictures(target, [b"1", b"2"])
    assert [path.name for path in paths] == ["fox-1.png", "fox-2.png"]
    assert [path.read_bytes() for path in paths] == [b"1", b"2"]


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    target = tmp_path / "fox.png"
    target.mkdir()
    with pytest.raises(CliFault):
        picture.write_pictures(target, [b"new"])
    assert [path.name for path in tmp_path.iterdir()] == ["fox.png"]


def test_a_file_without_a_name_tells_its_prompt_and_its_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = picture.writable_target(None, "png", "Two foxes, / .. \n in snow!", "0123456789")
    assert str(target) == "two-foxes-in-snow-01234567.png"


def test_a_prompt_without_letters_still_has_a_name(tmp_path: Path) -> None:
    assert picture.writable_target(tmp_path, "png", "!!!", "abc").name == "picture-abc.png"


def test_a_name_without_an_ending_gets_one_and_its_folder_is_made(tmp_path: Path) -> None:
    target = picture.writable_target(tmp_path / "new" / "fox", "webp", "x", "id")
    assert target == tmp_path / "new" / "fox.webp"
    assert target.parent.is_dir()


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CliFault) as caught:
        picture.writable_target(tmp_path / "file" / "fox.png", "png", "x", "id")
    assert caught.value.code is ExitCode.USAGE


def test_only_png_jpeg_and_webp_are_sent(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jpg", tmp_path / "bad.png"
    good.write_bytes(PNG)
    bad.write_bytes(b"GIF89a")
    assert picture.data_url(picture.read_picture(good)).startswith("data:image/png;base64,")
    with pytest.raises(CliFault, match="not a PNG"):
        picture.read_picture(bad)
    with pytest.raises(CliFault, match="cannot be read"):
        picture.read_picture(tmp_path / "none.png")
