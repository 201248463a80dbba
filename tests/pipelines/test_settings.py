"""Addresses from the environment: absolute in one place, and refused where they cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import make_url

from pipelines.settings import addresses, artifact_root, session, tracking_address
from rd3.errors import BadValue
from tracking.ledger.faults import has_password, without_password
from tracking.ledger.object_store import open_objects
from tracking.runs.reachable import sqlite_file


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; ``user`` in it is the user's home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("art", "{here}/art"),
        ("~/art", "{here}/user/art"),
        ("/a/b/", "/a/b"),
        ("file:///a/b%20c", "/a/b c"),
        ("file:~/art", "{here}/user/art"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
    ],
)
def test_artifact_roots(here: Path, given: str, expected: str):
    assert session({"RD3_ARTIFACTS": given}).artifacts == expected.format(here=here)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sqlite:///m.db", "sqlite:///{here}/m.db"),
        ("sqlite:///~/m.db", "sqlite:///{here}/user/m.db"),
        ("sqlite+pysqlite:////a/m.db?timeout=5", "sqlite+pysqlite:////a/m.db?timeout=5"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("http://server:5000", "http://server:5000"),
        ("postgresql+psycopg2:///mlflow", "postgresql+psycopg2:///mlflow"),
    ],
)
def test_tracking_addresses(here: Path, given: str, expected: str):
    assert session({"MLFLOW_TRACKING_URI": given}).tracking_uri == expected.format(here=here)


def test_homes_and_data(here: Path):
    found = session({"RD3_HOME": "~/h", "RD3_DATA": "d"})
    assert (found.home, found.data) == (here / "user" / "h", here / "d")
    assert (found.tracking_uri, found.artifacts) == (f"sqlite:///{here}/user/h/mlflow.db", f"{here}/user/h/artifacts")
    assert session({}).home == here / ".rd3"


@pytest.mark.parametrize("name", ["a b", "h#x", "it's", 'd"q', "100% x", "a&b=c;d", "umläut", "x@y:z"])
def test_a_database_is_the_file_that_sqlalchemy_opens(name: str):
    uri = tracking_address(f"sqlite:////{name}/m.db")
    assert sqlite_file(uri) == Path(make_url(uri).database) == Path(f"/{name}/m.db")


@pytest.mark.parametrize(
    "env",
    [
        {"RD3_HOME": "/a?b"},
        {"RD3_HOME": "/a%20b"},
        {"RD3_HOME": "/a\nb"},
        {"RD3_HOME": '/it\'s "b"'},
        {"RD3_ARTIFACTS": '/it\'s "b"'},
        {"RD3_ARTIFACTS": "file://host/b"},
        {"MLFLOW_TRACKING_URI": "sqlite:////a%20b/m.db"},
    ],
)
def test_paths_that_cannot_work_are_refused_in_one_sentence(env: dict[str, str]):
    (name,) = env
    with pytest.raises(BadValue, match=name) as refused:
        session(env)
    assert refused.value.fix


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_artifacts_and_database_may_be_apart(tmp_path: Path, name: str):
    """Only the address of a database has these limits."""
    found = session({"RD3_HOME": f"/{name}", "MLFLOW_TRACKING_URI": "http://server", "RD3_ARTIFACTS": f"/x/{name}"})
    assert (str(found.home), found.artifacts) == (f"/{name}", f"/x/{name}")
    assert open_objects(found.artifacts).folder == Path(f"/x/{name}")
    assert artifact_root(open_objects(found.artifacts).url()) == f"/x/{name}"


@pytest.mark.parametrize("name", ["RD3_HOME", "RD3_DATA", "RD3_ARTIFACTS", "MLFLOW_TRACKING_URI"])
@pytest.mark.parametrize(
    ("start", "end", "what"), [('"', '"', "quotation marks"), ("'", "'", "quotation marks"), ("", "\r", "white space")]
)
def test_quotes_and_line_ends_that_a_shell_would_remove_are_refused(name: str, start: str, end: str, what: str):
    value = "http://server:5000" if name == "MLFLOW_TRACKING_URI" else "/a folder/b"
    with pytest.raises(BadValue, match=rf"{name} is .*, with {what}") as refused:
        session({"RD3_HOME": "/home", name: f"{start}{value}{end}"})
    assert refused.value.fix == f"write {name}={value}, as it is read without a shell"
    assert session({"RD3_HOME": "/home", name: value})
    with pytest.raises(BadValue, match=what):
        addresses([f"{name}={start}{value}{end}"])
    assert addresses([f"{name}={value}"]) == {name: value}


@pytest.mark.parametrize("form", ['"{}"', "{}\r"])
def test_a_refused_address_does_not_show_its_password(form: str):
    with pytest.raises(BadValue, match="is read without a shell") as refused:
        session({"RD3_HOME": "/home", "MLFLOW_TRACKING_URI": form.format("postgresql://me:s3cret@db/mlflow")})
    assert "s3cret" not in str(refused.value) and "db/mlflow" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"), [("MLFLOW_TRACKING_URI", "http://me:s3cret@[::1"), ("RD3_ARTIFACTS", "file://[s3cret/y")]
)
def test_an_address_that_cannot_be_read_is_not_shown(name: str, value: str):
    with pytest.raises(BadValue, match=f"{name} cannot be read as an address: Invalid IPv6 URL") as refused:
        session({"RD3_HOME": "/home", name: value})
    assert "s3cret" not in str(refused.value)


def test_a_bucket_with_one_slash_is_refused_and_no_folder():
    with pytest.raises(BadValue, match=r"s3:/bucket/rd3, which has one slash\. Fix: write s3://bucket/rd3$"):
        artifact_root("s3:/bucket/rd3")
    assert artifact_root("file:/srv/rd3") == "/srv/rd3"


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIAEXAMPLE:hush@bucket/rd3",  # as smart_open takes it
        "s3://AKIAEXAMPLE:x/y/hush@bucket/rd3",  # AWS's secret keys may have slashes, which end the authority of a URI
        "s3a://AKIAEXAMPLE:x#hush@bucket",
    ],
)
def test_a_secret_key_in_the_artifact_root_is_refused_and_not_shown(address: str):
    with pytest.raises(BadValue, match=r"RD3_ARTIFACTS contains a password.*set AWS_ACCESS_KEY_ID") as refused:
        session({"RD3_HOME": "/home", "RD3_ARTIFACTS": address})
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("address", ["s3://bucket/me@here", "s3://bucket/a:b@c", "s3://bucket"])
def test_signs_in_the_prefix_of_a_bucket_are_no_secret(address: str):
    assert artifact_root(address) == address


@pytest.mark.parametrize(
    ("address", "fix"),
    [
        ("https://mlflow.example/?token=hush", "from the question mark on, and set MLFLOW_TRACKING_TOKEN"),
        ("https://me:hush@mlflow.example/?token=hush", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("https://me:hush@mlflow.example", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_the_fix_names_the_variable_that_takes_the_secret(address: str, fix: str):
    with pytest.raises(BadValue, match=fix) as refused:
        tracking_address(address)
    assert "hush" not in str(refused.value)


def test_a_password_with_a_slash_is_one():
    """SQLAlchemy takes it, and the URI's parts by urllib have no password then."""
    address = "postgresql://me:s3/cret@db/mlflow"
    assert sqlalchemy.engine.make_url(address).password == "s3/cret"
    with pytest.raises(BadValue, match=r"MLFLOW_TRACKING_URI contains a password.*PGPASSWORD"):
        tracking_address(address)
    for plain in ("http://server:5000/path@x", "http://server:5000", "postgresql+psycopg2://me@db/mlflow"):
        assert tracking_address(plain) == plain


