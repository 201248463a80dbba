"""Tiny ImageNet (Stanford CS231N): 200 classes of ImageNet at 64x64, and a subset of it for RD3's tests."""

from __future__ import annotations

from pathlib import Path

from rd3.datasets._base import DatasetInfo
from rd3.datasets._classes import name_and_classes
from rd3.datasets._folder import FolderRecords, image_files
from rd3.datasets._records import Found
from rd3.datasets._source import FileSource, register_dataset
from rd3.errors import DataCorrupt, DataMissing
from rd3.recipe import Normalisation

ARCHIVE = "tiny-imagenet-200"


def _annotated(folder: Path, info: DatasetInfo) -> FolderRecords:
    """The archive's validation images: one folder, with labels and order from ``val_annotations.txt``."""
    listing = folder / "val_annotations.txt"
    files = {file.name: file for file in image_files(folder / "images", "images/", 0)}
    label_of = {class_id: label for label, class_id in enumerate(info.class_ids)}
    ordered = []
    for number, line in enumerate(listing.read_text().splitlines(), 1):
        if not line.strip():
            continue
        name, _tab, rest = line.partition("\t")
        class_id = rest.partition("\t")[0]
        if class_id not in label_of:
            raise DataCorrupt(
                f"{listing}, line {number}: {class_id!r} is not a class of {info.name}.", "unpack the archive again"
            )
        if f"images/{name}" not in files:
            raise DataMissing(
                f"{folder / 'images' / name} is missing ({listing}, line {number}).", "unpack the archive again"
            )
        ordered.append(files[f"images/{name}"]._replace(label=label_of[class_id]))
    return FolderRecords(folder, ordered)


@register_dataset("tinyimagenet")
class TinyImageNet(FileSource):
    """100,000 training and 10,000 validation images; the unlabelled test split of the archive is not used.

    Class order: alphabetical by wnid.
    """

    folders = (ARCHIVE, f"tinyimagenet/{ARCHIVE}")
    test_names = ("validation", "valid", "val")
    obtain = "unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip into {folder}"
    info = DatasetInfo(
        **name_and_classes("tinyimagenet"),
        source="Tiny ImageNet (Stanford CS231N), complete; the validation split is the test split",
        resolution=64,
        test_resize=64,
        factor=1,  # patches per side
        # from SRe2L's Tiny ImageNet scripts
        normalisation=Normalisation(mean=(0.4802, 0.4481, 0.3975), std=(0.2302, 0.2265, 0.2262)),
        train_count=100_000,
        test_count=10_000,
        train_per_class=500,
    )

    def look(self, folder: Path) -> Found | None:
        annotated = (folder / "val" / "val_annotations.txt").is_file() and (folder / "val" / "images").is_dir()
        if not annotated:  # or the images were moved into class folders, as torchvision's ImageFolder needs them
            return super().look(folder)
        train = FolderRecords.scan(folder / "train", self.info)
        return Found(folder, "official archive", train, _annotated(folder / "val", self.info))


@register_dataset("tiny-imagenet-64")
class TinyImageNetSubset(FileSource):
    """A class-balanced subset of Tiny ImageNet: 50 training and 10 test images per class."""

    test_names = ("validation", "valid", "val")
    obtain = "put train.parquet and validation.parquet of the subset into {folder}"
    info = TinyImageNet.info.model_copy(
        update={
            "name": "tiny-imagenet-64",
            "source": "class-balanced subset of Tiny ImageNet, 50 training and 10 test images per class",
            "train_count": 10_000,
            "test_count": 2_000,
            "train_per_class": 50,
            "parent": "tinyimagenet",
        }
    )
