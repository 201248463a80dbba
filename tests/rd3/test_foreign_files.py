"""Broken downloads: each is one sentence, and whole files pass."""

from __future__ import annotations

import shlex
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import save_file

from rd3.errors import BadValue, DataCorrupt, DataMissing
from rd3.foreign_files import broken_file, read_text, require_whole


def _torch(path: Path) -> None:
    torch.save({"a": torch.rand(3000)}, path)


def _safetensors(path: Path) -> None:
    save_file({"a": torch.rand(3000), "b": torch.rand(0)}, path)


def _npy(path: Path) -> None:
    np.save(path, np.zeros((3, 40, 5), dtype=np.float32))


def _npz(path: Path) -> None:
    np.savez_compressed(path, a=np.random.default_rng(0).random(2000))


def _parquet(path: Path) -> None:
    parquet.write_table(pa.table({"a": list(range(1000))}), path)


WRITERS = {".pt": _torch, ".safetensors": _safetensors, ".npy": _npy, ".npz": _npz, ".parquet": _parquet}


@pytest.mark.parametrize("suffix", WRITERS)
def test_whole_files_pass_and_every_cut_is_found(suffix, tmp_path):
    path = tmp_path / f"file{suffix}"
    WRITERS[suffix](path)
    raw = path.read_bytes()
    assert broken_file(path) is None
    for length in (9, 20, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:length])
        error = broken_file(path)
        assert isinstance(error, DataCorrupt), length
        assert error.fix == "download it again"


