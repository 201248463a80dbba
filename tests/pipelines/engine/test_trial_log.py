"""The log of trials: whole lines from many processes, and what is read from them."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

from pipelines.engine import trial_log
from pipelines.settings import trial_log_path


def _write_many(home: Path, who: int) -> None:
    for number in range(50):
        trial_log.append(home, "start", "set", f"key{who}", attempt=number, padding="x" * 500)


def test_lines_of_several_processes_do_not_mix(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(tmp_path, who)) for who in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines if line]) == 150
    assert [trial_log.attempts(tmp_path, f"key{who}") for who in range(3)] == [50, 50, 50]


def test_done_until_forgotten(tmp_path: Path):
    assert not trial_log.is_done(tmp_path, "k")
    for event, expected in (("start", False), ("done", True), ("start", True), ("forgotten", False), ("done", True)):
        trial_log.append(tmp_path, event, "set", "k")
        trial_log.append(tmp_path, "done", "set", "other")
        assert trial_log.is_done(tmp_path, "k") is expected


def test_a_line_cut_short_is_left_out(tmp_path: Path):
    trial_log.append(tmp_path, "start", "set", "a")
    with open(trial_log_path(tmp_path), "a") as log:
        log.write('{"event": "sta')
    assert [event["key"] for event in trial_log.events(tmp_path)] == ["a"]
    trial_log.append(tmp_path, "start", "set", "b")
    trial_log.append(tmp_path, "done", "set", "b")
    assert [(event["event"], event["key"]) for event in trial_log.events(tmp_path)] == [
        ("start", "a"), ("start", "b"), ("done", "b")
    ]  # fmt: skip


def test_alive_means_this_machine_and_a_process_that_runs(tmp_path: Path):
    trial_log.append(tmp_path, "start", "set", "a")
    (event,) = trial_log.events(tmp_path)
    assert trial_log.alive(event)
    assert not trial_log.alive({**event, "host": "elsewhere"})
    assert not trial_log.alive({**event, "started": "1"}), "a later process with the same ID"
    assert trial_log.alive({name: value for name, value in event.items() if name != "started"}), "older lines"
    child = multiprocessing.get_context("spawn").Process(target=os.getpid)
    child.start()
    child.join()
    assert not trial_log.alive({**event, "pid": child.pid})
