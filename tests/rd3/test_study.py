"""A study gives back what was put in, bit for bit, leaves out what is large, and refuses what is no study."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rd3.errors import DataCorrupt, DataMissing, FilesNotExported, RD3Error, StoreError
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, Normalisation, Recipe, SetRecipe, TeacherRecipe
from rd3.store import STUDENT, Entry, FolderStore, sha256_files
from rd3.study import RESULTS, Study, rows, write_study, writer

DATA = {"data": Data(name="digits", fingerprint="f" * 64), "classes": "c" * 64, "resolution": 32}
NORMALISATION = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def a_teacher() -> TeacherRecipe:
    return TeacherRecipe(**DATA, network="resnet18_w16", normalisation=NORMALISATION, weights="e" * 64)


def a_set(ipc: int) -> SetRecipe:
    return SetRecipe(**DATA, method="random", version=1, settings={}, ipc=ipc, set_seed=0)


def an_evaluation(seed: int) -> EvaluationRecipe:
    protocol = resolve_protocol("rd3", factor=1, same_network=True, set_size=10)
    return EvaluationRecipe.of(
        a_set(1), teachers=[], protocol=protocol, student="convnet", student_seed=seed, normalisation=NORMALISATION
    )


def put(store: FolderStore, scratch: Path, recipe: Recipe, files: dict[str, bytes]) -> Entry:
    folder = scratch / recipe.key
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    result = {"top1_pct": 0.1 + 0.2, "count": 10**18, "wall_s": 1e-17}
    made = {"host": "\N{SNOWMAN}", "threads": None}
    plain = recipe.model_dump(mode="json")
    hashes = sha256_files(folder)
    return store.put(
        Entry(kind=recipe.kind, key=recipe.key, recipe=plain, result=result, files=hashes, made=made), folder
    )


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    """A teacher, sets of IPC 1, 10 and 50, and more evaluations than are compressed together."""
    monkeypatch.setattr(rows, "_GROUP", 4)
    made = FolderStore(tmp_path / "store")
    put(made, tmp_path, a_teacher(), {"weights.safetensors": b"weights" * 1000, "manifest.json": b"{}"})
    for ipc in (1, 10, 50):
        blocks = {"blocks/00000.safetensors": bytes([ipc]) * 999, "blocks/00001.safetensors": b""}
        put(made, tmp_path, a_set(ipc), blocks | {"contact_sheet.png": b"png" * ipc, "manifest.json": b"{}"})
    for seed in range(6):
        put(made, tmp_path, an_evaluation(seed), {"curve.parquet": bytes([seed]) * 500, "result.json": b"{ }\n"})
    return made


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[Path], Study]:
    return lambda path: Study(path, tmp_path / "unpacked")


def test_everything_comes_back_bit_for_bit(store, opened, tmp_path):
    assert write_study(store, store.names(), tmp_path / "study", networks=True) == (10, 1)
    study = opened(tmp_path / "study")
    assert study.names() == store.names()
    for name in store.names():
        assert study.find(*name) == store.find(*name)
        if name != ("set", a_set(50).key):
            assert sha256_files(study.fetch(*name)) == store.find(*name).files


def test_a_study_is_few_files_with_names_for_people(store, tmp_path):
    write_study(store, store.names(), tmp_path / "study", networks=True)
    found = sorted(path.relative_to(tmp_path / "study").as_posix() for path in (tmp_path / "study").rglob("*.*"))
    one, ten = a_set(1).key[:12], a_set(10).key[:12]
    assert found == [
        "results.parquet",
        *sorted([f"sets/random-ipc1-{one}.parquet", f"sets/random-ipc10-{ten}.parquet"]),
        *sorted([f"sheets/random-ipc1-{one}.png", f"sheets/random-ipc10-{ten}.png"]),
        f"teachers/resnet18_w16-{a_teacher().key[:12]}.parquet",
    ]
    assert (tmp_path / f"study/sheets/random-ipc10-{ten}.png").read_bytes() == b"png" * 10


def test_large_sets_and_networks_leave_their_figures(store, opened, tmp_path):
    assert write_study(store, store.names(), tmp_path / "study") == (10, 2)
    study = opened(tmp_path / "study")
    for recipe in (a_teacher(), a_set(50)):
        assert study.find(recipe.kind, recipe.key).result["count"] == 10**18
        with pytest.raises(FilesNotExported, match=r"are not in the study\. Fix: make or import it again"):
            study.fetch(recipe.kind, recipe.key)


def test_a_network_too_large_for_a_repository_is_left_out(store, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "LARGEST_PART", 1000)
    assert write_study(store, store.names(), tmp_path / "study", networks=True).left_out == 4
    assert not (tmp_path / "study/teachers").exists()


@pytest.mark.parametrize("limit", ["MOST_ROWS", "MOST_BYTES"])
def test_a_study_that_could_not_be_read_again_is_not_written(store, opened, tmp_path, monkeypatch, limit):
    first, *rest = store.names()
    write_study(store, [first], tmp_path / "study")
    monkeypatch.setattr(rows, limit, {"MOST_ROWS": 9, "MOST_BYTES": 3000}[limit])
    with pytest.raises(StoreError, match=r"results\.parquet would unpack to .*Fix: export fewer results"):
        write_study(store, rest, tmp_path / "study")
    assert opened(tmp_path / "study").names() == [first]


def test_a_file_that_is_gone_leaves_its_figures_and_a_damaged_one_is_refused(store, opened, tmp_path):
    folder = tmp_path / "store/artifacts/evaluation"
    (folder / an_evaluation(0).key / "result.json").unlink()
    assert write_study(store, store.names(), tmp_path / "study").left_out == 3
    with pytest.raises(FilesNotExported):
        opened(tmp_path / "study").fetch("evaluation", an_evaluation(0).key)
    (folder / an_evaluation(1).key / "result.json").write_text("altered")
    with pytest.raises(DataCorrupt, match=r"result\.json has sha256"):
        write_study(store, store.names(), tmp_path / "other")


def test_a_source_that_cannot_be_read_is_not_said_to_be_a_study_that_cannot_be_written(store, tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("rd3.store.sha256_file", refused)
    with pytest.raises(StoreError, match=r"^The files of \w+ \w{12} cannot be read \(.*/store/.*\): Perm") as caught:
        write_study(store, store.names(), tmp_path / "study")
    assert str(tmp_path / "study") not in str(caught.value)


def test_files_that_are_back_complete_the_study(store, opened, tmp_path):
    study, file = tmp_path / "study", tmp_path / "store/artifacts/evaluation" / an_evaluation(0).key / "result.json"
    file.rename(tmp_path / "away")
    write_study(store, store.names(), study)
    (tmp_path / "away").rename(file)
    assert write_study(store, store.names(), study) == (0, 2)
    assert sha256_files(opened(study).fetch("evaluation", an_evaluation(0).key))
    write_study(store, store.names(), tmp_path / "at once")
    assert sha256_files(study) == sha256_files(tmp_path / "at once")


def test_writing_again_adds_what_is_new_and_changes_nothing(store, opened, tmp_path):
    study = tmp_path / "study"
    names = store.names()
    assert write_study(store, names[:7], study).new == 7
    assert write_study(store, names, study).new == 3
    before = sha256_files(study)
    assert write_study(store, reversed(names), study).new == 0
    assert sha256_files(study) == before
    assert write_study(store, names, tmp_path / "at once").new == 10
    assert sha256_files(tmp_path / "at once") == before
    assert write_study(store, names, study, networks=True) == (0, 1)
    assert opened(study).fetch("teacher", a_teacher().key).is_dir()


def test_one_set_travels_alone_and_a_picture_may_be_missing(store, opened, tmp_path):
    write_study(store, store.names(), tmp_path / "study")
    recipe = a_set(1)
    alone = opened(next((tmp_path / "study/sets").glob("random-ipc1-*")))
    assert alone.names() == [("set", recipe.key)]
    expected = {name: sha for name, sha in store.find("set", recipe.key).files.items() if name != "contact_sheet.png"}
    assert sha256_files(alone.fetch("set", recipe.key)) == expected == alone.find("set", recipe.key).files
    next((tmp_path / "study/sheets").glob("random-ipc1-*")).unlink()
    assert opened(tmp_path / "study").find("set", recipe.key).files == expected


def test_a_picture_that_was_touched_is_refused(store, opened, tmp_path):
    write_study(store, store.names(), tmp_path / "study")
    next((tmp_path / "study/sheets").glob("random-ipc1-*")).write_bytes(b"another")
    with pytest.raises(DataCorrupt, match=r"contact_sheet\.png has sha256"):
        opened(tmp_path / "study").fetch("set", a_set(1).key)


def test_a_part_under_a_wrong_name_is_refused(store, opened, tmp_path):
    write_study(store, store.names(), tmp_path / "study")
    one, ten = (next((tmp_path / "study/sets").glob(f"random-ipc{ipc}-*")) for ipc in (1, 10))
    one.write_bytes(ten.read_bytes())
    with pytest.raises(DataCorrupt, match=r"does not hold set .*, contrary to its name"):
        opened(tmp_path / "study").fetch("set", a_set(1).key)


def test_other_tools_read_the_results(store, tmp_path):
    write_study(store, store.names(), tmp_path / "study")
    table = pq.read_table(tmp_path / "study" / RESULTS).to_pylist()
    assert [row["key"] for row in table] == [key for _kind, key in store.names()]
    assert json.loads(table[-1]["entry"])["result"]["top1_pct"] == 0.1 + 0.2


def test_nothing_there_is_said(opened, tmp_path):
    with pytest.raises(DataMissing, match=r"There is no file .*results\.parquet"):
        opened(tmp_path)


def test_a_folder_that_cannot_be_written_is_said(store, opened, tmp_path):
    (tmp_path / "a file").touch()
    with pytest.raises(StoreError, match="Cannot write to"):
        write_study(store, store.names(), tmp_path / "a file" / "study")
    write_study(store, store.names(), tmp_path / "study")
    with pytest.raises(StoreError, match="Cannot unpack set"):
        Study(tmp_path / "study", tmp_path / "a file").fetch("set", a_set(1).key)


# What is no study, or one that means harm.


def a_row(**changes: Any) -> dict[str, Any]:
    recipe = an_evaluation(0)
    entry = {"kind": "evaluation", "key": recipe.key, "recipe": recipe.model_dump(mode="json"), "result": {}}
    entry |= {"files": {"result.json": "0" * 64}} | changes.pop("entry", {})
    row = {"kind": entry["kind"], "key": entry["key"], "entry": json.dumps(entry)}
    return row | {"carried": [{"name": "result.json", "data": b"{}"}]} | changes


def hostile(path: Path, found: list[dict[str, Any]], **options: Any) -> Path:
    schema = options.pop("schema", None) or rows._schema()
    options = {"use_dictionary": False, "row_group_size": 128} | options
    pq.write_table(pa.Table.from_pylist(found, schema=schema), path, **options)
    return path


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (a_row(entry={"files": {"../x": "0"}}), "'../x' is not a relative file name"),
        (a_row(entry={"files": {"/etc/x": "0"}}), "'/etc/x' is not a relative file name"),
        (a_row(entry={"files": {"a/../../x": "0"}}), "'a/../../x' is not a relative file name"),
        (a_row(entry={"files": {"..\\x": "0"}}), "is not a relative file name"),
        (a_row(entry={"files": {"a\0": "0"}}), "is not a relative file name"),
        (a_row(entry={"files": {"": "0"}}), "'' is not a relative file name"),
        (a_row(entry={"files": {"a": "0", "a/b": "0"}}), "'a/b' is inside another file"),
        (a_row(entry={"key": "../../x"}), "is not a kind and a key"),
        (a_row(entry={"kind": "../x"}), "is not a kind and a key"),
        (a_row(key="0" * 64), "evaluation 000000000000 does not match its entry"),
        (a_row(entry={"of_tomorrow": 1}), "of_tomorrow: Extra inputs are not permitted"),
        (a_row() | {"entry": "{"}, "Invalid JSON"),
        (a_row() | {"entry": "[" * 100_000}, "recursion limit exceeded"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(opened, tmp_path, row, reason):
    with pytest.raises(DataCorrupt) as refused:
        opened(hostile(tmp_path / RESULTS, [row]))
    assert f"{tmp_path / RESULTS}, row 0" in str(refused.value) and reason in str(refused.value)


def test_an_entry_twice_is_refused(opened, tmp_path):
    with pytest.raises(DataCorrupt, match=r"has evaluation .* twice"):
        opened(hostile(tmp_path / RESULTS, [a_row(), a_row()]))


def test_files_with_other_bytes_are_refused(opened, tmp_path):
    study = opened(hostile(tmp_path / RESULTS, [a_row()]))
    with pytest.raises(DataCorrupt, match=r"file result\.json has sha256 44136fa355b3, its record says 000000000000"):
        study.fetch("evaluation", an_evaluation(0).key)


def test_files_that_the_entry_does_not_name_are_not_unpacked(opened, tmp_path):
    row = a_row(entry={"files": {}}, carried=[{"name": "../../evil", "data": b"evil"}])
    folder = opened(hostile(tmp_path / RESULTS, [row])).fetch("evaluation", an_evaluation(0).key)
    assert list(folder.iterdir()) == [] and not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    "schema",
    [
        pa.schema([("image", pa.binary()), ("label", pa.int64())]),
        pa.schema([(name, pa.large_string()) for name in ("kind", "key", "entry")], metadata={"rd3.study": "1"}),
        rows._schema().remove_metadata(),
        rows._schema().with_metadata({"rd3.study": "one"}),
    ],
)
def test_another_parquet_file_is_no_study(opened, tmp_path, schema):
    with pytest.raises(DataCorrupt, match="holds no results: its columns are"):
        opened(hostile(tmp_path / RESULTS, [], schema=schema))


def test_a_later_format_is_said(opened, tmp_path):
    with pytest.raises(DataCorrupt, match=r"has format 2, this version reads up to 1\. Fix: upgrade rd3"):
        opened(hostile(tmp_path / RESULTS, [], schema=rows._schema().with_metadata({"rd3.study": "2"})))


def test_what_unpacks_to_more_than_a_study_is_refused_unread(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MOST_BYTES", 2**20)
    bomb = hostile(tmp_path / RESULTS, [a_row(carried=[{"name": "a", "data": bytes(2**21)}])], compression="zstd")
    assert bomb.stat().st_size < 10_000
    with pytest.raises(DataCorrupt, match="would unpack to 2 MiB in 1 rows; expected at most 1 MiB"):
        opened(bomb)
    monkeypatch.setattr(rows, "MOST_ROWS", 0)
    with pytest.raises(DataCorrupt, match="expected at most 1 MiB in 0 rows"):
        opened(hostile(tmp_path / RESULTS, [a_row()]))


@pytest.mark.parametrize("options", [{"use_dictionary": True}, {"row_group_size": 1}])
def test_a_layout_that_would_unpack_to_more_than_it_says_is_refused(opened, tmp_path, options):
    repeated = [{"name": str(number), "data": bytes(1000)} for number in range(1000)]
    found = [a_row(carried=repeated), a_row(entry={"key": "0" * 64})]
    with pytest.raises(DataCorrupt, match="does not have the layout of"):
        opened(hostile(tmp_path / RESULTS, found, **options))


@pytest.mark.parametrize("part", [0, 3, 100, 0.5, 0.9, -1, -8])
def test_a_truncated_file_is_refused(store, opened, tmp_path, part):
    write_study(store, store.names(), tmp_path / "study")
    path = tmp_path / "study" / RESULTS
    raw = path.read_bytes()
    path.write_bytes(raw[: int(part * len(raw)) if isinstance(part, float) else part])
    with pytest.raises(DataCorrupt, match="is not a complete Parquet file"):
        opened(path)


def test_a_flipped_bit_anywhere_is_a_sentence_or_does_no_harm(store, opened, tmp_path):
    """In the footer too, where Arrow ends the process if it is asked for a column first."""
    recipe = a_set(1)
    write_study(store, [("set", recipe.key)], tmp_path / "study")
    path = next((tmp_path / "study/sets").iterdir())
    raw = bytearray(path.read_bytes())
    refused = 0
    for place in range(0, len(raw), 3):
        raw[place] ^= 0x10
        path.write_bytes(raw)
        raw[place] ^= 0x10
        try:
            opened(path).fetch("set", recipe.key)
        except RD3Error:
            refused += 1
    assert refused > len(raw) / 3 / 2


def test_the_weights_of_students_stay_out_of_a_study(store, opened, tmp_path):
    files = {"curve.parquet": b"curve", "result.json": b"{}", STUDENT: b"weights" * 1000}
    put(store, tmp_path, an_evaluation(7), files)
    assert write_study(store, [("evaluation", an_evaluation(7).key)], tmp_path / "study") == (1, 0)
    study = opened(tmp_path / "study")
    [name] = study.names()
    assert set(study.find(*name).files) == {"curve.parquet", "result.json"}
    assert sha256_files(study.fetch(*name)) == study.find(*name).files