def test_a_changed_byte_of_an_archive_is_found_which_torch_reads_without_a_word(tmp_path):
    path = tmp_path / "weights.pt"
    _torch(path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert torch.load(path, weights_only=True)["a"].shape == (3000,)
    assert "Bad CRC-32" in str(broken_file(path))


def test_archives_without_checksums_pass(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        _torch(tmp_path / "weights.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert broken_file(tmp_path / "weights.pt") is None


@pytest.mark.parametrize("name", ["set.npz", "set.zip", "weights.pt"])
def test_a_changed_byte_in_every_member_of_an_archive_is_found(name, tmp_path):
    path = tmp_path / name
    if name == "weights.pt":
        _torch(path)
    else:
        with path.open("wb") as file:
            np.savez(file, images=np.arange(300.0), labels=np.arange(500))
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            begin = member.header_offset
            lengths = struct.unpack("<HH", raw[begin + 26 : begin + 30])  # of its name and its extra field
            raw[begin + 30 + sum(lengths) + member.file_size - 1] ^= 1
    path.write_bytes(raw)
    assert "Bad CRC-32" in str(broken_file(path))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 44700000\n"
PAGE = b"\n<!DOCTYPE html><html><head><title>Google Drive &ndash; Quota exceeded</title></head></html>"
OTHERS = {
    "empty": (b"", "is empty"),
    "zeros": (bytes(5000), "zero bytes: its download did not finish"),
    "pointer": (POINTER, r"Git LFS pointer, not the file of 44,700,000 bytes"),
    "page": (PAGE, r"web page \(HTML\) titled 'Google Drive – Quota exceeded'"),
    "page in UTF-16": (PAGE.decode().encode("utf-16"), "web page"),
    "message": (b'{"message": "Not Found"}', "is text, not a .pth file; it begins"),
    "S3": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "AccessDenied"),
    "annex": (b"../.git/annex/objects/xW/5q/SHA256E-s3--a/a", "git-annex pointer"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_files_under_the_name_are_said(case, tmp_path):
    raw, message = OTHERS[case]
    path = tmp_path / "weights.pth"
    path.write_bytes(raw)
    with pytest.raises(DataCorrupt, match=message) as caught:
        require_whole(path)
    assert str(caught.value).count("\n") == 0
    assert "weights_only" not in str(caught.value)


def test_text_under_another_suffix_is_left_to_its_reader(tmp_path):
    (tmp_path / "classes.txt").write_text("airplane\nbird\n")
    assert broken_file(tmp_path / "classes.txt") is None


def test_missing_files_and_folders_are_said(tmp_path):
    with pytest.raises(DataMissing, match="There is no file"):
        require_whole(tmp_path / "none.pt")
    with pytest.raises(DataMissing, match="is a folder"):
        require_whole(tmp_path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".zip"])
@pytest.mark.parametrize("raw", [b"\x93", b"\x93NUM", b"P\x8b", b"\x80\x04"])
def test_files_too_short_for_their_kind_are_one_sentence(suffix, raw, tmp_path):
    (tmp_path / f"x{suffix}").write_bytes(raw)
    error = broken_file(tmp_path / f"x{suffix}")
    assert isinstance(error, DataCorrupt)
    size = f"{len(raw)} byte{'s' if len(raw) > 1 else ''}"
    assert str(error) == (
        f"{tmp_path / f'x{suffix}'} is damaged: it has {size} and does not start as a {suffix} file does. "
        "Fix: download it again"
    )


def test_every_cut_of_an_npy_is_found(tmp_path):
    _npy(tmp_path / "x.npy")
    raw = (tmp_path / "x.npy").read_bytes()
    for length in (*range(1, 140), len(raw) - 1):
        (tmp_path / "x.npy").write_bytes(raw[:length])
        assert isinstance(broken_file(tmp_path / "x.npy"), DataCorrupt), length


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_changed_bytes_of_an_archive_are_damage_and_no_matter_of_permissions(tmp_path, compression):
    path, rng = tmp_path / "set.zip", np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a", rng.integers(9, size=2000, dtype=np.uint8).tobytes())
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        first, last = archive.getinfo("a").header_offset + 31, archive.start_dir
    assert broken_file(path) is None
    places = [*rng.integers(first, last, 30), *range(len(whole) - 22, len(whole) - 6)]  # content; end of the directory
    found = set()
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        found.add(type(broken_file(path)))
    assert DataCorrupt in found and found <= {DataCorrupt, type(None)}  # None: fields that nothing reads


def test_an_npy_whose_header_is_no_python_is_damaged(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(300))
    whole = (tmp_path / "a.npy").read_bytes()
    for place in range(10, 70):
        (tmp_path / "a.npy").write_bytes(whole[:place] + b"(" + whole[place + 1 :])
        assert isinstance(broken_file(tmp_path / "a.npy"), DataCorrupt | None)


def test_binary_files_that_begin_as_utf_16_does_are_not_text(tmp_path):
    """Two bytes of a binary file mostly decode as one printable letter."""
    for begin, order in ((b"\xff\xfe", "<"), (b"\xfe\xff", ">")):
        letters = np.random.default_rng(0).integers(0x4E00, 0x9FA0, 3000).astype(f"{order}u2")
        (tmp_path / "x.bin").write_bytes(begin + letters.tobytes())
        assert letters.tobytes().decode(f"utf-16-{'le' if order == '<' else 'be'}").isprintable()
        assert broken_file(tmp_path / "x.bin") is None


def test_a_distributed_checkpoint_is_named_and_its_fix_gives_one_file(tmp_path, monkeypatch):
    import torch.distributed.checkpoint as distributed

    weights = {"a": torch.rand(3, 4)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on being alone
        distributed.save({"model": weights}, checkpoint_id=str(tmp_path / "my run"), no_dist=True)
    for path in (tmp_path / "my run", tmp_path / "my run/__0_0.distcp"):
        with pytest.raises(BadValue, match="is a distributed checkpoint in several files") as caught:
            require_whole(path)
    monkeypatch.chdir(tmp_path)
    command = shlex.split(caught.value.fix.removeprefix("join them: "))
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    require_whole("my run.pt")
    assert torch.equal(torch.load("my run.pt", weights_only=True)["model"]["a"], weights["a"])


@pytest.mark.parametrize(("codec", "said"), [("cp1252", r"0xe9 in line 2"), ("utf-16", "it is UTF-16")])
def test_text_in_another_encoding_is_refused_with_a_command_that_converts_it(tmp_path, codec, said):
    """By iconv itself, which most systems have."""
    text, folder = "name: small\n# réglage »fin«\n", tmp_path / "a b"
    folder.mkdir()
    (folder / "mine.yaml").write_bytes(text.encode(codec))
    with pytest.raises(DataCorrupt, match=rf"mine.yaml is not UTF-8 text: .*{said}") as refused:
        read_text(folder / "mine.yaml")
    assert refused.value.fix.startswith("save it as UTF-8; ")
    if shutil.which("iconv"):
        subprocess.run(refused.value.fix[refused.value.fix.index("iconv") :], shell=True, check=True)
        assert read_text(folder / "utf8-mine.yaml") == text


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig"])
def test_text_in_utf8_is_read_with_any_line_ends(tmp_path, codec):
    (tmp_path / "x").write_bytes("é\r\nb\rc\n".encode(codec))
    assert read_text(tmp_path / "x") == "é\nb\nc\n"
