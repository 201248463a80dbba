"""ImageNet-1K, its ten-class subsets Imagenette and ImageWoof, and smaller subsets of these for RD3's tests."""

from __future__ import annotations

from pathlib import Path

from rd3.datasets._base import DatasetInfo
from rd3.datasets._classes import name_and_classes
from rd3.datasets._folder import find_folder
from rd3.datasets._records import Found
from rd3.datasets._source import Counts, FileSource, register_dataset
from rd3.recipe import Normalisation

WHOLE = "imagenet1k"


class _ImageNetFamily(FileSource):
    test_names = ("validation", "val", "valid")

    def look(self, folder: Path) -> Found | None:
        if folder.name == WHOLE and self.info.name != WHOLE:
            # ImageNet-1K's class folders also contain these ten classes; its Parquet files cannot be split by class.
            tests = [path for path in folder.iterdir() if path.name.lower() in self.test_names]
            if not any((test / name).is_dir() for test in tests for name in self.info.class_ids):
                return None  # as ILSVRC's archive has them: all test images in one folder
            return find_folder(folder, self.info, self.test_names)
        return super().look(folder)


@register_dataset(WHOLE)
class ImageNet1K(_ImageNetFamily):
    """ILSVRC 2012: 1,281,167 training and 50,000 validation images, 1,000 classes in the order of their wnids."""

    obtain = "get ILSVRC 2012 from image-net.org and unpack it into {folder}/train/<wnid> and {folder}/val/<wnid>"
    info = DatasetInfo(
        **name_and_classes(WHOLE),
        source="ImageNet-1K (ILSVRC 2012), complete; the validation split is the test split",
        resolution=224,
        test_resize=256,
        factor=2,  # patches per side
        normalisation=Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        train_count=1_281_167,
        test_count=50_000,
        train_per_class=732,
    )


def _ten(name: str, title: str, train_count: int, test_count: int, train_per_class: int) -> DatasetInfo:
    """The info of a ten-class subset, with the counts of fast.ai's version 2; its pixels are those of ImageNet-1K."""
    return ImageNet1K.info.model_copy(
        update={
            **name_and_classes(name),
            "source": f"{title} version 2 (fast.ai): ImageNet-1K images re-split, so that most test images were "
            "ImageNet-1K training images",
            "train_count": train_count,
            "test_count": test_count,
            "train_per_class": train_per_class,
        }
    )


def _balanced(whole: DatasetInfo, train_per_class: int, test_per_class: int) -> DatasetInfo:
    """The info of a class-balanced subset, stored at 224x224 without keeping the aspect ratio."""
    return whole.model_copy(
        update={
            "name": f"{whole.name}-224",
            "source": f"class-balanced subset of {whole.name}, {train_per_class} training and {test_per_class} test "
            "images per class, squashed to 224x224",
            "test_resize": 224,
            "train_count": 10 * train_per_class,
            "test_count": 10 * test_per_class,
            "train_per_class": train_per_class,
            "parent": whole.name,
        }
    )


@register_dataset("imagenette")
class Imagenette(_ImageNetFamily):
    """Ten easy classes of ImageNet-1K, from ImageNet-1K's own folders or from fast.ai's re-split."""

    fetches = True
    folders = ("imagenette/imagenette2", "imagenette/imagenette2-320", "imagenette2", "imagenette2-320", WHOLE)
    accepts = (Counts(12_894, 500, "the ten Imagenette classes of ImageNet-1K, split as ImageNet-1K"),)
    info = _ten("imagenette", "Imagenette", 9_469, 3_925, 858)

    def fetch(self, folder: Path) -> None:
        import torchvision

        torchvision.datasets.Imagenette(folder, split="train", size="full", download=True)


@register_dataset("imagewoof")
class ImageWoof(_ImageNetFamily):
    """Ten breeds of dogs from ImageNet-1K, in the order of their wnids."""

    folders = ("imagewoof/imagewoof2", "imagewoof/imagewoof2-320", "imagewoof2", "imagewoof2-320", WHOLE)
    accepts = (Counts(12_454, 500, "the ten ImageWoof classes of ImageNet-1K, split as ImageNet-1K"),)
    obtain = "unpack https://s3.amazonaws.com/fast-ai-imageclas/imagewoof2.tgz into {folder}"
    info = _ten("imagewoof", "ImageWoof", 9_025, 3_929, 580)


@register_dataset("imagenette-224")
class ImagenetteSubset(_ImageNetFamily):
    """A class-balanced subset of Imagenette: 200 training and 150 test images per class."""

    obtain = "put train.parquet and validation.parquet of the subset into {folder}"
    info = _balanced(Imagenette.info, 200, 150)


@register_dataset("imagewoof-224")
class ImageWoofSubset(_ImageNetFamily):
    """A class-balanced subset of ImageWoof: 100 training and 50 test images per class."""

    obtain = "put train.parquet and validation.parquet of the subset into {folder}"
    info = _balanced(ImageWoof.info, 100, 50)