@pytest.mark.parametrize(
    "address", ["postgresql://db/mlflow?user=me&password=hush", "postgresql://db/x?pass%77ord=hush"]
)
def test_a_password_in_the_query_of_a_database_is_one(address: str):
    """What SQLAlchemy gives to the driver has it."""
    url = sqlalchemy.engine.make_url(address)
    assert url.get_dialect()().create_connect_args(url)[1]["password"] == "hush"
    with pytest.raises(BadValue, match=r"MLFLOW_TRACKING_URI contains a password.*PGPASSWORD") as refused:
        tracking_address(address)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me@db/x?sslpassword=hush&sslmode=require", "postgresql://db/x?sslmode=require"),
        ("postgresql://db/x?password=hush", "postgresql://db/x"),
        ("http://server:5000/?access_token=hush#/models", "http://server:5000/#/models"),
        ("http://server:5000/?a=1;password=hush", "http://server:5000/?a=1"),
        ("https://store/x?sv=1&sig=hush", "https://store/x?sv=1"),
        ("mssql+pyodbc:///?odbc_connect=SERVER%3Ddb%3BPWD%3Dhush", "mssql+pyodbc:///"),
        ("http://server:5000/?tokenizer=x&passwordless=yes", ""),
        ("postgresql://db/x?passfile=/home/me/.pgpass&sslkey=/k.pem&password=", ""),
    ],
)
def test_secrets_in_a_query_are_not_shown(address: str, shown: str):
    assert has_password(address) == bool(shown)
    assert without_password(address) == (shown or address)


