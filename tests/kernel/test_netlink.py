# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the kernel tells of changes by others, with the real tools of both variants."""

from __future__ import annotations

import select
import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._follower import Processes
from ansible_collections.quaywall.docker.plugins.module_utils._netlink import Listener

from .lab import IPV4, IPV6, NFT, docker_table, load, tool

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from .lab import Host


@pytest.fixture
def listener(host: Host) -> Iterator[Listener]:
    for family in (IPV4, IPV6):
        load(host, NFT, family, docker_table(["-j RETURN"]))
    made = host.call(Listener)
    yield made
    made.close()


def waits(listener: Listener) -> bool:
    """True if there is nothing to hear: the loop sleeps."""
    return not select.select([listener], [], [], 0)[0]


@pytest.mark.parametrize("family", [IPV4, IPV6])
@pytest.mark.parametrize(
    "command",
    [
        "-F DOCKER-USER",
        "-I DOCKER-USER -j ACCEPT",
        "-D DOCKER-USER 1",
        "-R DOCKER-USER 1 -j DROP",
        "-D FORWARD -j DOCKER-USER",
        "-I FORWARD -j ACCEPT",
        "-P FORWARD ACCEPT",
        "-N QUAYWALL-DEFAULT",
        "-t mangle -A FORWARD -j ACCEPT",
        "-t mangle -I POSTROUTING -j ACCEPT",
    ],
)
def test_a_change_by_hand_is_heard(host: Host, listener: Listener, family: str, command: str) -> None:
    assert waits(listener)
    host.run(tool(family, NFT), *command.split())
    assert select.select([listener], [], [], 1)[0]
    assert listener.changed(())
    assert waits(listener)


@pytest.mark.parametrize(
    "command", ["-A DOCKER -j ACCEPT", "-t nat -N DOCKER", "-A INPUT -j ACCEPT", "-t raw -A PREROUTING -j ACCEPT"]
)
def test_other_chains_are_not_ours(host: Host, listener: Listener, command: str) -> None:
    host.run(tool(IPV4, NFT), *command.split())
    assert not listener.changed(())


def test_looking_is_no_change(host: Host, listener: Listener) -> None:
    host.run(tool(IPV4, NFT), "-S", "DOCKER-USER")
    host.run(tool(IPV4, NFT, "save"))
    host.run(tool(IPV4, NFT, "restore"), "--noflush", "--test", data=b"*filter\n-A DOCKER-USER -j DROP\nCOMMIT\n")
    assert waits(listener)


def test_what_nft_takes_away_is_heard(host: Host, listener: Listener) -> None:
    host.run("nft", "flush", "ruleset")
    assert listener.changed(())


def test_own_changes_are_known_by_their_process(host: Host, listener: Listener) -> None:
    processes = Processes()
    program = processes.find(tool(IPV4, NFT, "restore"))
    assert program is not None
    for number in range(3):
        data = b"*filter\n-I DOCKER-USER -p tcp --dport %d -j DROP\nCOMMIT\n" % (number + 1)
        assert host.call(processes.run, [program, "--noflush"], data, {"LC_ALL": "C"}, ())[0] == 0
    assert select.select([listener], [], [], 1)[0]
    assert not listener.changed(processes.own)
    host.run(tool(IPV4, NFT), "-F", "DOCKER-USER")
    assert listener.changed(processes.own)


def test_more_than_the_socket_holds(host: Host, listener: Listener) -> None:
    """20,000 rules in a chain that is none of ours: the kernel says that it could not say everything."""
    listener._socket.setsockopt(1, 33, 4096)
    rules = "".join("-A DOCKER -s 10.%d.%d.0/24 -j DROP\n" % (n // 250, n % 250) for n in range(20000))
    host.run(tool(IPV4, NFT, "restore"), "--noflush", data=b"*filter\n%sCOMMIT\n" % rules.encode())
    assert listener.changed(())
    assert waits(listener)


def test_legacy_tells_nobody(host: Host) -> None:
    """So such hosts are looked at once a second."""
    load(host, "legacy", IPV4, docker_table(["-j RETURN"]))
    listener = host.call(Listener)
    try:
        host.run(tool(IPV4, "legacy"), "-F", "DOCKER-USER")
        assert waits(listener)
    finally:
        listener.close()
