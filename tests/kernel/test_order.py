# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the audit says about order, held against the kernel: counters, and the commands of its fixes."""

from __future__ import annotations

import random
import socket
import typing as t
from contextlib import ExitStack

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._cover import Coverage
from ansible_collections.quaywall.docker.plugins.module_utils._audit._order import jump_missing, jump_not_first
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Survey
from ansible_collections.quaywall.docker.plugins.module_utils._chain import parse_dump
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json

from .lab import COMMANDS, FAMILIES, Host, counted, docker_table, listed, load, save, tool

if t.TYPE_CHECKING:
    from collections.abc import Iterator

HERE = "192.0.2.1"
SOURCES = ("10.1.1.1", "10.200.1.1", "198.51.100.1")
PORTS = (80, 500, 2000)

_SOURCES = ("", "", "-s 10.0.0.0/8", "-s 10.0.0.0/9", "-s 10.128.0.0/9", "! -s 10.0.0.0/8", "-s 198.51.100.1/32")
_PORTS = ("", "--dport 80", "--dport 1:1000", "--dport 1001:65535", "! --dport 80")
_STATES = ("", "", "", "-m conntrack --ctstate NEW", "-m conntrack --ctdir ORIGINAL", "-m conntrack --ctdir REPLY")


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Host, Host]]:
    """A host, and a neighbour with several addresses that are routed there."""
    with ExitStack() as stack:
        host, client = (stack.enter_context(Host()) for _turn in range(2))
        host.ip(
            "link add eth0 type veth peer name eth0 netns %s\naddress add %s/24 dev eth0\nlink set eth0 up\n"
            % (client.network, HERE)
        )
        addresses = "".join("address add %s/32 dev eth0\n" % source for source in SOURCES)
        client.ip("address add 192.0.2.9/24 dev eth0\n%slink set eth0 up\n" % addresses)
        host.ip("".join("route add %s/32 dev eth0\n" % source for source in SOURCES))
        yield host, client


def _rule(chance: random.Random, *targets: str) -> str:
    port = chance.choice(_PORTS)
    protocol = chance.choice(("tcp", "udp")) if port else chance.choice(("", "tcp", "udp"))
    words = [chance.choice(_SOURCES), "-p " + protocol if protocol else ""]
    words += ["-m %s %s" % (protocol, port) if port else "", chance.choice(_STATES)]
    return " ".join(word for word in [*words, "-j " + chance.choice(targets)] if word)


def _knock(sources: t.Iterable[str]) -> None:
    """A packet of each kind; whether anything answers does not matter."""
    for source in sources:
        for port in PORTS:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                with socket.socket(socket.AF_INET, kind) as sender:
                    sender.setblocking(False)
                    sender.bind((source, 0))
                    if kind == socket.SOCK_DGRAM:
                        sender.sendto(b"x", (HERE, port))
                    else:
                        sender.connect_ex((HERE, port))


@pytest.mark.parametrize("seed", range(8))
def test_a_rule_that_nothing_is_left_for_counts_no_packet(pair: tuple[Host, Host], variant: str, seed: int) -> None:
    host, client = pair
    chance = random.Random(seed)
    dead = 0
    for _number in range(4):
        main = [_rule(chance, "DROP", "ACCEPT", "RETURN", "LOWER") for _turn in range(7)]
        lower = [_rule(chance, "DROP", "ACCEPT", "RETURN") for _turn in range(4)]
        lines = ["*filter", ":INPUT ACCEPT [0:0]", ":MAIN - [0:0]", ":LOWER - [0:0]", "-A INPUT -j MAIN"]
        lines += ["-A MAIN " + rule for rule in main] + ["-A LOWER " + rule for rule in lower]
        load(host, variant, IPV4, "\n".join([*lines, "COMMIT", ""]))
        client.call(_knock, SOURCES)
        dump = save(host, variant, IPV4, "-c")
        chains = parse_dump(dump.decode()).tables["filter"].chains
        found = Coverage(IPV4, chains, ["MAIN"], ["MAIN", "LOWER"]).dead(lambda rule: True, lambda item: True)
        for item in found:
            packets = counted(dump, item.site.chain)[item.site.position - 1].counters[0]
            assert packets == 0, (item, dump.decode())
            dead += 1
        # The packets came: what is read first has counted all that it matches.
        assert sum(rule.counters[0] for rule in counted(dump, "INPUT")) >= len(SOURCES) * len(PORTS) * 2
        # An end for the other variant's chain, which would be asked, too.
        load(host, variant, IPV4, "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n")
    assert dead > 0


@pytest.mark.parametrize("typed", [True, False], ids=["commands", "tasks"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "forward",
    [
        ["-j DOCKER-FORWARD"],
        ["-j DOCKER-FORWARD", "-j DOCKER-USER"],
        ["-i eth0 -j ACCEPT", "-j DOCKER-USER", "-j DOCKER-FORWARD", "-j DOCKER-USER"],
    ],
    ids=["missing", "last", "twice"],
)
def test_the_fix_puts_the_jump_first(host: Host, variant: str, family: str, forward: list[str], typed: bool) -> None:
    """In the variant that Docker uses, whichever the plain name means."""
    load(host, variant, family, docker_table(["-s 192.0.2.9/32 -j DROP"] if family == IPV4 else [], forward))
    other = "legacy" if variant == "nft" else "nft"
    document: dict[str, t.Any] = {
        "quaywall_snapshot": 1,
        "iptables": {
            # The plain name means the other variant, so that the commands must name theirs.
            "default": {family: other},
            family: {variant: save(host, variant, family).decode()},
        },
        "docker": {
            "version": {"Version": "28.5.2"},
            "info": {},
            "daemon": {},
            "containers": [],
            "networks": [
                {
                    "Name": "bridge",
                    "Id": "0" * 64,
                    "Driver": "bridge",
                    "Options": {"com.docker.network.bridge.name": "docker0"},
                    "IPAM": {"Config": [{"Subnet": "172.17.0.0/16"}, {"Subnet": "fd00:17::/64"}]},
                }
            ],
        },
    }
    # Docker's chain is empty here: so that something gets in behind it, it accepts.
    host.run(tool(family, variant), "-w", "10", "-A", "DOCKER-FORWARD", "-j", "ACCEPT")
    document["iptables"][family][variant] = save(host, variant, family).decode()
    survey = Survey(from_json(document))
    (finding,) = [*jump_missing(survey), *jump_not_first(survey)]
    assert finding.fix is not None
    if typed:
        for line in finding.fix.commands:
            assert "%s-%s" % (COMMANDS[family], variant) in line
            host.run("sh", "-c", line)
    else:
        for task in finding.fix.tasks:
            options = task["ansible.builtin.command"]
            host.run(*options["argv"], data=(options["stdin"] + "\n").encode() if "stdin" in options else b"")
    rules = listed(host, variant, family, "FORWARD").decode().splitlines()
    assert rules[0] == "-A FORWARD -j DOCKER-USER"
    assert rules.count(rules[0]) == 1
    assert len(rules) == len({"-j DOCKER-USER", *forward})
