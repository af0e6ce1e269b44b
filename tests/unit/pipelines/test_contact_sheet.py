"""Pictures on one sheet."""

import numpy as np
from PIL import Image

from pipelines import contact_sheet as module
from pipelines.contact_sheet import contact_sheet

COLOURS = ("red", "lime", "blue", "grey")


def flat(colour, size=(40, 30)):
    return Image.new("RGB", size, colour)


def test_pictures_lie_row_by_row_with_margins_between():
    sheet = contact_sheet([flat(colour) for colour in COLOURS], 2, margin=6)
    assert sheet.size == (86, 66)
    assert sheet.getpixel((46, 0)) == (0, 255, 0)
    assert sheet.getpixel((0, 36)) == (0, 0, 255)
    assert sheet.getpixel((43, 10)) == (255, 255, 255)


def test_a_missing_picture_leaves_its_cell_empty_and_smaller_ones_their_rest():
    sheet = contact_sheet([flat("red"), None, flat("blue", (20, 20))], 2)
    assert sheet.size == (80, 60)
    assert sheet.getpixel((60, 10)) == (255, 255, 255)
    assert sheet.getpixel((19, 49)) == (0, 0, 255)
    assert sheet.getpixel((25, 55)) == (255, 255, 255)


def test_titles_are_written_beside_the_pictures_and_not_on_them():
    pictures = [flat(colour, (96, 96)) for colour in COLOURS]
    titles = {"column_titles": ["Seed: 1", "Seed: 2"], "row_titles": ["a fox " * 40, "an owl"]}
    sheet = np.asarray(contact_sheet(pictures, 2, **titles))
    bare = np.asarray(contact_sheet(pictures, 2))
    height, width = bare.shape[:2]
    assert (sheet[-height:, -width:] == bare).all()
    top, left = sheet[:-height, -width:], sheet[-height:, :-width]
    for row in np.array_split(top, 2, axis=1) + np.array_split(left, 2, axis=0):
        assert (row < 100).any()


def test_a_sheet_that_would_be_too_large_is_shrunk(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 1200)
    sheet = contact_sheet([flat(colour) for colour in COLOURS], 2)
    assert 0.8 * 1200 < sheet.width * sheet.height <= 1200
    assert sheet.getpixel((sheet.width - 3, 3)) == (0, 255, 0)


def test_neither_margins_nor_long_words_make_a_sheet_much_larger(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 1_000_000)
    pictures = [flat("red", (96, 96))] * 100
    wide = contact_sheet(pictures, 10, margin=500)
    assert wide.width * wide.height <= 1_000_000
    long = contact_sheet(pictures, 1, row_titles=["m" * 200] * 100)
    bare = contact_sheet(pictures, 1)
    assert long.width < 2 * bare.width
