"""What is sent to a cluster, what is refused before anything is sent, and what the head does with it."""

from __future__ import annotations

import base64
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import ray
import yaml
from ray.job_submission import JobStatus
from typer.testing import CliRunner

from pipelines import cli, run_grid
from pipelines.cluster import launcher, submit
from pipelines.commands import jobs
from pipelines.grid.files import load_grid
from pipelines.settings import ADDRESSES, Session, addresses, driver_secrets
from rd3.datasets import dataset_source, register
from rd3.errors import BadValue, DataMissing, RD3Error, StoreError

GRID = "name: mine\nmethods: [random]\ndatasets: [digits, cifar10]\nipc: [1]\nteacher: resnet18\n"


@pytest.fixture
def session(tmp_path: Path) -> Session:
    home = tmp_path / "home"
    return Session(f"sqlite:///{home}/mlflow.db", str(home / "artifacts"), home)


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "a grid.yaml"
    path.write_text(GRID)
    return path


def test_a_working_directory_is_code_and_the_grid_and_runs_alone(tmp_path, session, grid):
    submitted = submit.submission(str(grid), session, {}, {}, [])
    folder = tmp_path / "sent"
    folder.mkdir()
    size = submit.working_directory(folder, submitted)
    assert size == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 3 * 2**20
    assert {path.name for path in folder.iterdir()} == {"rd3", "tracking", "pipelines", "a grid.yaml"}
    assert not list(folder.rglob("__pycache__")) + list(folder.rglob(".*"))
    code = "import pipelines.grid.files as grid; print(grid.__file__); print(grid.load_grid('a grid.yaml').name)"
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}
    said = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert said.stdout.split() == [str(folder / "pipelines" / "grid" / "files.py"), "mine"], said.stderr


def test_a_large_working_directory_is_refused(tmp_path, session, grid, monkeypatch):
    monkeypatch.setattr(submit, "LIMIT_BYTES", 2**18)
    with pytest.raises(StoreError, match=r"be \d\.\d MiB, the limit is 0 MiB; the largest file is \w+/"):
        submit.working_directory(tmp_path / "sent", submit.submission(str(grid), session, {}, {}, []))
    assert not (tmp_path / "sent").exists()


def test_the_command_carries_grid_addresses_and_datasets_with_files(session, grid):
    env = {"RD3_HOME": "~/a home"}
    submitted = submit.submission(str(grid), session, env, {"RD3_ARTIFACTS": "s3://b/p"}, ["--shares", "2"])
    python, module, name, *words = shlex.split(submitted.entrypoint)
    assert (python, module, name, words[0]) == ("python", "-m", "pipelines.run_grid", "a grid.yaml")
    assert words[1:] == [
        "--env", "RD3_ARTIFACTS=s3://b/p", "--env", "RD3_HOME=~/a home", "--pull", "cifar10", "--shares", "2"
    ]  # fmt: skip
    assert submit.submission("demo", session, {}, {}, []).arguments == ["demo"]


@pytest.mark.parametrize("value", ["/data/rd3", "artifacts", "file:///data/rd3", "sqlite:////data/mlflow.db"])
def test_a_path_of_this_machine_does_not_travel(session, grid, value):
    with pytest.raises(BadValue, match=r"RD3_ARTIFACTS is .*, a path on this machine.*--env RD3_ARTIFACTS="):
        submit.submission(str(grid), session, {}, {"RD3_ARTIFACTS": value}, [])
    said = submit.submission(str(grid), session, {"RD3_ARTIFACTS": "/shared"}, {"RD3_ARTIFACTS": value}, [])
    assert said.env == {"RD3_ARTIFACTS": "/shared"}


@pytest.mark.parametrize(
    "value", ["http://localhost:5000", "http://127.0.0.2", "http://[::1]:5000", "https://0.0.0.0", "http://a.localhost"]
)
def test_a_server_on_this_machine_is_sent_to_a_cluster_on_it_alone(session, grid, value):
    set_here = {"MLFLOW_TRACKING_URI": value}
    with pytest.raises(BadValue, match=r"on every node .* means that node itself.*--env MLFLOW_TRACKING_URI="):
        submit.submission(str(grid), session, {}, set_here, [])
    assert submit.submission(str(grid), session, {}, set_here, [], local=True).env == set_here
    assert submit.submission(str(grid), session, set_here, {}, []).env == set_here  # the user knows that it is right


