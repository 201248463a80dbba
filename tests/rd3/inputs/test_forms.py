"""Forms in which images come: each gives the same pixels, in ``rd3.evaluate`` as in an import, or one sentence."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import rd3
from rd3.errors import BadValue, DataCorrupt, RD3Error
from rd3.inputs.checked import check_images_and_labels
from rd3.synthetic_set import import_tensors
from rd3.testing import ToyDataset

TOY = ToyDataset(side=32)
BYTES = TOY.images("train", range(6))
HWC = BYTES.permute(0, 2, 3, 1).contiguous().numpy()
UNIT = BYTES.float() / 255
LABELS = np.arange(6) % 3


def encoded(pixels, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


class Column:
    """A sequence of rows, as a column of ``datasets`` is one."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        return self.rows[place]


def taken(images, labels=LABELS):
    notes = []
    found = check_images_and_labels(images, labels, TOY.info, say=notes.append)
    return found, " | ".join(note.text for note in notes)


@pytest.mark.parametrize(
    "images",
    [
        BYTES,
        BYTES.numpy(),
        HWC,
        HWC[:, ::-1][:, ::-1],
        BYTES.long(),
        HWC.astype(">u2"),
        BYTES.to(torch.uint16),
        list(BYTES),
        list(HWC),
        HWC.tolist(),
        [Image.fromarray(pixels) for pixels in HWC],
        tuple(Image.fromarray(pixels) for pixels in HWC),
        Column([Image.fromarray(pixels) for pixels in HWC]),
        Column([{"bytes": encoded(pixels), "path": None} for pixels in HWC]),
        np.array([None, *[Image.fromarray(pixels) for pixels in HWC]], dtype=object)[1:],
        np.concatenate([HWC, np.full_like(HWC[..., :1], 255)], 3),
        [Image.fromarray(pixels).convert("RGBA") for pixels in HWC],
    ],
)
def test_the_same_bytes_in_any_form(images):
    found, _notes = taken(images)
    assert found.images.dtype == torch.uint8 and torch.equal(found.images, BYTES)


@pytest.mark.parametrize(
    ("images", "tolerance"),
    [
        (UNIT, 0),
        (UNIT.double().numpy(), 1e-7),
        (UNIT.half(), 1e-3),
        (UNIT.bfloat16(), 4e-3),
        (UNIT.permute(0, 2, 3, 1).numpy().astype(">f8"), 1e-7),
        (UNIT.numpy().astype(np.longdouble), 1e-7),
        (UNIT.clone().requires_grad_(), 0),
        (UNIT.clone().requires_grad_() * 1, 0),
        (torch.nn.Parameter(UNIT), 0),
        ([image.clone().requires_grad_() for image in UNIT], 0),
    ],
)
def test_the_same_floats_in_any_form(images, tolerance):
    found, _notes = taken(images)
    assert found.images.dtype == torch.float32 and not found.images.requires_grad
    torch.testing.assert_close(found.images, UNIT, atol=tolerance, rtol=0)


def test_arrays_of_a_mat_file_are_turned():
    """Such as those of SVHN: height, width, channels, images."""
    found, notes = taken(HWC.transpose(1, 2, 3, 0))
    assert torch.equal(found.images, BYTES) and "as in a .mat file" in notes


@pytest.mark.parametrize("axis", [1, 3])
def test_grey_images_are_repeated_as_pil_does(axis):
    grey = HWC[..., 0]
    by_pil = np.stack([np.asarray(Image.fromarray(pixels).convert("RGB")) for pixels in grey])
    found, notes = taken(np.expand_dims(grey, axis))
    assert np.array_equal(found.images.permute(0, 2, 3, 1).numpy(), by_pil) and "grey" in notes
    assert torch.equal(taken([Image.fromarray(pixels) for pixels in grey])[0].images, found.images)


