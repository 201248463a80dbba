"""Writing and opening sets: resume, checks, and what each kind of damage is told as."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from rd3.datasets import class_list_hash
from rd3.errors import BadValue, ClassOrderError, DataCorrupt, DataMissing
from rd3.methods import Block
from rd3.synthetic_set import SetOnDisk, SetWriter, SyntheticSet, contact_sheet, read_manifest, rows_of_sheet
from rd3.synthetic_set.manifest import content_digest, row_digest
from rd3.testing import ToyDataset, trial_recipe

TOY = ToyDataset(side=8)
IPC = 4


def _blocks():
    """Two images of every class a block, members out of order."""
    return [Block(b, tuple((label, 2 * b + j) for label in (2, 0, 1) for j in (1, 0))) for b in range(IPC // 2)]


def _images(block):
    """Each image is filled with its own row number."""
    rows = torch.tensor([k * 3 + label for label, k in block.members], dtype=torch.uint8)
    return rows[:, None, None, None].expand(-1, 3, 8, 8)


def _writer(folder):
    return SetWriter(folder, trial_recipe("random", TOY, IPC), TOY.info, _blocks())


@pytest.fixture
def folder(tmp_path):
    writer = _writer(tmp_path / "set")
    for block in _blocks():
        spent = {"select": {"wall_s": 1.5, "process_s": 1.0}}
        writer.add(block, _images(block), phases=spent, peak_mib=10.0 + block.index)
    writer.finish(device="cpu", threads=1, shared_machine=True)
    return tmp_path / "set"


def test_rows_are_k_major_whatever_the_blocks(folder):
    opened = SyntheticSet.open(folder, classes=TOY.info.classes, class_ids=TOY.info.class_ids)
    assert opened.images[:, 0, 0, 0].tolist() == list(range(12))
    assert opened.labels.tolist() == [0, 1, 2] * IPC
    images, labels = opened.prefix(1)
    assert images[:, 2, 7, 7].tolist() == [0, 1, 2] and labels.tolist() == [0, 1, 2]
    with pytest.raises(BadValue, match="has 4 images per class, got IPC 5"):
        opened.prefix(5)


def test_the_manifest_sums_phases_and_takes_the_highest_peak(folder):
    manifest = read_manifest(folder)
    assert manifest.phases["select"].wall_s == 3.0 and manifest.generation_process_s == 2.0
    assert (manifest.peak_mib, manifest.threads, manifest.shared_machine, manifest.count) == (11.0, 1, True, 12)
    assert manifest.class_ids == TOY.info.class_ids and manifest.classes == TOY.info.classes
    assert manifest.recipe == trial_recipe("random", TOY, IPC).model_dump(mode="json")


def test_the_content_digest_does_not_depend_on_how_blocks_were_cut(folder, tmp_path):
    one = Block(0, tuple((label, k) for k in range(IPC) for label in range(3)))
    writer = SetWriter(tmp_path / "one", trial_recipe("random", TOY, IPC), TOY.info, [one])
    writer.add(one, _images(one))
    assert writer.finish().content == read_manifest(folder).content
    opened = SyntheticSet.open(folder)
    rows = [row_digest(image) for image in opened.images.numpy()]
    assert content_digest("uint8", (12, 3, 8, 8), rows, 3) == opened.manifest.content
    assert content_digest("uint8", (12, 3, 8, 8), rows[::-1], 3) != opened.manifest.content


def test_phase_times_survive_a_kill(tmp_path):
    """A process writes one block, starts on the second and is killed; the next one resumes."""
    code = f"""
import sys
from pathlib import Path
import torch
from rd3.methods import Block
from rd3.synthetic_set import SetWriter
from rd3.testing import ToyDataset, trial_recipe
toy = ToyDataset(side=8)
blocks = [Block(b, tuple((l, 2 * b + j) for l in (2, 0, 1) for j in (1, 0))) for b in range(2)]
writer = SetWriter(Path({str(tmp_path)!r}), trial_recipe("random", toy, 4), toy.info, blocks)
rows = torch.tensor([k * 3 + l for l, k in blocks[0].members], dtype=torch.uint8)
images = rows[:, None, None, None].expand(-1, 3, 8, 8)
writer.add(blocks[0], images, phases={{"select": {{"wall_s": 7.0, "process_s": 6.0}}}})
Path({str(tmp_path)!r}, "blocks", ".00001.safetensors.half").write_bytes(b"half")
print("ready", flush=True)
sys.stdin.read()
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close(), child.stdin.close()
    with pytest.raises(DataMissing, match=r"holds no manifest\.json"):
        SyntheticSet.open(tmp_path)
    writer = _writer(tmp_path)
    assert writer.done() == {0}
    writer.add(_blocks()[1], _images(_blocks()[1]), phases={"select": {"wall_s": 1.0, "process_s": 1.0}})
    manifest = writer.finish()
    assert manifest.phases["select"].wall_s == 8.0
    assert sorted(path.name for path in (tmp_path / "blocks").iterdir()) == ["00000.safetensors", "00001.safetensors"]
    assert SyntheticSet.open(tmp_path).images[:, 0, 0, 0].tolist() == list(range(12))


def test_a_block_that_is_not_whole_or_not_ours_is_made_again(folder):
    path = folder / "blocks" / "00001.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)
    assert _writer(folder).done() == {0} and not path.exists()
    other = SetWriter(folder, trial_recipe("random", TOY, IPC, set_seed=5), TOY.info, _blocks())
    assert other.done() == set()


