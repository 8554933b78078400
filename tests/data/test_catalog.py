"""Sizes of images, compared with what Detectron2's reader returns."""

import struct

import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from clockdistill.data import DetectionMapper
from clockdistill.data.catalog import measure_images
from clockdistill.errors import UserError

SIZE = (64, 48)
# what a PNG ends in: the chunk IEND, which is empty
PNG_END = b"\x00\x00\x00\x00IEND\xae\x42\x60\x82"


def save(path, exif):
    Image.new("RGB", SIZE).save(path, exif=exif)
    return path


def orientation_exif(orientation):
    """EXIF data with this single entry, in 32 bits because Pillow writes no more than 16."""
    header, entry = b"MM\x00\x2a" + struct.pack(">IH", 8, 1), struct.pack(">HHII", 0x0112, 4, 1, orientation)
    return b"Exif\x00\x00" + header + entry + bytes(4)


def assert_measured_as_read(path, size):
    height, width = read_image(path, "RGB").shape[:2]
    assert (width, height) == size
    for decode in (False, True):
        assert measure_images([path], decode) == {path: size}


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", [*range(10), 65537])
def test_only_orientations_5_to_8_swap_width_and_height(tmp_path, orientation, suffix):
    path = save(tmp_path / f"image{suffix}", orientation_exif(orientation))
    assert_measured_as_read(path, SIZE[::-1] if orientation in (5, 6, 7, 8) else SIZE)


def test_exif_after_the_pixels_of_a_png(tmp_path):
    path = save(tmp_path / "image.png", orientation_exif(6))
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(content[start : start + 4], "big")
    chunk, rest = content[start:stop], content[:start] + content[stop:]
    assert rest.endswith(PNG_END)
    path.write_bytes(rest.removesuffix(PNG_END) + chunk + PNG_END)
    assert_measured_as_read(path, SIZE[::-1])


def test_data_after_a_jpeg_are_no_fault(tmp_path):
    path = save(tmp_path / "image.jpg", orientation_exif(6))
    complete = path.read_bytes()
    path.write_bytes(complete + bytes(1000))
    assert_measured_as_read(path, SIZE[::-1])
    path.write_bytes(complete[: len(complete) // 2])
    (message,) = measure_images([path], False).values()
    assert "cannot read image" in message


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_broken_exif_is_ignored(tmp_path, suffix):
    assert_measured_as_read(save(tmp_path / f"image{suffix}", b"Exif\x00\x00broken"), SIZE)


def test_the_mapper_names_an_image_of_another_size(tmp_path):
    path = save(tmp_path / "image.jpg", orientation_exif(6))
    record = dict(file_name=str(path), width=64, height=48, annotations=[])
    with pytest.raises(UserError, match=rf"{path}, got \(48, 64\), expect \(64, 48\).* Run "):
        DetectionMapper(is_train=False, augmentations=[], image_format="RGB")(record)