def test_columns_of_the_datasets_library():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["toy2", "toy0", "toy1"])}
    )
    rows = {"image": [{"bytes": encoded(pixels), "path": None} for pixels in HWC], "label": LABELS.tolist()}
    table = datasets.Dataset.from_dict(rows, features=features)
    expected = [(label + 2) % 3 for label in LABELS]  # 0 is toy2, 1 is toy0, 2 is toy1
    for images in (table["image"], table["image"][:]):
        found, notes = taken(images, table["label"])
        assert torch.equal(found.images, BYTES) and found.labels.tolist() == expected
        assert "labels renumbered from the class order in the column of labels" in notes
    with pytest.raises(BadValue, match=r"a dict with image, label.*give one column"):
        taken(table)
    undecoded = table.cast_column("image", datasets.Image(decode=False))
    assert torch.equal(taken(undecoded["image"])[0].images, BYTES)


def sixteen():
    return [Image.fromarray(257 * HWC[place, :, :, 0].astype(np.uint16)) for place in range(6)]


def transparent():
    pictures = [Image.fromarray(pixels).convert("RGBA") for pixels in HWC]
    pictures[2].putpixel((0, 0), (1, 2, 3, 0))
    return pictures


BAD = [
    (BYTES.permute(2, 0, 3, 1), "into that order"),
    (BYTES[:, :, :16, :16], "resize them to 32 pixels, three channels each"),
    (BYTES[:, :2, :16], "images have shape (6, 2, 16, 32), toy needs (N, 3, 32, 32)"),
    (BYTES[:, :2], "images have two channels, and the last is not 255 everywhere"),
    (torch.randn(6, 4, 32, 32), "shape (6, 4, 32, 32) and negative values: they are latents"),
    (torch.randn(6, 4, 4, 4).half(), "shape (6, 4, 4, 4) and negative values: they are latents"),
    (np.random.default_rng(0).normal(size=(6, 4, 4, 16)), "shape (6, 4, 4, 16) and negative values: they are latents"),
    (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(BYTES)), "images are a DataLoader"),
    ([[BYTES[0], 1]] * 6, "Image 0 is a pair of image and label"),
    (BYTES[..., :16], "images have shape (6, 3, 32, 16)"),
    (BYTES[:, 0], "images[:, None] for grey images"),
    (BYTES[0], "images[None] for a single one"),
    (HWC[0], "add the axis that is missing: images[None]"),
    (BYTES.flatten(1), "images.reshape(-1, 3, 32, 32)"),
    (BYTES.unflatten(0, (3, 2)), "images.flatten(0, 1)"),
    (np.concatenate([HWC, HWC[..., :1]], 3), "four channels"),
    (BYTES[:0], "There are no images"),
    ([], "There are no images"),
    ("mine.pt", "images are text ('mine.pt')"),
    (b"bytes", "images are a bytes"),
    (None, "images are a NoneType"),
    ({"image": BYTES}, "images are a dict"),
    (iter(BYTES), "images are a"),
    (Image.fromarray(HWC[0]), "images are one picture"),
    (7, "images are an int"),
    ([None] * 6, "Image 0 is a NoneType"),
    (["a.png"] * 6, "Image 0 is text ('a.png')"),
    ([{"bytes": b"", "path": None}] * 6, "Image 0 cannot be decoded"),
    ([{"bytes": encoded(HWC[0])[:60], "path": None}] * 6, "Image 0 cannot be decoded"),
    ([{"bytes": b"<html>", "path": None}] * 6, "Image 0 cannot be decoded"),
    ([(BYTES[0], 1)] * 6, "Image 0 is a pair of image and label"),
    ([BYTES[0], UNIT[0]] * 3, "Row 1 of images is (3, 32, 32) float32, row 0 is (3, 32, 32) uint8"),
    ([BYTES[0], BYTES[0, :, :16]] * 3, "Row 1 of images is (3, 16, 32)"),
    (np.array(["a"] * 6), "images: a ndarray of <U1, expected numbers"),
    (UNIT.numpy() * 1j, "expected numbers"),
    (UNIT.to(torch.complex64), "complex"),
    (UNIT.to_sparse(), "not dense"),
    (UNIT.to("meta"), "not dense"),
    (torch.quantize_per_tensor, "images are a"),
    (sixteen(), "Image 0 has more than 8 bits per channel (mode I;16)"),
    ([Image.fromarray(pixels[..., 0].astype(np.float32)) for pixels in HWC], "more than 8 bits per channel (mode F)"),
    (transparent(), "Image 2 has transparent pixels"),
]