@pytest.mark.parametrize("page", ["/#/experiments/1/runs", "#/experiments/1", "/?workspace=a#/models", "/mlflow/#/"])
def test_the_address_of_a_page_of_mlflow_is_refused(page: str):
    server = "http://127.0.0.1:5000" + ("/mlflow" if "mlflow" in page else "")
    with pytest.raises(BadValue, match=r", the address of a page of MLflow") as refused:
        tracking_address(f"http://127.0.0.1:5000{page}")
    assert refused.value.fix == f"write that of its server: {server}"


def test_results_one_level_below_the_home_are_named_once(here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "outer/rd3 home/artifacts/by-key").mkdir(parents=True)
    (here / "outer/__MACOSX/rd3 home").mkdir(parents=True)
    (here / "outer/artifacts/leases").mkdir(parents=True)  # of a command that found nothing
    for _time in range(2):
        session({"RD3_HOME": "outer"})
    found = here / "outer/rd3 home"
    assert capsys.readouterr().err == (
        f"{here / 'outer'} contains no results, but there are some one level deeper, in {found}. To use them: "
        f"export RD3_HOME='{found}'\n"
    )
    session({"RD3_ARTIFACTS": "outer/rd3 home"})
    assert capsys.readouterr().err.endswith(f"export RD3_ARTIFACTS='{found}/artifacts'\n")


def test_results_of_a_project_one_level_below_are_named(here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "project/.rd3/artifacts/by-key").mkdir(parents=True)
    session({})
    assert capsys.readouterr().err.endswith(f"export RD3_HOME={here}/project/.rd3\n")


@pytest.mark.parametrize(
    ("folders", "env"),
    [
        ([], {}),
        ([".rd3"], {}),
        (["outer/data"], {"RD3_HOME": "outer"}),
        (["outer/artifacts/by-key", "outer/copy/artifacts/by-key"], {"RD3_HOME": "outer"}),
        (["one/.rd3/artifacts/by-key", "two/.rd3/artifacts/by-key"], {}),
        (["outer/a/b/artifacts/by-key"], {"RD3_HOME": "outer"}),
        (["outer/home/artifacts/by-key"], {"RD3_HOME": "outer", "RD3_ARTIFACTS": "s3://bucket/rd3"}),
    ],
    ids=["nothing", "empty", "new", "results", "projects", "two levels", "ledger elsewhere"],
)
def test_other_homes_stay_silent(here: Path, capsys: pytest.CaptureFixture[str], folders: list[str], env: dict):
    for folder in folders:
        (here / folder).mkdir(parents=True)
    session(env)
    assert capsys.readouterr().err == ""
