"""Folders and zip archives of pictures."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from pipelines.errors import InvalidRequest
from training.lora.source import (
    Bounds,
    Example,
    read_archive,
    read_files,
    read_folder,
    read_zip,
    write_archive,
)

FILES = {
    "cat.png": b"cat",
    "cat.txt": b"\xef\xbb\xbf a red cat\n",
    "more/dog.jpg": b"dog",
    "more/cat.png": b"other cat",
    ".DS_Store": b"x",
    "__MACOSX/cat.png": b"x",
    "more/Thumbs.db": b"x",
    "alone.txt": b"a caption of nothing",
}
EXPECTED = [
    Example("cat.png", b"cat", "a red cat"),
    Example("more/cat.png", b"other cat"),
    Example("more/dog.jpg", b"dog"),
]


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_a_folder_gives_its_pictures_with_the_captions_beside_them(tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert read_folder(tmp_path) == EXPECTED


def test_a_zip_archive_gives_the_same(tmp_path: Path) -> None:
    data = zipped(FILES)
    (tmp_path / "pictures.zip").write_bytes(data)
    for archive in (data, tmp_path / "pictures.zip"):
        assert sorted(read_zip(archive), key=lambda example: example.name) == EXPECTED


def test_names_that_climb_out_of_a_zip_archive_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    found = read_zip(zipped({"../cat.png": b"cat", "/etc/dog.png": b"dog", "..\\..\\x.png": b"x"}))
    assert [example.name for example in found[:2]] == ["../cat.png", "/etc/dog.png"]
    assert list(tmp_path.rglob("*")) == [inside]


def test_an_archive_that_unpacks_to_too_much_is_refused_unread() -> None:
    bounds = Bounds(pictures=2, file_bytes=1000, total_bytes=1500)
    with pytest.raises(InvalidRequest, match=r"b\.png has 1001 bytes, at most 1000"):
        read_zip(zipped({"a.png": bytes(400), "b.png": bytes(1001)}), bounds)
    with pytest.raises(InvalidRequest, match="more than 1500 bytes"):
        read_zip(zipped({"a.png": bytes(1000), "b.png": bytes(900)}), bounds)
    with pytest.raises(InvalidRequest, match="more than 4 files"):
        read_zip(zipped({f"{i}.png": b"x" for i in range(5)}), bounds)


def test_files_by_name_find_their_captions_and_the_system_s_are_passed_over() -> None:
    assert sorted(read_files(FILES.items()), key=lambda example: example.name) == EXPECTED


def test_an_archive_of_examples_gives_them_back_whatever_their_names(tmp_path: Path) -> None:
    examples = [
        Example("../cat.png", b"cat", "a cat"),
        Example("cat.txt", b"no caption"),
        Example("../cat.png", b"another", "猫"),
        Example(".hidden/index.json", b"", None),
    ]
    write_archive(examples, tmp_path / "pictures.zip")
    assert read_archive(tmp_path / "pictures.zip") == examples


def test_a_size_that_lies_does_not_get_past_the_limit() -> None:
    data = bytearray(zipped({"a.png": bytes(100_000)}))
    directory = data.index(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = (10).to_bytes(4, "little")
    with pytest.raises(InvalidRequest, match="damaged"):
        read_zip(bytes(data))


@pytest.mark.parametrize(
    "data",
    [b"", b"no archive", zipped({"a.png": b"x" * 999})[:-30]],
    ids=["empty", "other bytes", "cut off"],  # bytes of an archive hold the time it was made
)
def test_a_damaged_archive_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="zip archive is damaged"):
        read_zip(data)


def test_an_encrypted_archive_is_refused_by_name() -> None:
    data = bytearray(zipped({"a.png": b"x"}))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1
    with pytest.raises(InvalidRequest, match=r"a\.png is encrypted"):
        read_zip(bytes(data))


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="is no folder"):
        read_folder(tmp_path / "missing")