def test_which_clusters_may_be_on_this_machine(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert submit.may_be_local(None) and submit.may_be_local("http://localhost:8265")
    assert not submit.may_be_local("http://[::1")
    assert not submit.may_be_local("https://head.example:8265") and not submit.may_be_local("http://10.0.0.7:8265")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    assert not submit.may_be_local(None) and submit.may_be_local("http://127.0.0.1:8265")


@pytest.mark.parametrize(
    "given", [({"MLFLOW_TRACKING_URI": "http://me:secret@host"}, {}), ({}, {"X": "http://u:secret@h/"})]
)
def test_no_secret_travels(session, grid, given):
    with pytest.raises(BadValue, match="contains a password") as caught:
        submit.submission(str(grid), session, *given, [])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        (
            f"noise\nrd3-probe {platform.python_version()} 2.40.0\n",
            f"Ray 2.40.0, this machine has Ray {ray.__version__}",
        ),
        (f"rd3-probe 3.8.1 {ray.__version__}\n", f"Python 3.8.1, this machine has Python {platform.python_version()}"),
        ("bash: python: command not found\n", "cannot start Python with Ray: 'bash: python: command not"),
        ("", "cannot start Python with Ray: 'no output'"),
    ],
)
def test_other_versions_are_named(printed, message):
    with pytest.raises(RD3Error) as caught:
        submit.check_versions(printed, "The cluster at x")
    assert message in str(caught.value)


def test_a_head_that_tells_another_version_of_ray_gets_no_job(monkeypatch):
    client = Client([], [])
    monkeypatch.setattr(client, "_server_ray_version", "2.40.0", raising=False)
    with pytest.raises(RD3Error, match=rf"at http://x runs Ray 2\.40\.0, this machine has Ray {ray.__version__}"):
        submit.probe(client, "http://x")


TRACEBACK = "Request failed with status code 500: Traceback (most recent call last):\n  File x\n    raise"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{TRACEBACK}\nKeyError: 'token'\n.", "at x refused the request: KeyError: 'token'. Fix: see `rd3 jobs list`"),
        ("Request failed with status code 400: \n.", "at x refused the request: no reason given."),
        ("No such job.\nmore", "at x refused the request: No such job."),
        (
            f"{TRACEBACK}\nRuntimeError: Version mismatch: The cluster was started with:\n    Ray: 2.40.0\n"
            "    Python: 3.11.7\nThis process on node 127.0.0.1 was started with:\n    Ray: 2.60.0\n"
            "    Python: 3.11.8\n.",
            "at x was started with Ray 2.40.0 and Python 3.11.7, and the process there that starts jobs with Ray "
            "2.60.0 and Python 3.11.8. Fix: start the cluster again with one version of both",
        ),
    ],
)
def test_what_the_head_says_is_passed_on(text, said):
    with pytest.raises(RD3Error) as caught, submit.job_errors("x"):
        raise RuntimeError(text)
    assert f"The Ray cluster {said}" in " ".join(str(caught.value).split())


def test_the_probe_is_true_of_this_machine():
    said = subprocess.run([sys.executable, *shlex.split(submit.PROBE)[1:]], capture_output=True, text=True)
    submit.check_versions(said.stdout, "This machine")


def test_no_cluster(session):
    with pytest.raises(BadValue, match=r"must be the URL of the head's dashboard, got '127\.0\.0\.1:6379'"):
        submit.connect("127.0.0.1:6379")


def test_nobody_answers(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with pytest.raises(RD3Error, match=r"No Ray cluster responds at http://127\.0\.0\.1:9 "):
        submit.connect("http://127.0.0.1:9")


class Client:
    """A job whose log comes in pieces over connections that break."""

    def __init__(self, connections: list[list[str]], states: list[str], broken: Exception | None = None):
        self.connections, self.states = connections, states
        self.broken = broken or RuntimeError("the connection broke")
        self.stopped: list[str] = []

    async def tail_job_logs(self, _job: str) -> Any:
        for piece in self.connections.pop(0):
            yield piece
        if self.connections:
            raise self.broken

    def get_job_info(self, _job: str) -> Any:
        from ray.dashboard.modules.job.pydantic_models import JobDetails

        return JobDetails(type="SUBMISSION", status=self.states.pop(0), entrypoint="x", driver_exit_code=3)

    def get_job_logs(self, _job: str) -> str:
        return "".join(self.connections[-1])

    def get_job_status(self, _job: str) -> Any:
        return JobStatus(self.states.pop(0) if len(self.states) > 1 else self.states[0])

    def submit_job(self, **_words: Any) -> str:
        return "rd3-probe-1"

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)


