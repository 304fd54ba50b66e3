# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What others change in nftables, heard from the kernel as it happens.

A plain netlink socket in the group NFNLGRP_NFTABLES. The kernel loads nf_tables for whoever opens it, so it is not for
hosts whose rules are legacy ones: of those and of ipsets the kernel tells nobody.
"""

from __future__ import annotations

import errno
import socket
import struct
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER, FORWARD

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES = 7
_NFNL_SUBSYS_NFTABLES = 10
_SO_RCVBUFFORCE = 33
_HEADER = struct.Struct("=IHHII")
_NFGENMSG = 4
_ATTRIBUTE = struct.Struct("=HH")
_TABLES = (0, 2)  # NEWTABLE, DELTABLE
_CHAINS = (3, 5)  # NEWCHAIN, DELCHAIN
_RULES = (6, 8)  # NEWRULE, DELRULE
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
#: Which attribute of a message holds the name of the chain; that of the table is always the first.
_CHAIN_NAMES = {**dict.fromkeys(_CHAINS, 3), **dict.fromkeys(_RULES, 2)}

#: Where our rules and jumps are. Docker writes to its own chains at each start of a container: that is not for us.
WATCHED = {
    "filter": frozenset((FORWARD, DOCKER_USER)),
    "mangle": frozenset((FORWARD, "POSTROUTING")),
}
OWN_CHAINS = "QUAYWALL-"

_BUFFER = 1 << 20


def _attributes(data: bytes) -> t.Iterator[t.Tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3


def _concerns_us(message: int, payload: bytes) -> bool:
    if message not in _TABLES and message not in _CHAIN_NAMES:
        return False
    if len(payload) < _NFGENMSG or payload[0] not in _FAMILIES:
        return False
    names: t.Dict[int, str] = {}
    for kind, value in _attributes(payload[_NFGENMSG:]):
        if kind <= 3:
            names.setdefault(kind, value.rstrip(b"\0").decode("utf-8", "replace"))
    table = names.get(1, "")
    if table not in WATCHED:
        return False
    if message in _TABLES:
        return True
    chain = names.get(_CHAIN_NAMES[message], "")
    return chain in WATCHED[table] or chain.startswith(OWN_CHAINS)


def writers(data: bytes) -> t.Set[int]:
    """Who changed what concerns us, by the messages of one datagram: port IDs, which are process IDs as a rule."""
    found: t.Set[int] = set()
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, _flags, _sequence, port = _HEADER.unpack_from(data, at)
        if size < _HEADER.size:
            break
        if kind >> 8 == _NFNL_SUBSYS_NFTABLES and _concerns_us(kind & 0xFF, data[at + _HEADER.size : at + size]):
            found.add(port)
        at += (size + 3) & ~3
    return found


class Listener:
    """Hears the changes of the network namespace that it is made in.

    :raises OSError: the kernel has no nf_tables, or we may not listen.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        try:
            self._socket.setblocking(False)
            for option in (_SO_RCVBUFFORCE, socket.SO_RCVBUF):
                try:
                    self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
                    break
                except OSError:
                    continue
            self._socket.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def changed(self, own: t.Container[int]) -> bool:
        """Take all messages that are there: True if somebody else changed what concerns us, or may have.

        :param own: port IDs that are ours.
        """
        found = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True  # the kernel had more to say than the socket holds: look what it was
                continue
            found = found or any(port not in own for port in writers(data))

    def close(self) -> None:
        self._socket.close()
