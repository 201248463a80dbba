"""Where studies are kept, and what is refused."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.sweep.storage import _other_version, open_storage
from rd3.errors import BadValue, StoreError, StoreUnavailable


def test_a_database_by_its_url(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path / 'studies.db'}", "", tmp_path / "unused")
    assert storage.get_all_studies() == []
    assert not (tmp_path / "unused").exists()


def test_the_tracking_database_has_to_be_postgresql(tmp_path):
    with pytest.raises(BadValue, match=r"The tracking server is sqlite:///x\.db, which is not a PostgreSQL database"):
        open_storage("tracking", "sqlite:///x.db", tmp_path)


def test_the_old_name_of_postgresql_is_refused_with_the_new_one(tmp_path):
    """SQLAlchemy has no dialect of that name."""
    with pytest.raises(BadValue, match=r"Invalid --storage postgres://host/x\. Fix: write postgresql\+psycopg2://"):
        open_storage("postgres://me@host/x", "", tmp_path)


def test_no_password_on_the_command_line_and_none_in_the_message(tmp_path):
    with pytest.raises(BadValue, match="PGPASSWORD") as caught:
        open_storage("postgresql+psycopg2://me:hush@127.0.0.1/x", "", tmp_path)
    assert "hush" not in str(caught.value)


def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path):
    with pytest.raises(StoreError, match="Cannot store the studies at postgresql") as caught:
        open_storage("tracking", "postgresql+psycopg2://me:hush@127.0.0.1:1/x", tmp_path)
    assert "hush" not in str(caught.value)


def test_a_port_that_is_no_number(tmp_path):
    with pytest.raises(StoreError, match=r"Cannot store the studies at postgresql.*'PORT'.*check the address"):
        open_storage("postgresql+psycopg2://host:PORT/x", "", tmp_path)


def test_a_locked_database_is_blamed_on_the_process_that_holds_it(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match=r"studies \S+x\.db is locked by another.*`fuser \S+x\.db` shows it"):
            open_storage(f"sqlite:///{tmp_path / 'x.db'}", "", tmp_path)


def test_a_file_that_is_no_database_is_blamed_on_the_option(tmp_path):
    (tmp_path / "x.db").write_text("of something else\n" * 100)
    with pytest.raises(StoreError, match=r"studies \S+x\.db: file is not a database.*give another --storage"):
        open_storage(f"sqlite:///{tmp_path / 'x.db'}", "", tmp_path)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(BadValue, match=r"The folder \S+new of --storage \S+ does not exist\. Fix: mkdir -p"):
        open_storage(f"sqlite:///{tmp_path / 'new' / 'x.db'}", "", tmp_path)


def test_a_word_that_is_no_place(tmp_path):
    with pytest.raises(BadValue, match=r"Invalid --storage jornal\. Fix: use journal, tracking or a database URL"):
        open_storage("jornal", "", tmp_path)
    with pytest.raises(BadValue, match=r"Invalid --storage postgresql://\[::1\."):
        open_storage("postgresql://me:hush@[::1", "", tmp_path)


def test_tables_of_an_older_optuna_and_the_command(tmp_path):
    """The command is run as it is printed."""
    path = tmp_path / "my studies.db"
    url = f"sqlite:///{path}"
    open_storage(url, "", tmp_path)
    set_revision(path, "v3.0.0.d")
    with pytest.raises(StoreError, match=r"were made by Optuna \S+, installed is \S+\. Fix: back them up") as caught:
        open_storage(url, "", tmp_path)
    command = caught.value.fix.partition("then run: ")[2]
    shell = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, shell=True, check=True, env=shell, capture_output=True)
    assert open_storage(url, "", tmp_path).get_all_studies() == []


def test_tables_of_a_newer_optuna(tmp_path):
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    open_storage(url, "", tmp_path)
    set_revision(tmp_path / "studies.db", "v99.0.0.a")
    with pytest.raises(StoreError, match="Fix: install that version: pip install --upgrade optuna"):
        open_storage(url, "", tmp_path)


def test_the_command_for_postgresql_names_the_schema_of_its_tables():
    text = "no longer compatible with the table schema (set up by optuna 3.0). Please execute `optuna storage upgrade`"
    error = _other_version("postgresql://db/x", text)
    assert "PGOPTIONS=-csearch_path=rd3_optuna optuna storage upgrade --storage postgresql://db/x" in error.fix
    assert "made by Optuna 3.0," in error.message


def set_revision(path, revision):
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
    connection.commit()
    connection.close()