@pytest.mark.parametrize(
    "broken",
    [RuntimeError("x"), ConnectionResetError(), aiohttp.ServerDisconnectedError(), aiohttp.ClientPayloadError()],
)
def test_a_log_goes_on_after_each_way_to_break(monkeypatch, broken):
    monkeypatch.setattr(submit, "_POLL_EVERY_S", 0.0)
    client = Client([["one "], ["one two"]], ["RUNNING", "SUCCEEDED"], broken)
    written: list[str] = []
    assert submit.follow(client, "http://x", "job", written.append) == 0
    assert "".join(written) == "one two"


def test_the_end_of_a_log_is_not_lost_with_the_connection():
    written: list[str] = []
    assert submit.follow(Client([["one "], ["one two"]], ["FAILED"]), "http://x", "job", written.append) == 3
    assert "".join(written) == "one two"


def test_a_reader_that_leaves_ends_the_following():
    """As of `rd3 jobs logs JOB --follow | head`; it went on until the job ended."""

    def closed(_text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        submit.follow(Client([["one "], ["one two"]], ["RUNNING", "SUCCEEDED"]), "http://x", "job", closed)


def test_a_job_that_does_not_stop_is_an_error(monkeypatch):
    monkeypatch.setattr(submit, "_POLL_EVERY_S", 0.0)
    assert submit.stop(Client([], ["RUNNING", "STOPPED"]), "rd3-1") == "stopped"
    monkeypatch.setattr(submit, "STOP_WAIT_S", -submit._KILL_WITHIN_S)
    with pytest.raises(RD3Error, match=r"Job rd3-1 was asked to stop and is still running .*jobs status rd3-1"):
        submit.stop(Client([], ["RUNNING"]), "rd3-1")


def test_a_probe_that_does_not_start_is_stopped(monkeypatch):
    monkeypatch.setattr(submit, "_PROBE_WITHIN_S", 0.0)
    client = Client([], ["PENDING"])
    with pytest.raises(RD3Error, match="did not start a job within 0 s"):
        submit.probe(client, "http://x")
    assert client.stopped == ["rd3-probe-1"]


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 3), ("STOPPED", 130)])
def test_a_log_is_written_once_whatever_breaks(monkeypatch, state, code):
    monkeypatch.setattr(submit, "_POLL_EVERY_S", 0.0)
    client = Client([["one ", "two "], ["on", "e two th"], ["one two three"]], ["RUNNING", "RUNNING", state])
    written: list[str] = []
    assert submit.follow(client, "http://x", "job", written.append) == code
    assert "".join(written) == "one two three"


def test_the_head_runs_what_was_sent(monkeypatch, grid, tmp_path):
    called: list[Any] = []
    monkeypatch.setattr(cli, "main", lambda words: called.append((words, Path(words[1]).read_text())))
    monkeypatch.setattr(run_grid, "pull_missing", called.append)
    for name in ADDRESSES:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("RD3_HOME", str(tmp_path / "home"))
    submitted = submit.Submission("mine", grid.name, grid, ["--shares", "2"], {"RD3_DATA": "/d"}, ["cifar10"])
    done = CliRunner().invoke(run_grid.app, launcher.arguments(submitted))
    assert done.exit_code == 0, done.output
    pulled, (words, text) = called
    assert pulled == ["cifar10"]
    assert (words[0], Path(words[1]).name, words[2:]) == (
        "run", "a grid.yaml", ["--address", "auto", "--shares", "2"]
    )  # fmt: skip
    assert text == GRID
    assert os.environ["RD3_DATA"] == "/d"
    assert Path(words[1]) == tmp_path / "home" / "grids" / "a grid.yaml"


