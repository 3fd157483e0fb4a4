"""What an image file becomes: upright, in RGB, with 8 bits a color; or one line that says why not."""

import io
import struct
import warnings

import numpy as np
import pytest
import torch
from folders import picture
from PIL import Image, UnidentifiedImageError

from octaveconv.data.augment import train_transform
from octaveconv.data.datasets import CorruptImage, Images, Preprocessing
from octaveconv.data.images import decode

GRAY = np.arange(0, 65536, 1028, dtype=np.uint16).reshape(8, 8)  # 0 to 64764


def saved(image, kind="png", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


def pixels(file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode(file)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def exif(orientation):
    return b"Exif\0\0" + struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_photos_are_upright(kind, orientation):
    stored = picture(3, (16, 8))
    options = {"quality": 100} if kind in ("jpeg", "webp") else {}
    content = saved(stored, kind, exif=exif(orientation), **options).getvalue()
    as_stored = np.asarray(Image.open(saved(stored, kind, **options)).convert("RGB")).astype(int)
    turned = {
        2: as_stored[:, ::-1],
        3: as_stored[::-1, ::-1],
        4: as_stored[::-1],
        5: as_stored.swapaxes(0, 1),
        6: np.rot90(as_stored, -1),
        7: as_stored[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(as_stored),
    }
    expected = turned.get(orientation, as_stored)
    found = pixels(io.BytesIO(content))
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= 1
    with Image.open(io.BytesIO(content)) as image:  # as a reader of Hugging Face's gives it
        np.testing.assert_array_equal(pixels(image), found)


@pytest.mark.parametrize("data", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(40), exif(6)[:20]])
def test_exif_data_that_cannot_be_read_say_nothing(data):
    stored = picture(0, (16, 8))
    assert pixels(saved(stored, exif=data)).shape == (8, 16, 3)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bits_are_scaled(kind):
    found = pixels(saved(Image.fromarray(GRAY), kind))
    np.testing.assert_array_equal(found[..., 0], np.round(GRAY / 257))
    assert (found == found[..., :1]).all()


def test_16_bits_of_a_portable_graymap_are_scaled():
    content = b"P5 8 8 65535\n" + GRAY.astype(">u2").tobytes()
    np.testing.assert_array_equal(pixels(io.BytesIO(content))[..., 0], np.round(GRAY / 257))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(dtype):
    with pytest.raises(ValueError, match=r"nothing says which of its values is white .*save it with 8 bits"):
        decode(saved(Image.fromarray(GRAY.astype(dtype)), "tiff"))


def test_transparency_is_ignored_and_a_palette_is_looked_up():
    colors = picture(1, (8, 8))
    palette = colors.quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(pixels(saved(palette)), expected)
    for transparency in (3, bytes(range(16))):
        np.testing.assert_array_equal(pixels(saved(palette, transparency=transparency)), expected)
    alpha = Image.linear_gradient("L").resize((8, 8))
    clear = colors.copy()
    clear.putalpha(alpha)
    np.testing.assert_array_equal(pixels(saved(clear)), np.asarray(colors))
    gray = colors.convert("L")
    expected = np.asarray(gray.convert("RGB"))
    gray.putalpha(alpha)
    assert gray.mode == "LA"
    np.testing.assert_array_equal(pixels(saved(gray)), expected)


def test_cmyk():
    """Cyan, magenta, yellow, and black; a JPEG has them inverted, as Adobe writes it."""
    inks = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert abs(pixels(saved(inks, "jpeg", quality=100)) - (0, 255, 255)).max() <= 2


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_an_animation_is_its_first_image(kind):
    first, second = picture(0, (8, 8)).quantize(8).convert("RGB"), picture(4, (8, 8)).quantize(8).convert("RGB")
    options = {"lossless": True} if kind == "webp" else {}
    content = saved(first, kind, save_all=True, append_images=[second], **options)
    assert abs(pixels(content) - np.asarray(first)).max() <= 1


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "webp"])
def test_every_cut_is_noticed(kind):
    content = saved(picture(2, (40, 48)), kind).getvalue()
    noticed = 0
    for size in range(0, len(content) - 12, 61):
        with pytest.raises(Exception):  # noqa: B017, PT011  # decoders raise nearly anything
            decode(io.BytesIO(content[:size]))
        noticed += 1
    assert noticed > 5


def test_no_program_is_started_for_an_image():
    """Pillow reads EPS with Ghostscript, which runs what the file says."""
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(content)).format == "EPS"
    with pytest.raises(UnidentifiedImageError):
        decode(io.BytesIO(content))


def test_a_large_photo_is_not_warned_of(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert pixels(saved(Image.new("RGB", (8, 8)))).shape == (8, 8, 3)
    with pytest.raises(Image.DecompressionBombError):
        decode(saved(Image.new("RGB", (11, 10))))


SMALL = [(1, 1), (2, 1), (1, 5), (3, 3)]


@pytest.mark.parametrize("crop", ["resized", "padded"])
@pytest.mark.parametrize("size", SMALL)
def test_the_smallest_images_can_be_trained_on(size, crop):
    transform = train_transform(8, crop, 0.08, 0.4, 0.1, "bilinear", (0.5,) * 3, (0.5,) * 3)
    for _ in range(30):
        assert transform(picture(0, size)).shape == (3, 8, 8)


@pytest.mark.parametrize("size", SMALL)
def test_the_smallest_images_can_be_scored(size):
    prepared = Preprocessing((8, 8), "bicubic", 0.875, "center", (0.5,) * 3, (0.5,) * 3)
    assert prepared.transform()(Image.new("RGB", size, (255, 255, 255))) == pytest.approx(torch.ones(3, 8, 8))


def test_a_strip_that_would_become_too_large_is_named():
    """Its shorter side would be resized to 256 pixels, and the longer one to 25,600,000."""
    prepared = Preprocessing((224, 224), "bicubic", 0.875, "center", (0.5,) * 3, (0.5,) * 3)
    images = Images("mine", [(Image.new("RGB", (1, 100_000)), 0)])
    with pytest.raises(CorruptImage, match="mine: image 0 cannot be read: it has 1x100000 pixels: with a shorter side"):
        images.prepare(0, prepared.transform())
