# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What becomes of a packet in a table of the kernel in memory: the few matches that rules of ours use.

Written from iptables-extensions(8), and not from the code under test.
"""

from __future__ import annotations

import ipaddress
import shlex
import typing as t

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.tests.unit.support import Kernel


class Packet(t.NamedTuple):
    """``published`` are address and port before DNAT, none if the packet came to the container's own address."""

    source: str
    destination: str
    incoming: str
    outgoing: str
    protocol: str = "tcp"
    port: int = 0
    state: str = "NEW"
    published: t.Optional[t.Tuple[str, int]] = None
    mark: int = 0


Sets = t.Mapping[str, t.Iterable[str]]


def _inside(address: str, network: str) -> bool:
    return ipaddress.ip_address(address) in t.cast(t.Any, ipaddress.ip_network(network))


def _interface(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


def _ports(port: int, texts: str) -> bool:
    pairs = [text.partition(":")[::2] for text in texts.split(",")]
    return any(int(low) <= port <= int(high or low) for low, high in pairs)


def _match(option: str, value: str, packet: Packet, sets: Sets) -> bool:
    if option == "-s":
        return _inside(packet.source, value)
    if option == "-d":
        return _inside(packet.destination, value)
    if option == "-i":
        return _interface(packet.incoming, value)
    if option == "-o":
        return _interface(packet.outgoing, value)
    if option == "-p":
        return packet.protocol == value
    if option in ("--dport", "--dports"):
        return _ports(packet.port, value)
    if option == "--ctstate":
        return packet.state in value.split(",") or ("DNAT" in value.split(",") and packet.published is not None)
    if option == "--ctorigdst":
        return _inside((packet.published or (packet.destination, 0))[0], value)
    if option == "--ctorigdstport":
        return _ports((packet.published or ("", packet.port))[1], value)
    if option == "--ctdir":
        return (packet.state != "ESTABLISHED") == (value == "ORIGINAL")
    if option == "--match-set":
        return any(_inside(packet.source, network) for network in sets[value])
    if option == "--mark":
        return packet.mark == int(value, 16)
    raise AssertionError(option)


#: Options that decide nothing here, with the words that follow them.
_NOTHING = {"-m": 1, "--comment": 1, "--limit": 1, "--reject-with": 1, "--log-prefix": 1, "--log-level": 1}


class Fate(t.NamedTuple):
    """What a chain decided, None if it came to its end; the packet's mark then, and how often LOG was read."""

    verdict: t.Optional[str]
    mark: int
    logged: int


def judge(kernel: Kernel, chain: str, packet: Packet, sets: Sets) -> Fate:
    """Lead a packet through a chain."""
    logged = 0
    for text in kernel.texts(chain):
        words = shlex.split(text)
        matched, index = True, 0
        jump, goto, new_mark = "", "", packet.mark
        while index < len(words):
            negated = words[index] == "!"
            index += negated
            option, value = words[index], words[index + 1]
            index += 2
            if option == "-j":
                jump = value
            elif option == "-g":
                goto = value
            elif option == "--set-xmark":
                assert value.endswith("/0xffffffff")
                new_mark = int(value.partition("/")[0], 16)
            elif option not in _NOTHING:
                matched = matched and _match(option, value, packet, sets) != negated
                index += option == "--match-set"
        if not matched:
            continue
        if jump in ("ACCEPT", "DROP", "REJECT"):
            return Fate(jump, packet.mark, logged)
        if jump == "RETURN":
            return Fate(None, packet.mark, logged)
        if jump == "LOG":
            logged += 1
        elif jump == "MARK":
            packet = packet._replace(mark=new_mark)
        elif jump or goto:
            inner = judge(kernel, jump or goto, packet, sets)
            packet, logged = packet._replace(mark=inner.mark), logged + inner.logged
            if inner.verdict is not None or goto:
                return inner._replace(logged=logged)
    return Fate(None, packet.mark, logged)
