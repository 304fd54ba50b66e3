# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The kernel's messages about nftables, as linux/netfilter/nf_tables.h has them; the kernel's own: tests/kernel."""

from __future__ import annotations

import errno
import struct
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils._netlink import Listener, writers

NEWTABLE, DELTABLE, NEWCHAIN, DELCHAIN, NEWRULE, DELRULE, NEWSETELEM, NEWGEN = 0, 2, 3, 5, 6, 8, 12, 15
INET, INET6, BRIDGE = 2, 10, 7


def attribute(kind: int, value: bytes) -> bytes:
    data = struct.pack("=HH", 4 + len(value), kind) + value
    return data + b"\0" * (-len(data) % 4)


def message(kind: int, family: int, *attributes: t.Tuple[int, bytes], port: int = 1234, subsystem: int = 10) -> bytes:
    payload = struct.pack("=BBH", family, 0, 0) + b"".join(attribute(*item) for item in attributes)
    return struct.pack("=IHHII", 16 + len(payload), subsystem << 8 | kind, 0, 7, port) + payload


def rule(table: bytes, chain: bytes, kind: int = NEWRULE, family: int = INET, port: int = 1234) -> bytes:
    # The handle (3) and expressions (4) follow the names.
    names = ((1, table + b"\0"), (2, chain + b"\0"))
    return message(kind, family, *names, (3, b"\0" * 8), (4 | 0x8000, b"x" * 40), port=port)


def chain(table: bytes, name: bytes, kind: int = NEWCHAIN) -> bytes:
    return message(kind, INET, (1, table + b"\0"), (2, b"\0" * 8), (3, name + b"\0"))


@pytest.mark.parametrize(
    ("data", "heard"),
    [
        (rule(b"filter", b"DOCKER-USER"), True),
        (rule(b"filter", b"DOCKER-USER", DELRULE, INET6), True),
        (rule(b"filter", b"FORWARD"), True),
        (rule(b"mangle", b"FORWARD"), True),
        (rule(b"mangle", b"POSTROUTING"), True),
        (rule(b"mangle", b"QUAYWALL-GUARD"), True),
        (rule(b"filter", b"QUAYWALL-DEFAULT"), True),
        (chain(b"filter", b"DOCKER-USER", DELCHAIN), True),
        (chain(b"filter", b"DOCKER-USER"), True),
        (message(DELTABLE, INET, (1, b"filter\0")), True),
        (message(NEWTABLE, INET6, (1, b"mangle\0")), True),
        # What Docker writes at each start of a container.
        (rule(b"filter", b"DOCKER"), False),
        (rule(b"nat", b"POSTROUTING"), False),
        (rule(b"filter", b"INPUT"), False),
        (rule(b"filter", b"DOCKER-USER-2"), False),
        (rule(b"filter", b"DOCKER-USER", family=BRIDGE), False),
        (chain(b"nat", b"DOCKER"), False),
        (message(DELTABLE, INET, (1, b"nat\0")), False),
        (message(NEWSETELEM, INET, (1, b"filter\0"), (2, b"FORWARD\0")), False),
        (message(NEWGEN, 0, (1, b"\0\0\0\1")), False),
        (message(NEWRULE, INET, (1, b"filter\0"), (2, b"FORWARD\0"), subsystem=11), False),
        (b"", False),
    ],
)
def test_what_concerns_us(data: bytes, heard: bool) -> None:
    assert writers(data) == ({1234} if heard else set())
    # Among others, as the kernel sends them.
    around = message(NEWGEN, 0, (1, b"\0\0\0\1"), port=5)
    assert writers(around + data + around) == ({1234} if heard else set())


def test_each_writer_is_named() -> None:
    data = (
        rule(b"filter", b"FORWARD", port=10) + rule(b"nat", b"DOCKER", port=11) + rule(b"mangle", b"FORWARD", port=12)
    )
    assert writers(data) == {10, 12}


@pytest.mark.parametrize("cut", range(1, 60))
def test_what_is_cut_off_is_no_error(cut: int) -> None:
    writers(rule(b"filter", b"DOCKER-USER")[:cut])


@given(st.binary(max_size=200))
def test_nonsense_is_no_error(data: bytes) -> None:
    writers(data)
    writers(struct.pack("=IHHII", 16 + len(data), 10 << 8 | NEWRULE, 0, 0, 1) + data)


class Socket:
    def __init__(self, *answers: t.Any) -> None:
        self.answers = list(answers)

    def recv(self, _size: int) -> bytes:
        if not self.answers:
            raise BlockingIOError
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, bytes)
        return answer


def listener(*answers: t.Any) -> Listener:
    made = Listener.__new__(Listener)
    made._socket = Socket(*answers)  # type: ignore[assignment]
    return made


def test_own_changes_are_no_news() -> None:
    ours, theirs = rule(b"filter", b"DOCKER-USER", port=7), rule(b"filter", b"DOCKER-USER", port=8)
    assert not listener().changed([7])
    assert not listener(ours, ours).changed([7])
    assert listener(ours, theirs, ours).changed([7])


def test_all_that_is_there_is_taken() -> None:
    theirs = rule(b"filter", b"DOCKER-USER")
    made = listener(theirs, theirs, theirs)
    assert made.changed([])
    assert not made.changed([])


def test_when_the_kernel_has_more_to_say_than_fits() -> None:
    made = listener(OSError(errno.ENOBUFS, "No buffer space available"), rule(b"nat", b"DOCKER"))
    assert made.changed([])
    assert not made.changed([])


def test_another_error_is_not_hidden() -> None:
    with pytest.raises(OSError, match="Bad"):
        listener(OSError(errno.EBADF, "Bad file descriptor")).changed([])