@pytest.mark.parametrize("use", ["evaluate", "import"])
@pytest.mark.parametrize(("images", "message"), BAD)
def test_what_is_refused_is_one_sentence_in_evaluate_and_import(tmp_path, images, message, use):
    with pytest.raises(RD3Error) as caught:
        if use == "evaluate":
            rd3.evaluate(images, LABELS, TOY, student="convnet_w32", epochs=1)
        else:
            import_tensors((images, LABELS), TOY, tmp_path / "set")
    assert message in f"{caught.value.message} {caught.value.fix}"
    assert caught.value.fix and "\n" not in str(caught.value)


def after_fix(begin, *, end=None, **names):
    """The value of the Python expression in the fix of the error that ``images`` raise."""
    with pytest.raises(BadValue) as caught:
        taken(names["images"])
    code = caught.value.fix.partition(begin)[2]
    return eval(code.partition(end)[0] if end else code, {"Image": Image, "numpy": np, "torch": torch}, names)


def two_channels(mode="LA"):
    pictures = [Image.fromarray(pixels[..., 0]).convert("LA") for pixels in HWC]
    pictures[0].putpixel((0, 0), (1, 0))
    pictures[0].putpixel((0, 1), (100, 51))  # a fifth of grey 100 on white
    return [picture.convert(mode) for picture in pictures]