def test_a_set_that_lacks_a_block_is_not_finished(tmp_path):
    writer = _writer(tmp_path)
    writer.add(_blocks()[0], _images(_blocks()[0]))
    with pytest.raises(BadValue, match="1 blocks are missing, the first is 1"):
        writer.finish()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(6, 3, 8, 9, dtype=torch.uint8), r"shape \(6, 3, 8, 9\), expected \(6, 3, 8, 8\)"),
        (torch.zeros(6, 3, 8, 8, dtype=torch.int32), "expected uint8, or float32"),
        (torch.full((6, 3, 8, 8), 1.5), "range from 1.5 to 1.5"),
        (torch.full((6, 3, 8, 8), float("nan")), r"expected \[0, 1\]"),
    ],
)
def test_what_a_method_may_not_return(tmp_path, images, message):
    with pytest.raises(BadValue, match=message):
        _writer(tmp_path).add(_blocks()[0], images)


def test_blocks_must_cover_the_set_once(tmp_path):
    with pytest.raises(BadValue, match="lack or repeat a"):
        SetWriter(tmp_path, trial_recipe("random", TOY, IPC), TOY.info, _blocks()[:1])


def test_a_truncated_set(folder):
    path = folder / "blocks" / "00000.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataCorrupt, match=r"file blocks/00000\.safetensors has sha256 .* Fix: delete the folder"):
        SyntheticSet.open(folder)


def test_a_missing_block(folder):
    (folder / "blocks" / "00000.safetensors").unlink()
    with pytest.raises(DataMissing, match=r"lacks its file blocks/00000\.safetensors"):
        SyntheticSet.open(folder)


def _edit(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_altered_set_whose_file_hashes_were_mended(folder):
    """The content digest holds even where somebody rewrote a block and its hash."""
    from safetensors.torch import load_file, save_file

    from rd3.store import sha256_file

    path = folder / "blocks" / "00000.safetensors"
    tensors = load_file(path)
    tensors["images"][0, 0, 0, 0] += 1
    save_file(tensors, path)
    _edit(folder, files={**read_manifest(folder).files, "blocks/00000.safetensors": sha256_file(path)})
    with pytest.raises(DataCorrupt, match="its images have digest"):
        SyntheticSet.open(folder)
    tensors["images"][0, 0, 0, 0] -= 1
    tensors["labels"][0] = 1
    save_file(tensors, path)
    _edit(folder, files={**read_manifest(folder).files, "blocks/00000.safetensors": sha256_file(path)})
    with pytest.raises(DataCorrupt, match="row 5 has label 1, expected 2"):
        SyntheticSet.open(folder)


def test_a_class_list_in_another_order(folder):
    swapped = ("toy1", "toy0", "toy2")
    expected = r"lists class 0 as toy0, expected toy1 \(first of 2 differences\)"
    with pytest.raises(ClassOrderError, match=expected):
        SyntheticSet.open(folder, classes=class_list_hash(swapped), class_ids=swapped)
    with pytest.raises(ClassOrderError, match=expected):
        SyntheticSet.open(folder, class_ids=swapped)
    with pytest.raises(ClassOrderError, match=r"has class list .*, expected abc"):
        SyntheticSet.open(folder, classes="abc")
    with pytest.raises(ClassOrderError, match="has 3 classes, expected 2"):
        SyntheticSet.open(folder, class_ids=swapped[:2])


def test_manifests_that_are_none(folder):
    _edit(folder, surprise=1)
    with pytest.raises(DataCorrupt, match=r"manifest\.json: surprise: Extra inputs"):
        read_manifest(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataCorrupt, match="the document"):
        read_manifest(folder)


def test_a_manifest_from_the_future_and_wrong_counts(folder):
    _edit(folder, count=11)
    with pytest.raises(DataCorrupt, match="has 11 images, but IPC 4 x 3 classes"):
        SyntheticSet.open(folder)
    _edit(folder, format=99, count=12)
    with pytest.raises(DataCorrupt, match="has format 99"):
        read_manifest(folder)
    _edit(folder, surprise=1)  # a field that only the later format has
    with pytest.raises(DataCorrupt, match=r"has format 99, this version reads up to 1\. Fix: upgrade rd3"):
        read_manifest(folder)


def test_class_ids_that_do_not_fit_their_hash(folder):
    _edit(folder, class_ids=["toy1", "toy0", "toy2"])
    with pytest.raises(DataCorrupt, match="does not match the hash"):
        SyntheticSet.open(folder)


def test_a_block_carries_its_own_record(folder):
    with safe_open(folder / "blocks" / "00000.safetensors", framework="pt") as opened:
        assert json.loads(opened.metadata()["rd3"])["key"] == read_manifest(folder).key


def test_rows_are_read_from_disk_in_the_order_asked_for(folder):
    whole, lazy = SyntheticSet.open(folder), SetOnDisk.open(folder)
    rows = [5, 0, whole.manifest.count - 1, 0]
    assert lazy.rows(rows).equal(whole.images[rows])
    assert lazy.manifest == whole.manifest


def test_contact_sheet_has_a_row_for_each_class(folder, tmp_path):
    import numpy as np
    from PIL import Image

    sheet = np.asarray(Image.open(contact_sheet(SetOnDisk.open(folder), tmp_path / "sheet.png", per_class=2)))
    assert sheet.shape == (3 * 66 + 2, 2 * 66 + 2, 3)
    centres = sheet[34::66, 34::66, 0][:3, :2]
    assert centres.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_rows_of_a_contact_sheet_are_found_from_its_size(folder, tmp_path):
    from PIL import Image

    opened = SetOnDisk.open(folder)
    for per_class in (1, 2, 10):
        sheet = contact_sheet(opened, tmp_path / "sheet.png", per_class=per_class)
        with Image.open(sheet) as picture:
            assert rows_of_sheet(picture.size, opened.manifest.ipc, per_class) == 3
    assert rows_of_sheet((32, 64), ipc=10) is None
    assert rows_of_sheet((2, 2), ipc=10) is None
