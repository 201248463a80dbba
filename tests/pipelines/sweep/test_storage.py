"""Where studies are kept, and what is refused."""

from __future__ import annotations

import pytest

from pipelines.sweep.storage import open_storage
from rd3.errors import BadValue, StoreError


def test_a_database_by_its_url(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path / 'studies.db'}", "", tmp_path / "unused")
    assert storage.get_all_studies() == []
    assert not (tmp_path / "unused").exists()


def test_the_tracking_database_has_to_be_postgresql(tmp_path):
    with pytest.raises(BadValue, match=r"The tracking server is sqlite:///x\.db, which is not a PostgreSQL database"):
        open_storage("tracking", "sqlite:///x.db", tmp_path)


def test_no_password_on_the_command_line_and_none_in_the_message(tmp_path):
    with pytest.raises(BadValue, match="PGPASSWORD") as caught:
        open_storage("postgresql+psycopg2://me:hush@127.0.0.1/x", "", tmp_path)
    assert "hush" not in str(caught.value)


def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path):
    with pytest.raises(StoreError, match="Cannot store the studies at postgresql") as caught:
        open_storage("tracking", "postgresql+psycopg2://me:hush@127.0.0.1:1/x", tmp_path)
    assert "hush" not in str(caught.value)


def test_a_word_that_is_no_place(tmp_path):
    with pytest.raises(BadValue, match=r"Invalid --storage jornal\. Fix: use journal, tracking or a database URL"):
        open_storage("jornal", "", tmp_path)
