# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the kernel holds on each host, and what its packets do."""

from __future__ import annotations

import typing as t

import pytest
import testinfra

testinfra_hosts = ["ansible://dockers"]

OFFICE = "203.0.113.10"
STRANGER = "198.51.100.66"
OFFICE6 = "2001:db8:113::10"
STRANGER6 = "2001:db8:100::66"

_CONNECT = """
import socket, sys
source, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.socket(family, socket.SOCK_STREAM) as connection:
    connection.settimeout(0.6)
    if source:
        connection.bind((source, 0))
    try:
        connection.connect((address, port))
        connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        print("open" if connection.recv(64) else "closed")
    except TimeoutError:
        print("timeout")
    except OSError as error:
        print("refused" if isinstance(error, ConnectionRefusedError) else "unreachable")
"""


@pytest.fixture(scope="module")
def client(request: pytest.FixtureRequest) -> t.Any:
    inventory = request.config.getoption("ansible_inventory")
    return testinfra.get_hosts(["ansible://clients"], ansible_inventory=inventory)[0]


def _from_client(client: t.Any, source: str, address: str, port: int) -> str:
    return str(client.check_output("python3 -c %s %s %s %s", _CONNECT, source, address, str(port)))


def _lab_address(host: t.Any, version: int = 4) -> str:
    out = host.check_output("ip -%s -o address show dev eth0 scope global" % version)
    return str(out.split()[3].partition("/")[0])


def _chain(host: t.Any, command: str = "iptables") -> list[str]:
    return str(host.check_output("%s -S DOCKER-USER" % command)).splitlines()[1:]


def _container_address(host: t.Any, name: str, version: int = 4) -> str:
    key = "IPAddress" if version == 4 else "GlobalIPv6Address"
    return str(
        host.check_output("docker inspect -f '{{range .NetworkSettings.Networks}}{{.%s}}{{end}}' %s" % (key, name))
    )


def test_baseline_is_in_order(host: t.Any) -> None:
    rules = _chain(host)
    assert '"quaywall: established"' in rules[0]
    assert "-A DOCKER-USER -j RETURN" in rules
    assert all("quaywall" not in rule for rule in rules[rules.index("-A DOCKER-USER -j RETURN") :])


def test_rules_of_other_tools_are_there_once_and_in_their_order(host: t.Any) -> None:
    foreign = [rule for rule in _chain(host) if "another tool" in rule]
    assert [rule.partition("by another tool")[0].split('"')[1].strip() for rule in foreign] == [
        "opened",
        "banned",
        "appended",
    ]


def test_nothing_that_allows_is_read_before_the_policies(host: t.Any) -> None:
    rules = _chain(host)
    opened = next(index for index, rule in enumerate(rules) if "opened by another tool" in rule)
    assert max(index for index, rule in enumerate(rules) if '"quaywall:' in rule) < opened


@pytest.mark.parametrize(
    ("source", "port", "expected"),
    [
        (OFFICE, 9000, "open"),
        (STRANGER, 9000, "timeout"),
        (OFFICE, 8080, "open"),
        (STRANGER, 8080, "open"),
        (OFFICE, 9100, "open"),
        (STRANGER, 9100, "refused"),
    ],
)
def test_who_gets_in_on_ipv4(host: t.Any, client: t.Any, source: str, port: int, expected: str) -> None:
    assert _from_client(client, source, _lab_address(host), port) == expected


@pytest.mark.parametrize(("source", "allowed"), [(OFFICE6, True), (STRANGER6, False)])
def test_who_gets_in_on_ipv6(host: t.Any, client: t.Any, source: str, allowed: bool) -> None:
    """By the container's own address where the engine lets it (up to 26), by the host's port where it does DNAT."""
    rules = _chain(host, "ip6tables")
    assert any('"quaywall:dual priority 400"' in rule for rule in rules)
    if "DOCKER-FORWARD" in host.check_output("ip6tables -S FORWARD"):
        outcome = _from_client(client, source, _lab_address(host, 6), 9100)
    else:
        address = _container_address(host, "dual", 6)
        host.check_output("sysctl -w net.ipv6.conf.all.forwarding=1")
        client.check_output("ip -6 route replace %s via %s", address, _lab_address(host, 6))
        outcome = _from_client(client, source, address, 8080)
        client.check_output("ip -6 route del %s", address)
    assert (outcome == "open") is allowed


@pytest.mark.parametrize("name", ["admin", "shop"])
def test_neighbours_on_the_same_network_connect(host: t.Any, name: str) -> None:
    address = _container_address(host, name)
    pid = host.check_output("docker inspect -f '{{.State.Pid}}' neighbour")
    out = host.check_output("nsenter --net --target %s python3 -c %s '' %s 8080", pid, _CONNECT, address)
    assert out == "open"


def test_outgoing_connections_to_the_same_port_number_work(host: t.Any) -> None:
    pid = host.check_output("docker inspect -f '{{.State.Pid}}' admin")
    gateway = host.check_output("ip -4 route show default").split()[2]
    for port in (8080, 9000):
        # Nobody listens on the lab's gateway: a refusal is an answer, which a dropped reply would not be.
        out = host.check_output("nsenter --net --target %s python3 -c %s '' %s %s", pid, _CONNECT, gateway, str(port))
        assert out == "refused"
