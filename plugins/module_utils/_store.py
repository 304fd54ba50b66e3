# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What outlives a reboot: the policies and settings, and what Docker had when it was last asked.

The intent is stored, never an address that Docker gives. Both files are JSON, for root alone, and are replaced as a
whole: C(policies.json) is C({"version": 1, "settings": {...}, "policies": [...]}) with the options of docker_user_rule;
C(inventory.json) is made by the follower.
"""

from __future__ import annotations

import errno
import json
import os
import typing as t
from contextlib import suppress

DIRECTORY = "/etc/quaywall"
STATE_DIRECTORY = "/var/lib/quaywall"
VERSION = 1

Json = t.Mapping[str, t.Any]


class StoreError(Exception):
    """What could not be stored or read, as one sentence."""


class Stored(t.NamedTuple):
    """The settings and the policies, as options: what is left out is the default."""

    settings: Json
    policies: t.Tuple[Json, ...]


def without_defaults(options: Json, spec: t.Mapping[str, t.Mapping[str, t.Any]]) -> t.Dict[str, t.Any]:
    """The options that say something.

    :param spec: the argument spec that they are of; options that it does not have are left out.
    """
    return {
        name: options[name]
        for name in spec
        if options.get(name) not in (None, []) and options[name] != spec[name].get("default")
    }


class Pending:
    """A document on the disk that is not yet in its place."""

    def __init__(self, path: str, temporary: str) -> None:
        self._path = path
        self._temporary = temporary

    def commit(self) -> None:
        """Put it in its place.

        :raises StoreError: it cannot be; the old one is still there.
        """
        try:
            os.rename(self._temporary, self._path)
            _sync(os.path.dirname(self._path))
        except OSError as error:
            self.discard()
            raise _failed(self._path, error) from error

    def discard(self) -> None:
        with suppress(OSError):
            os.unlink(self._temporary)


class Store:
    """The files of this host.

    :param directory: where the policies are.
    :param state_directory: where the inventory is.
    """

    def __init__(self, directory: str = DIRECTORY, state_directory: str = STATE_DIRECTORY) -> None:
        self.path = os.path.join(directory, "policies.json")
        self._inventory = os.path.join(state_directory, "inventory.json")

    def version(self) -> t.Optional[t.Tuple[int, int, int]]:
        """What differs whenever the policies were stored anew; None if there are none."""
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def exists(self) -> bool:
        return os.path.exists(self.path)

    def read(self) -> t.Optional[Stored]:
        """The stored policies, None if this host has no store.

        :raises StoreError: the file cannot be read, or is none of ours.
        """
        document = _read(self.path)
        if document is None:
            return None
        version = document.get("version")
        if version != VERSION:
            raise StoreError(
                "%s is of version %r, and this is version %d: run the playbook again with the newest collection."
                % (self.path, version, VERSION)
            )
        settings, policies = document.get("settings"), document.get("policies")
        if not isinstance(settings, dict) or not isinstance(policies, list) or not _all_dicts(policies):
            raise StoreError("%s holds no list of policies: run the playbook again, which writes it anew." % self.path)
        return Stored(settings, tuple(policies))

    def prepare(self, stored: Stored) -> t.Optional[Pending]:
        """Write the policies beside the file that is there; None if it says the same.

        :raises StoreError: the disk is full, read-only or broken. Nothing has changed then.
        """
        return _prepare(
            self.path, {"version": VERSION, "settings": dict(stored.settings), "policies": list(stored.policies)}
        )

    def changes(self, stored: t.Optional[Stored]) -> bool:
        """True if this is not what is stored; a store that cannot be read is not."""
        try:
            return self.read() != stored
        except StoreError:
            return True

    def remove(self, dry: bool = False) -> bool:
        """Take both files away, and the directories if nothing else is in them. True if there was one.

        :param dry: only say whether there is one.
        :raises StoreError: one cannot be removed.
        """
        if dry:
            return any(map(os.path.exists, (self.path, self._inventory)))
        found = False
        for path in (self.path, self._inventory):
            try:
                os.unlink(path)
                found = True
            except FileNotFoundError:
                pass
            except OSError as error:
                raise _failed(path, error) from error
            with suppress(OSError):  # somebody keeps something there
                os.rmdir(os.path.dirname(path))
        return found

    def read_inventory(self) -> t.Optional[t.Dict[str, t.Any]]:
        """What Docker had when it was last asked; None if that is not known. Never fails: it is a memory only."""
        try:
            return _read(self._inventory)
        except StoreError:
            return None

    def write_inventory(self, document: Json) -> None:
        """Remember what Docker has.

        :raises StoreError: it cannot be written.
        """
        pending = _prepare(self._inventory, document)
        if pending is not None:
            pending.commit()


def _all_dicts(values: t.Iterable[t.Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _read(path: str) -> t.Optional[t.Dict[str, t.Any]]:
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError("%s cannot be read: %s." % (path, error.strerror)) from error
    except ValueError as error:
        raise StoreError("%s is no JSON (%s): run the playbook again, which writes it anew." % (path, error)) from error
    if not isinstance(document, dict):
        raise StoreError("%s holds no JSON object: run the playbook again, which writes it anew." % path)
    return document


def _prepare(path: str, document: Json) -> t.Optional[Pending]:
    try:
        if _read(path) == document:
            return None
    except StoreError:
        pass  # it is written anew
    # One name: what a killed run left is written over. Whoever stores policies holds the own lock.
    temporary = path + ".new"
    pending = Pending(path, temporary)
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        pending.discard()
        raise _failed(path, error) from error
    return pending


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(path: str, error: OSError) -> StoreError:
    advice = {
        errno.ENOSPC: "make room there, then run again",
        errno.EDQUOT: "make room there, then run again",
        errno.EROFS: "mount it for writing, then run again",
        errno.EACCES: "add become: true to the task or the play",
    }.get(error.errno or 0, "see what is wrong there, then run again")
    return StoreError("%s cannot be written (%s): %s." % (path, (error.strerror or str(error)).lower(), advice))