def test_a_demonstration_size_travels_with_the_file_that_states_it(monkeypatch, session, grid, tmp_path):
    grid.write_text(GRID + "also: [{ipc: [2]}]\nsmall: {datasets: [digits], teacher: resnet18_w16}\n")
    submitted = submit.submission(str(grid.with_name("a grid-small.yaml")), session, {}, {}, [])
    assert submitted.pull == []
    (tmp_path / "sent").mkdir()
    submit.working_directory(tmp_path / "sent", submitted)
    monkeypatch.chdir(tmp_path / "sent")
    assert load_grid(submitted.arguments[0]).small and load_grid(submitted.arguments[0]).name == "mine-small"
    ran: list[str] = []
    monkeypatch.setattr(cli, "main", lambda words: ran.append(words[1]))
    for name in ADDRESSES:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("RD3_HOME", str(tmp_path / "there"))
    for words in (submitted.arguments, launcher.arguments(submitted)):
        assert CliRunner().invoke(run_grid.app, words).exit_code == 0
        assert load_grid(ran[-1]).small
    assert Path(ran[1]) == tmp_path / "there" / "grids" / "a grid-small.yaml"


def test_protocols_of_ones_own_travel(monkeypatch, tmp_path):
    """What a sweep has found is tried on a cluster; what lies there under its name already is not replaced."""
    monkeypatch.setattr(cli, "main", lambda words: None)
    for name in ADDRESSES:
        monkeypatch.setenv(name, "")
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "presets").mkdir(parents=True)
    fields = {"epochs": 9, "batch_size": 9, "zeta": 1, "augmentation": ["flip"]}
    text = yaml.safe_dump({"name": "found", "source": "a sweep", "all": fields})
    (here / "presets" / "found.yaml").write_text(text)
    (tmp_path / "mine.yaml").write_text(GRID.replace(", cifar10", "") + "protocols: [rd3, found]\n")
    own = Session(f"sqlite:///{here}/m.db", str(here / "artifacts"), here)
    submitted = submit.submission(str(tmp_path / "mine.yaml"), own, {}, {}, [])
    assert list(submitted.presets) == ["found"]
    (tmp_path / "two.yaml").write_text(GRID + "small: {protocols: [found]}\n")
    assert list(submit.submission(str(tmp_path / "two.yaml"), own, {}, {}, []).presets) == ["found"]
    monkeypatch.setenv("RD3_HOME", str(there))
    for _again in range(2):
        done = CliRunner().invoke(run_grid.app, launcher.arguments(submitted))
        assert done.exit_code == 0, done.output
        assert (there / "presets" / "found.yaml").read_text() == text
    (there / "presets" / "found.yaml").write_text(text + "# mine\n")
    refused = CliRunner().invoke(run_grid.app, launcher.arguments(submitted))
    assert refused.exit_code == 2 and (there / "presets" / "found.yaml").read_text().endswith("# mine\n")


def test_a_dataset_of_ones_own_of_the_other_size_is_pulled(session, grid):
    """The head checks both sizes; of the built-in ones it pulls what runs."""
    info = (
        dataset_source("digits").info.model_copy(update={"name": "mine"}).model_dump(mode="json", exclude={"classes"})
    )
    register("mine", {"test": None, "info": info}, session.home / "data" / "mine", session.roots)
    grid.write_text(GRID + "small: {datasets: [mine], teacher: resnet18_w16}\n")
    assert submit.submission(str(grid), session, {}, {}, []).pull == ["cifar10", "mine"]
    small = submit.submission(str(grid.with_name("a grid-small.yaml")), session, {}, {}, [])
    assert small.pull == ["mine"]


def test_a_node_that_names_no_home_has_one_in_the_users(monkeypatch):
    monkeypatch.setattr(cli, "main", lambda _words: None)
    for name in ADDRESSES:
        monkeypatch.setenv(name, "")
    for _empty_then_unset in range(2):
        assert CliRunner().invoke(run_grid.app, ["demo"]).exit_code == 0
        assert os.environ["RD3_HOME"] == "~/.rd3"
        monkeypatch.delenv("RD3_HOME")


def test_a_grid_file_that_stayed_behind_is_named():
    with pytest.raises(DataMissing, match=r"no grid file mine\.yaml on the cluster node .*rd3 submit mine\.yaml"):
        run_grid.check_here("mine.yaml")
    run_grid.check_here("demo")


def test_only_addresses_are_taken():
    assert addresses(["RD3_DATA=/a=b"]) == {"RD3_DATA": "/a=b"}
    for word, message in [
        ("AWS_SECRET_ACCESS_KEY=x", "got 'AWS_SECRET_ACCESS_KEY'"),
        ("RD3_DATTA=x", "did you mean 'RD3_DATA'"),
        ("RD3_DATA", "write RD3_DATA=VALUE"),
    ]:
        with pytest.raises(BadValue, match=message):
            addresses([word])


