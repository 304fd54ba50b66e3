# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is kept on the host's disk: whole or not at all, and a sentence where it cannot be."""

from __future__ import annotations

import errno
import json
import os
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils._store import (
    Pending,
    Store,
    Stored,
    StoreError,
    without_defaults,
)

PORT = {"name": "metrics", "published_port": "9100", "action": "drop"}
STORED = Stored({"guard": False}, (PORT,))


@pytest.fixture
def store(tmp_path: t.Any) -> Store:
    return Store(str(tmp_path / "etc" / "quaywall"), str(tmp_path / "var" / "quaywall"))


def write(store: Store, stored: Stored = STORED) -> None:
    pending = store.prepare(stored)
    assert pending is not None
    pending.commit()


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert text.isprintable()
    assert text.endswith(".")
    return text


def beside(store: Store) -> t.List[str]:
    return os.listdir(os.path.dirname(store.path))


def test_a_host_without_a_store(store: Store) -> None:
    assert not store.exists()
    assert store.read() is None
    assert store.version() is None
    assert store.read_inventory() is None
    assert store.remove(dry=True) is store.remove() is False


def test_what_is_written_is_read_and_is_for_root_alone(store: Store) -> None:
    write(store)
    assert store.read() == STORED
    assert store.exists()
    assert os.stat(store.path).st_mode & 0o7777 == 0o600
    with open(store.path, encoding="utf-8") as file:
        assert json.load(file) == {"version": 1, "settings": {"guard": False}, "policies": [PORT]}
    assert beside(store) == ["policies.json"]


def test_a_mask_of_the_user_opens_nothing(store: Store) -> None:
    old = os.umask(0)
    try:
        write(store)
    finally:
        os.umask(old)
    assert os.stat(store.path).st_mode & 0o7777 == 0o600


def test_nothing_is_written_before_the_commit(store: Store) -> None:
    write(store)
    version = store.version()
    more = Stored({}, (PORT, {**PORT, "name": "other"}))
    pending = store.prepare(more)
    assert pending is not None
    assert store.read() == STORED
    pending.discard()
    assert store.read() == STORED
    assert store.version() == version
    assert beside(store) == ["policies.json"]
    write(store, more)
    assert store.read() == more
    assert store.version() != version


def test_the_same_is_not_written_again(store: Store) -> None:
    write(store)
    assert store.prepare(STORED) is None
    assert not store.changes(STORED)
    assert store.changes(STORED._replace(settings={}))


texts = st.text(st.characters(blacklist_categories=("Cs",)), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, json_values, max_size=4)


@given(settings=objects, policies=st.lists(objects, max_size=3))
def test_any_document_comes_back(tmp_path_factory: t.Any, settings: t.Any, policies: t.Any) -> None:
    store = Store(str(tmp_path_factory.mktemp("store")))
    stored = Stored(settings, tuple(policies))
    write(store, stored)
    assert store.read() == stored
    assert store.prepare(stored) is None


@given(st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_file_is_read_or_gives_a_sentence(tmp_path_factory: t.Any, content: bytes) -> None:
    store = Store(str(tmp_path_factory.mktemp("store")))
    with open(store.path, "wb") as file:
        file.write(content)
    with pytest.raises(StoreError) as caught:
        store.read()
    assert store.path in str(caught.value)
    assert str(caught.value).isprintable()
    assert store.changes(STORED)
    write(store)
    assert store.read() == STORED


def test_a_newer_version_is_told(store: Store) -> None:
    write(store)
    with open(store.path, "w", encoding="utf-8") as file:
        json.dump({"version": 2, "settings": {}, "policies": []}, file)
    with pytest.raises(StoreError, match="version 2"):
        store.read()


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "make room"), (errno.EDQUOT, "make room"), (errno.EROFS, "for writing"), (errno.EIO, "run again")],
)
@pytest.mark.parametrize("call", ["fsync", "makedirs", "open"])
def test_a_disk_that_fails_changes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str, number: int, advice: str
) -> None:
    write(store)

    def fail(*args: t.Any, **options: t.Any) -> t.Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    for attempt in (
        lambda: store.prepare(Stored({}, ())),
        lambda: store.write_inventory({"networks": []}),
    ):
        with pytest.raises(StoreError) as caught:
            attempt()
        assert advice in one_sentence(caught.value)
        assert os.strerror(number).lower() in str(caught.value)
    monkeypatch.undo()
    assert store.read() == STORED
    assert beside(store) == ["policies.json"]


def test_a_commit_that_fails_leaves_the_old_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store)
    pending = store.prepare(Stored({}, ()))
    assert isinstance(pending, Pending)

    def fail(*args: t.Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(StoreError):
        pending.commit()
    monkeypatch.undo()
    assert store.read() == STORED
    assert beside(store) == ["policies.json"]


def test_nobody_is_led_elsewhere_by_a_link(store: Store, tmp_path: t.Any) -> None:
    """A file of that name that was there before: it is not followed."""
    write(store)
    victim = tmp_path / "victim"
    victim.write_text("kept")
    os.symlink(str(victim), store.path + ".new")
    with pytest.raises(StoreError):
        store.prepare(Stored({}, ()))
    assert victim.read_text() == "kept"


def test_a_store_that_may_not_be_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store)
    os.unlink(store.path)
    os.mkdir(store.path)
    with pytest.raises(StoreError, match="cannot be read") as caught:
        store.read()
    one_sentence(caught.value)


def test_the_inventory_is_a_memory_only(store: Store) -> None:
    store.write_inventory({"a": 1})
    store.write_inventory({"a": 1})
    assert store.read_inventory() == {"a": 1}
    path = os.path.join(
        os.path.dirname(os.path.dirname(os.path.dirname(store.path))), "var", "quaywall", "inventory.json"
    )
    assert os.stat(path).st_mode & 0o7777 == 0o600
    with open(path, "w", encoding="utf-8") as file:
        file.write("{")
    assert store.read_inventory() is None


def test_removed_with_its_directories_unless_somebody_keeps_something_there(store: Store) -> None:
    write(store)
    store.write_inventory({})
    kept = os.path.join(os.path.dirname(store.path), "mine")
    with open(kept, "w", encoding="utf-8") as file:
        file.write("x")
    assert store.remove(dry=True) is True
    assert store.read() == STORED
    assert store.remove() is True
    assert beside(store) == ["mine"]
    assert store.remove(dry=True) is store.remove() is False
    os.unlink(kept)
    write(store)
    store.remove()
    assert not os.path.exists(os.path.dirname(store.path))


def test_options_that_say_nothing_are_left_out() -> None:
    spec = {"a": {"default": 1}, "b": {"default": False}, "c": {}, "d": {"default": "x"}}
    given_options = {"a": 1, "b": True, "c": None, "d": "y", "other": 5}
    assert without_defaults(given_options, spec) == {"b": True, "d": "y"}
    assert without_defaults({"a": 0, "c": [], "b": False}, spec) == {"a": 0}
