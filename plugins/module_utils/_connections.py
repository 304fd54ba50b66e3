# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Connections that are open when a policy closes the door: the only code that runs C(conntrack).

The chain lets in what belongs to a connection (ESTABLISHED comes first), so a new deny stops new connections only.
Which of the old ones it would have stopped is found by a walk with their first packet (:func:`denied`, pure).
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import Intervals, join, of_network
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import Finder, FirewallError, Runner
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6
from ansible_collections.quaywall.docker.plugins.module_utils._walk import ANY_PORT, PEER, SOURCE, Flow, Program

_PROTOCOLS = frozenset(("tcp", "udp", "sctp"))
#: What an interface is called that no rule names.
UNKNOWN = "unknown"

Network = t.Any  # ipaddress.IPv4Network or IPv6Network


class Connection(t.NamedTuple):
    """A connection as conntrack has it: where its first packet went, and who answers it (behind a DNAT the container)."""

    family: str
    protocol: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    reply_source: str
    reply_source_port: int


def parse(text: str, family: str) -> t.List[Connection]:
    """What C(conntrack -L -f FAMILY) printed, as far as it has ports."""
    raise NotImplementedError


class Connections:
    """The kernel's connections.

    :param run: runs a command.
    :param find: finds a program.
    """

    def __init__(self, run: Runner, find: Finder) -> None:
        self._run = run
        self._find = find

    def listed(self, family: str) -> t.List[Connection]:
        """The connections of a family by TCP, UDP and SCTP.

        :raises FirewallError: conntrack is missing or cannot list them.
        """
        raise NotImplementedError

    def drop(self, connections: t.Iterable[Connection]) -> int:
        """Make the kernel forget connections; one that has gone meanwhile is no error.

        :returns: how many it forgot.
        :raises FirewallError: conntrack is missing or refuses.
        """
        raise NotImplementedError


def local_addresses(root: str = "") -> t.FrozenSet[str]:
    """The host's own addresses of both families, from /proc, as conntrack prints them."""
    raise NotImplementedError


def denied(
    connections: t.Iterable[Connection],
    program: Program,
    routes: t.Iterable[t.Tuple[Network, str]],
    local: t.Collection[str] = (),
) -> t.List[Connection]:
    """The connections into containers that the chain DOCKER-USER certainly denies when they are made now.

    :param program: the filter table of the family, with the contents of the sets that its rules use.
    :param routes: networks and their interfaces (:func:`_host.bridge_routes`); a connection goes into a container if
        one of them holds the address that answers. Whose source none holds comes from an interface that is not known:
        then it is denied only if it is so for each one that the rules name.
    :param local: the host's own addresses: what comes from there or goes there is not read by DOCKER-USER.
    """
    raise NotImplementedError