@pytest.mark.parametrize("mode", ["LA", "La"])
def test_the_fix_for_grey_pictures_with_alpha_works(mode):
    pictures = two_channels(mode)
    placed = [after_fix("background: ", images=pictures, image=picture) for picture in pictures]
    found = taken(placed)[0].images
    assert found[0, :, 0, 0].tolist() == [255] * 3
    assert found[0, 0, 1, 0] == pytest.approx(0.2 * 100 + 0.8 * 255, abs=2)
    assert torch.equal(found[1:, 2], BYTES[1:, 0])
    opaque = [Image.fromarray(pixels[..., 0]).convert("LA").convert(mode) for pixels in HWC]
    assert torch.equal(taken(opaque)[0].images[:, 1], BYTES[:, 0])


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, list, lambda images: (images / 255).astype(np.float32)])
def test_the_fix_for_arrays_with_alpha_works(channels_last, colours, form):
    alpha = np.full((6, 32, 32, 1), 255, np.uint8)
    alpha[0, 0, 0], alpha[0, 1, 0] = 0, 51
    images = np.concatenate([HWC[..., :colours], alpha], 3)
    images = form(images if channels_last else np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with pytest.raises(BadValue, match="the last is not") as caught:
        taken(images)
    names = {"images": images, "numpy": np, "torch": torch}
    exec(caught.value.fix.partition("white: ")[2], names)
    found = taken(names["images"])[0].images
    assert found[0, :, 0, 0].tolist() == [1.0] * 3
    assert float(found[0, 0, 1, 0]) == pytest.approx(0.2 * HWC[0, 1, 0, 0] / 255 + 0.8, abs=1e-6)
    torch.testing.assert_close(found[1:, 0], UNIT[1:, 0])


def test_opaque_alpha_and_lists_of_grey_images_are_taken():
    grey = torch.cat([BYTES[:, :1], torch.full((6, 1, 32, 32), 255, dtype=torch.uint8)], 1)
    for images in (grey, grey.permute(0, 2, 3, 1).numpy(), list(BYTES[:, 0]), list(HWC[..., 0])):
        assert torch.equal(taken(images)[0].images[:, 2], BYTES[:, 0])
    half = torch.cat([2 * UNIT - 1, torch.ones(6, 1, 32, 32)], 1)  # RGBA in [-1, 1] is no latent
    with pytest.raises(BadValue, match=r"\[-1, 1\] is the space of diffusion models"):
        taken(half)


def test_the_fixes_for_loaders_and_pairs_work():
    pairs = torch.utils.data.TensorDataset(BYTES, torch.from_numpy(LABELS))
    loader = torch.utils.data.DataLoader(pairs, batch_size=4)
    images, labels = after_fix("images, labels = ", end=", or", images=loader, loader=loader)
    assert torch.equal(taken(images, labels)[0].images, BYTES) and labels.tolist() == LABELS.tolist()
    alone = torch.utils.data.DataLoader(BYTES, batch_size=4)
    joined = after_fix(", or ", end=" for images alone", images=alone, loader=alone)
    assert torch.equal(taken(joined)[0].images, BYTES)
    for rows in (pairs, [(Image.fromarray(pixels), label) for pixels, label in zip(HWC, LABELS, strict=True)]):
        images, labels = after_fix("images, labels = ", images=rows, pairs=rows)
        found = taken(images, labels)[0]
        assert torch.equal(found.images, BYTES) and found.labels.tolist() == LABELS.tolist()


def test_the_fixes_for_pictures_work():
    with pytest.raises(BadValue, match=r"numpy\.asarray\(image\) // 256 as uint8"):
        taken(sixteen())
    scaled = [Image.fromarray((np.asarray(image) // 256).astype(np.uint8)) for image in sixteen()]
    assert torch.equal(taken(scaled)[0].images[:, 1], BYTES[:, 0])
    placed = [after_fix("background: ", images=transparent(), image=image) for image in transparent()]
    assert taken(placed)[0].images[2, :, 0, 0].tolist() == [255] * 3
    assert torch.equal(taken(BYTES[:, 0][:, None])[0].images[:, 2], BYTES[:, 0])
    assert torch.equal(taken(BYTES.unflatten(0, (3, 2)).flatten(0, 1))[0].images, BYTES)


@pytest.mark.parametrize("labels", [LABELS, torch.from_numpy(LABELS), np.eye(3)[LABELS]])
def test_arguments_in_each_others_place_are_said(labels, tmp_path):
    with pytest.raises(BadValue, match=r"images have (one axis|two axes).*in each other's place.*images first"):
        rd3.evaluate(labels, BYTES, TOY)
    for pictures in (list(HWC), [Image.fromarray(pixels) for pixels in HWC]):
        with pytest.raises(BadValue, match="in each other's place"):
            rd3.evaluate(labels.tolist(), pictures, TOY)
    torch.save((torch.as_tensor(labels), BYTES), tmp_path / "mine.pt")
    with pytest.raises(BadValue, match="in each other's place"):
        import_tensors(tmp_path / "mine.pt", TOY, tmp_path / "set")
    with pytest.raises(BadValue, match=r"dataset is of type \w+, expected a dataset.*rd3.open_dataset\(...\) third"):
        rd3.evaluate(TOY, BYTES, labels)


def test_evaluate_gives_equal_numbers_for_equal_pixels_and_says_what_it_found():
    said = []
    options = {"student": "convnet_w32", "epochs": 1, "precision": "fp32", "student_seed": 2}
    plain = rd3.evaluate(UNIT, LABELS, TOY, **options)
    for images in (UNIT.double().numpy(), list(UNIT.permute(0, 2, 3, 1).numpy())):
        again = rd3.evaluate(images, LABELS, TOY, progress=lambda _share, note: said.append(note), **options)
        assert again.final_loss == plain.final_loss
    assert any("images: float64" in note for note in said)
    undone = rd3.evaluate(2 * UNIT - 1, LABELS, TOY, normalised="half", **options)
    assert undone.final_loss == pytest.approx(plain.final_loss, rel=1e-4)
    for pair in ((0.5, 0.5), ([0.5] * 3, np.full(3, 0.5))):
        again = rd3.evaluate(2 * UNIT - 1, LABELS, TOY, normalised=pair, **options)
        assert again.final_loss == undone.final_loss
    with pytest.raises(BadValue, match=r"normalised is \(0.5,\)"):
        rd3.evaluate(UNIT, LABELS, TOY, normalised=(0.5,), **options)
    with pytest.warns(UserWarning, match="float64 with whole values"):
        rd3.evaluate(UNIT, LABELS.astype(np.float64), TOY, **options)


def test_a_picture_of_16_bits_in_colour_is_said(tmp_path):
    """PIL keeps the upper bytes of a PNG of 16 bits per channel; the file is written by hand, as PIL cannot."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + (257 * row.astype(np.uint16)).astype(">u2").tobytes() for row in HWC[0])
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    found, notes = taken([{"bytes": png, "path": None}] * 6)
    assert torch.equal(found.images[3], BYTES[0])
    assert "6 images have 16 bits per channel; the upper 8 are kept" in notes


def test_a_ppm_of_16_bits_is_said_and_a_bmp_of_16_bits_per_pixel_is_not_one_of_16_per_channel():
    """Both written by hand; the maximum of a PPM may be any number up to 65535."""
    deep = (257 * HWC[0].astype(np.uint16)).astype(">u2").tobytes()
    found, notes = taken([{"bytes": b"P6 32 32 65535\n" + deep, "path": None}] * 6)
    assert torch.equal(found.images[3], BYTES[0])
    assert "6 images have more than 8 bits per channel; they are rounded to 8" in notes
    _found, notes = taken([{"bytes": b"P6 32 32 255\n" + HWC[0].tobytes(), "path": None}] * 6)
    assert "bits per channel" not in notes

    colours = np.arange(1024, dtype="<u2") * 63
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    header = struct.pack("<IiiHHIIiiII", 40, 32, 32, 1, 16, 3, 2048, 0, 0, 0, 0) + masks
    bmp = b"BM" + struct.pack("<IHHI", 14 + len(header) + 2048, 0, 0, 14 + len(header)) + header + colours.tobytes()
    found, notes = taken([{"bytes": bmp, "path": None}] * 6)
    assert int(found.images[0, 0, 31, 7]) == round((int(colours[7]) >> 11) * 255 / 31)  # the lowest row is first
    assert "bits per channel" not in notes


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (UNIT.to(torch.float8_e4m3fn), "images are float8_e4m3fn, expected uint8 or floats of at least 16 bits"),
        (list(UNIT.to(torch.float8_e5m2)), "images are float8_e5m2, expected uint8"),
        (BYTES.view(torch.bits8), "images are bits8, expected uint8"),
        ([{"bytes": 5}] * 6, "Image 0 has an int under 'bytes', expected the bytes of a file"),
        ([{"bytes": "abc", "path": None}] * 6, "Image 0 has text .* under 'bytes'"),
        ([{"bytes": None, "path": 5}] * 6, "Image 0 has an int under 'path', expected the path of a file"),
    ],
)
def test_tensors_and_rows_that_are_no_pixels_are_one_sentence(images, said):
    with pytest.raises(BadValue, match=said):
        taken(images)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_are_one_sentence():
    for images in (torch.nested.nested_tensor(list(UNIT)), [torch.nested.nested_tensor(list(UNIT[0]))] * 6):
        with pytest.raises(BadValue, match="a tensor that is not dense"):
            taken(images)


def test_a_damaged_picture_is_a_data_error():
    with pytest.raises(DataCorrupt):
        taken([{"bytes": encoded(HWC[0], "JPEG")[:500], "path": None}] * 6)


def test_a_picture_too_large_to_open_is_a_data_error(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataCorrupt, match="Image 0 cannot be decoded"):
        taken([{"bytes": encoded(HWC[0], "PNG"), "path": None}] * 6)
