"""Pictures that are cut off are refused in a process that has switched PIL's own refusal off, too."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile

from rd3.datasets import Roots, add_folder, doctor, open_dataset
from rd3.datasets._decode import decode
from rd3.errors import DataCorrupt, RD3Error
from rd3.inputs.checked import check_images_and_labels
from rd3.inputs.pictures import refusing_truncated_pictures, rgb_of
from rd3.synthetic_set import import_folder, import_tensors
from rd3.testing import ToyDataset

TOY = ToyDataset(side=32)
KINDS = ("jpeg", "png")


@pytest.fixture(autouse=True, params=[True, False], ids=["lax", "strict"])
def flag(request, monkeypatch):
    """PIL's flag, which is as before after the test."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", request.param)
    yield
    assert ImageFile.LOAD_TRUNCATED_IMAGES is request.param


def picture(seed: int, side: int = 32, kind: str = "png", cut: bool = False) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(stream, kind)
    return stream.getvalue()[: len(stream.getvalue()) * 6 // 10] if cut else stream.getvalue()


def folder(base, parts, kind="png", side=32):
    for part in parts:
        for label in range(3):
            (base / part / f"toy{label}").mkdir(parents=True)
            for number in range(4):
                encoded = picture(len(part) * 100 + 10 * label + number, side, kind)
                (base / part / f"toy{label}" / f"{number}.{kind}").write_bytes(encoded)
    return base


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_cut_picture_of_either_part_is_not_registered(part, kind, tmp_path):
    roots = Roots(None, tmp_path / "home")
    base = folder(tmp_path / "d", ("train", "test"), kind)
    (base / part / "toy1" / f"2.{kind}").write_bytes(picture(1, kind=kind, cut=True))
    with pytest.raises(DataCorrupt, match=rf"{part}/toy1/2\.{kind} cannot be decoded as an image"):
        add_folder("mine", base, roots, 32, say=lambda note: None)
    (base / part / "toy1" / f"2.{kind}").write_bytes(picture(1, kind=kind))
    assert add_folder("mine", base, roots, 32, say=lambda note: None).train_count == 12


def test_of_many_pictures_it_is_said_how_many_were_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("rd3.datasets._user.CHECKED_IMAGES", 12)
    base = folder(tmp_path / "d", ("train", "test"))
    (base / "train/toy0/9.png").write_bytes(picture(9))
    notes = []
    add_folder("mine", base, Roots(None, tmp_path / "home"), 32, say=notes.append)
    said = [note.text for note in notes if "decoded" in note.text]
    assert said == ["train: 12 of 13 images were decoded, the others will be when they are used"]


@pytest.mark.parametrize("resolution", [32, 224])
def test_a_picture_cut_after_registering_is_named_and_leaves_no_cache(resolution, tmp_path):
    roots = Roots(None, tmp_path / "home")
    base = folder(tmp_path / "d", ("train", "test"))
    add_folder("mine", base, roots, resolution, say=lambda note: None)
    (base / "test/toy2/0.png").write_bytes(picture(1, cut=True))
    for _again in range(2):
        with pytest.raises(DataCorrupt, match=r"toy2/0\.png cannot be decoded as an image"):
            open_dataset("mine", roots).images("test", range(12))
    assert [finding.state for finding in doctor(roots, ["mine"])] == ["ok"], "it decodes no images"
    assert not list(tmp_path.glob("home/data/*.safetensors"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_picture_of_a_set_is_refused_in_every_form(kind, tmp_path):
    base = folder(tmp_path / "s", ("set",), kind) / "set"
    files = sorted(base.glob("*/*"))
    files[5].write_bytes(picture(1, kind=kind, cut=True))
    with pytest.raises(DataCorrupt, match=rf"{files[5]} cannot be decoded as an image"):
        import_folder(base, TOY, tmp_path / "out")
    labels, rows = np.repeat(range(3), 4), [{"bytes": path.read_bytes(), "path": None} for path in files]
    pq.write_table(pa.table({"image": rows, "label": labels}), tmp_path / "s.parquet")
    with pytest.raises(DataCorrupt, match="Image 5 cannot be decoded as an image"):
        import_tensors(tmp_path / "s.parquet", TOY, tmp_path / "out")

    class Column(list):
        """As a column of ``datasets``, which decodes when it is read."""

        def __iter__(self):
            for row in list.__iter__(self):
                image = Image.open(io.BytesIO(row["bytes"]))
                image.load()
                yield image

    for images in (rows, Column(rows), [Image.open(io.BytesIO(row["bytes"])) for row in rows]):
        with pytest.raises(RD3Error, match="truncated"):
            check_images_and_labels(images, labels, TOY.info, say=lambda note: None)


def test_the_flag_is_restored_when_the_last_of_several_threads_ends():
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    whole, cut = picture(1, 64, "jpeg"), picture(1, 64, "jpeg", cut=True)

    def one(number: int) -> bool:
        try:
            decode(cut if number % 3 else whole, "x")
        except DataCorrupt:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(one, range(300)))
    assert got == [number % 3 == 0 for number in range(300)]
    assert ImageFile.LOAD_TRUNCATED_IMAGES is before
    with refusing_truncated_pictures(), pytest.raises(DataCorrupt):
        rgb_of(Image.open(io.BytesIO(cut)), "x")
