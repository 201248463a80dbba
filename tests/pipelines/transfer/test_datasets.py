"""Datasets that travel: whole or not at all, once a node, and named where nobody has them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.transfer.datasets import absent, ensure_data, pull, push
from rd3.datasets import Roots, add_folder, dataset_fingerprint, dataset_info, open_dataset
from rd3.errors import BadValue, DataCorrupt, DataMissing, TrackingError
from rd3.recipe import Data
from rd3.store import sha256_file
from tracking.place import Place
from tracking.runs import dataset_bundles
from tracking.runs.runs import Tracker


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A tracking database and an artifact folder that all the test's machines share."""
    shared = tmp_path_factory.mktemp("shared")
    return Place(f"sqlite:///{shared / 'mlflow.db'}", str(shared / "artifacts"), shared / "home")


@pytest.fixture
def here(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, Roots]:
    """A machine with a dataset of the user's own."""
    name = f"{request.node.originalname[5:35].replace('_', '-')}-{zlib.crc32(request.node.name.encode())}"
    roots = Roots(None, tmp_path / "here")
    for part in ("train", "test"):
        for label, class_id in enumerate(("cat", "dog")):
            folder = tmp_path / "images" / part / class_id
            folder.mkdir(parents=True)
            for index in range(3):
                pixels = np.full((8, 8, 3), 90 * label + 9 * index + len(part) + len(name), np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    (tmp_path / "images" / ".cache").mkdir()
    (tmp_path / "images" / ".cache" / "state").write_text("of no use elsewhere")
    add_folder(name, tmp_path / "images", roots, 32)
    return name, roots


def at(place: Place, roots: Roots) -> Place:
    """The same servers from a machine with these folders."""
    return Place(place.tracking_uri, place.artifacts, roots.home)


def left(roots: Roots) -> list[str]:
    """What a node holds of datasets, but for what is derived and the lock."""
    return [path.name for path in (roots.home / "data").iterdir() if path.is_dir()]


def test_a_dataset_arrives_as_it_was_pushed(here, place, tmp_path, monkeypatch):
    name, roots = here
    monkeypatch.setattr(dataset_bundles, "PART_BYTES", 200)  # several parts
    bundle, new = push(name, at(place, roots))
    assert (new, bundle.files, len(bundle.parts) > 2) == (True, 12, True)
    assert push(name, at(place, roots)) == (bundle, False)
    shutil.rmtree(tmp_path / "images")
    there = Roots(None, tmp_path / "there")
    assert absent(name, there)
    ensure_data(at(place, there), Data(name=name, fingerprint=bundle.fingerprint))
    assert dataset_fingerprint(name, there) == bundle.fingerprint
    assert dataset_info(name, there) == dataset_info(name, roots)
    assert len(open_dataset(name, there).labels("train")) == 6
    assert left(there) == [name]
    assert pull(name, at(place, there)) is None


def test_nothing_is_read_for_a_tracking_server_that_is_away(here, tmp_path, monkeypatch):
    name, roots = here
    monkeypatch.setattr("pipelines.transfer.datasets.dataset_fingerprint", lambda *_words: pytest.fail("it was read"))
    with pytest.raises(TrackingError, match=r"The tracking server http://127\.0\.0\.1:9 does not respond"):
        push(name, Place("http://127.0.0.1:9", "/nowhere", roots.home))


def test_what_needs_the_training_images_alone_takes_the_same_bundle(here, place, tmp_path):
    name, roots = here
    push(name, at(place, roots))
    there = Roots(None, tmp_path / "elsewhere")
    training = dataset_fingerprint(name, roots, training_only=True)
    ensure_data(at(place, there), Data(name=name, fingerprint=training, split="fit"))
    assert dataset_fingerprint(name, there, training_only=True) == training


def test_what_comes_with_a_package_needs_nothing(place, tmp_path):
    roots = Roots(None, tmp_path / "home")
    ensure_data(Place("http://127.0.0.1:9", "/nowhere", roots.home), Data(name="digits", fingerprint="f"))
    assert not roots.home.exists()
    with pytest.raises(BadValue, match="digits is bundled with RD3's packages"):
        push("digits", at(place, roots))


def test_nobody_has_pushed_it(here, place, tmp_path):
    there = Roots(None, tmp_path / "there")
    with pytest.raises(DataMissing, match=f"{here[0]} is not on .*, and has not been pushed to sqlite:.*data push"):
        pull(here[0], at(place, there))
    push(here[0], at(place, here[1]))
    with pytest.raises(DataMissing, match="has not been pushed with fingerprint ffffffffffff"):
        ensure_data(at(place, there), Data(name=here[0], fingerprint="f" * 32))
    assert left(there) == []


def test_a_damaged_part_is_refused_and_leaves_nothing(here, place, tmp_path):
    name, roots = here
    bundle, _new = push(name, at(place, roots))
    artifacts = Path(Tracker(place).client.get_run(bundle.run_id).info.artifact_uri.removeprefix("file://"))
    [part] = (artifacts / "parts").iterdir()
    whole = part.read_bytes()
    part.write_bytes(whole[:700] + b"!" + whole[701:])
    there = Roots(None, tmp_path / "there")
    with pytest.raises(DataCorrupt, match=r"damaged: 00000\.tar has sha256"):
        pull(name, at(place, there))
    assert left(there) == []
    assert absent(name, there)
    part.write_bytes(whole)
    assert pull(name, at(place, there)) == there.home / "data" / name


def test_a_part_that_is_damaged_on_its_way_is_downloaded_again(here, place, tmp_path, monkeypatch):
    name, roots = here
    push(name, at(place, roots))
    client = type(Tracker(place).client)
    whole, sent = client.download_artifacts, []

    def download(self, run_id, path, folder):
        found = whole(self, run_id, path, folder)
        if path.startswith("parts/"):
            sent.append(path)
            if len(sent) == 1:
                Path(found).write_bytes(Path(found).read_bytes()[:-1])
        return found

    monkeypatch.setattr(client, "download_artifacts", download)
    there = Roots(None, tmp_path / "there")
    assert pull(name, at(place, there)) == there.home / "data" / name
    assert sent == ["parts/00000.tar"] * 2


def test_other_data_under_the_right_hashes_is_refused(here, place, tmp_path, monkeypatch):
    name, roots = here
    monkeypatch.setattr("pipelines.transfer.datasets.dataset_fingerprint", lambda *_: "e" * 32)
    push(name, at(place, roots))
    there = Roots(None, tmp_path / "there")
    with pytest.raises(DataCorrupt, match="was pushed with fingerprint eeeeeeeeeeee, got"):
        pull(name, at(place, there))
    assert left(there) == []


def test_a_push_that_was_cut_off_is_never_read(here, place, tmp_path, monkeypatch):
    name, roots = here
    tracker = Tracker(place)
    monkeypatch.setattr(dataset_bundles, "sha256_file", lambda _path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        push(name, at(place, roots))
    monkeypatch.undo()
    assert dataset_bundles.find(tracker, name) is None
    runs = tracker.search([tracker.experiment(dataset_bundles.EXPERIMENT)], {"rd3.data": name})
    assert [run.info.status for run in runs] == ["FAILED"]
    assert push(name, at(place, roots))[1]


def test_one_process_of_a_node_fetches(here, place, tmp_path, monkeypatch):
    name, roots = here
    push(name, at(place, roots))
    fetched, unpack = [], dataset_bundles.unpack
    monkeypatch.setattr(dataset_bundles, "unpack", lambda *words: (fetched.append(words), unpack(*words)))
    there = Roots(None, tmp_path / "there")
    with ThreadPoolExecutor(4) as pool:
        came = list(pool.map(lambda _: pull(name, at(place, there)), range(4)))
    assert len(fetched) == 1
    assert sorted(came, key=str) == [there.home / "data" / name, None, None, None]


def _member(name: str, kind: bytes = tarfile.REGTYPE, to: str = "", content: bytes = b"evil") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    member.size = len(content) if kind == tarfile.REGTYPE else 0
    return member


@pytest.fixture
def pushed(here, place):
    """A pushed dataset; the function changes its part, its manifest or both, with the right hash."""
    name, roots = here
    bundle, _new = push(name, at(place, roots))
    artifacts = Path(Tracker(place).client.get_run(bundle.run_id).info.artifact_uri.removeprefix("file://"))

    def change(*members: tarfile.TarInfo, part: bytes | None = None, **fields: object) -> None:
        [file], manifest = (artifacts / "parts").glob("*.tar"), artifacts / "parcel.json"
        if part is not None:
            file.write_bytes(part)
        with contextlib.ExitStack() as stack:
            tar = stack.enter_context(tarfile.open(file, "a")) if members else None
            for member in members:
                tar.addfile(member, io.BytesIO(b"evil"))
        plain = json.loads(manifest.read_text()) | {"parts": {file.name: sha256_file(file)}} | fields
        manifest.write_text(json.dumps(plain))

    return name, bundle, change


HOSTILE = {
    "above": [_member("../../evil")],
    "absolute": [_member("/tmp/evil-rd3")],
    "link": [_member("train/lk", tarfile.SYMTYPE, "/tmp"), _member("train/lk/evil")],
    "relative link": [_member("train/lk", tarfile.SYMTYPE, "cat"), _member("train/lk/evil")],
    "hard link": [_member("train/cat/9.png", tarfile.LNKTYPE, "/etc/hostname")],
    "device": [_member("train/cat/null.png", tarfile.CHRTYPE)],
    "pipe": [_member("train/cat/pipe.png", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_member_that_is_no_file_of_the_dataset_is_named_with_the_run(kind, pushed, place, tmp_path):
    name, bundle, change = pushed
    change(*HOSTILE[kind])
    there = Roots(None, tmp_path / "there")
    with pytest.raises(DataCorrupt, match=r"00000\.tar holds '(.*)', which is not a file below") as caught:
        pull(name, at(place, there))
    assert repr(HOSTILE[kind][0].name) in caught.value.message
    assert bundle.run_id in caught.value.message and f"rd3 data push {name}" in caught.value.fix
    assert left(there) == [] and not list(tmp_path.rglob("evil*")) and not Path("/tmp/evil-rd3").exists()


@pytest.mark.parametrize(
    ("members", "fields", "message"),
    [
        ([_member("train/cat/more.png")], {}, "it holds 13 files, its parcel.json counts 12"),
        ([_member("train/cat/more.png")], {"files": 13}, "it holds 7 training and 6 test images; .* registered with 6"),
        ([_member("train")], {}, r"00000\.tar cannot be unpacked \("),
        ([], {"part": b"PK\3\4" * 999}, r"00000\.tar cannot be unpacked \("),
        ([], {"parts": {"../../parcel.json": "0"}}, "parcel.json, parts.*String should match"),
        ([], {"name": "../evil"}, r"parcel.json has name '\.\./evil', expected"),
        ([], {"run_id": "f" * 32}, "parcel.json has run_id 'ffff"),
        ([], {"files": None}, "parcel.json, files: "),
        ([], {"registration": {"test": "test", "info": {}}}, "registration of .* cannot be read: info"),
    ],
)
def test_what_is_not_as_it_was_pushed_is_said_of_the_run(members, fields, message, pushed, place, tmp_path):
    name, bundle, change = pushed
    change(*members, **fields)
    there = Roots(None, tmp_path / "there")
    with pytest.raises(DataCorrupt, match=f"The pushed dataset {name} is damaged: .*{message}") as caught:
        pull(name, at(place, there))
    assert bundle.run_id in caught.value.message and ".pull-" not in str(caught.value)
    assert left(there) == [] and absent(name, there)


@pytest.mark.parametrize(
    ("field", "message"), [("info", "is one of '../../evil'"), ("test", "leads out of its folder")]
)
def test_a_registration_that_leads_elsewhere_is_refused(field, message, pushed, place, tmp_path):
    name, bundle, change = pushed
    entry = dict(bundle.registration)
    entry[field] = entry["info"] | {"name": "../../evil"} if field == "info" else "../.."
    change(registration=entry)
    there = Roots(None, tmp_path / "there")
    with pytest.raises(DataCorrupt, match=message):
        pull(name, at(place, there))
    assert left(there) == [] and not list(tmp_path.rglob("evil*"))