def test_the_grid_as_text_survives_a_shell(grid):
    words = launcher.arguments(submit.Submission("mine", grid.name, grid))
    text = words[words.index("--text") + 1]
    assert shlex.quote(text) == text
    assert base64.urlsafe_b64decode(text).decode() == GRID


def test_a_cluster_file_that_is_not_there(tmp_path):
    with pytest.raises(DataMissing, match=r"no cluster file .*none\.yaml"):
        launcher.probe(tmp_path / "none.yaml")


def test_secrets_of_the_driver_are_in_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv("RD3_DRIVER_ENV", raising=False)
    assert driver_secrets() == {}
    path = tmp_path / "driver.env"
    monkeypatch.setenv("RD3_DRIVER_ENV", str(path))
    with pytest.raises(BadValue, match=r"Cannot read .*driver\.env, the file in RD3_DRIVER_ENV: No such file"):
        driver_secrets()
    path.write_bytes(b"\xff=1\n")
    path.chmod(0o600)
    with pytest.raises(BadValue, match="it is not UTF-8 text"):
        driver_secrets()
    path.write_text("AWS_SECRET_ACCESS_KEY\n")
    with pytest.raises(BadValue, match="a line without '='"):
        driver_secrets()
    path.write_text("# of the ledger\nAWS_ACCESS_KEY_ID=a:b\n\nAWS_SECRET_ACCESS_KEY=c=d\n")
    path.chmod(0o640)
    with pytest.raises(BadValue, match=r"Other users can read .*chmod 600"):
        driver_secrets()
    path.chmod(0o600)
    assert driver_secrets() == {"AWS_ACCESS_KEY_ID": "a:b", "AWS_SECRET_ACCESS_KEY": "c=d"}
    for line in (
        "AWS_SECRET_ACCESS_KEY='hidden'",
        "AWS_SECRET_ACCESS_KEY=hidden\t",
        "export AWS_SECRET_ACCESS_KEY=hidden",
    ):
        path.write_text(f"{line}\n")
        with pytest.raises(BadValue, match=r"driver\.env.* beside .*AWS_SECRET_ACCESS_KEY\.") as refused:
            driver_secrets()
        assert "hidden" not in str(refused.value)


class Jobs(Client):
    """The jobs of a shared cluster: one of RD3 and one of somebody else."""

    def __init__(self) -> None:
        super().__init__([["the log"]], ["STOPPED"])

    def get_address(self) -> str:
        return "http://head:8265"

    def list_jobs(self) -> list[Any]:
        from ray.dashboard.modules.job.pydantic_models import JobDetails

        named: dict[str, dict[str, str]] = {"rd3-mine-01": {"rd3.grid": "mine"}, "r-theirs": {}}
        return [
            JobDetails(type="SUBMISSION", status="RUNNING", entrypoint="x", submission_id=name, metadata=metadata)
            for name, metadata in named.items()
        ]


@pytest.mark.parametrize(
    ("word", "stopped"), [("r", "rd3-mine-01"), ("r-", None), ("r-theirs", "r-theirs"), ("rd3-mine-01", "rd3-mine-01")]
)
def test_only_its_whole_id_stops_a_job_of_somebody_else(monkeypatch, word, stopped):
    client = Jobs()
    monkeypatch.setattr(submit, "connect", lambda _address: client)
    done = CliRunner().invoke(cli.app, ["jobs", "stop", word])
    assert client.stopped == ([stopped] if stopped else [])
    assert (done.exception is None) == (stopped is not None)


def test_a_reader_that_leaves_is_not_a_cluster_that_is_away(monkeypatch):
    """As of `rd3 jobs logs JOB | head`."""

    def closed(_text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(submit, "connect", lambda _address: Jobs())
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=closed))
    with pytest.raises(BrokenPipeError):
        jobs.logs("rd3-mine-01")


@pytest.mark.parametrize("words", [["--address", "http://head:8265"], ["--no-wait"]])
def test_options_of_the_jobs_api_are_refused_with_a_launcher(grid, tmp_path, words):
    done = CliRunner().invoke(cli.app, ["submit", str(grid), "--launcher", str(tmp_path / "aws.yaml"), *words])
    assert isinstance(done.exception, BadValue)
    assert words[0] in str(done.exception)
