# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's bridges, from what a kernel's /proc/net/route and ipv6_route hold (x86: least byte first)."""

from __future__ import annotations

import ipaddress
import sys
import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils import _host
from ansible_collections.quaywall.docker.plugins.module_utils._policy import BridgeRoute

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


def number(address: str) -> str:
    """An address as this machine's kernel prints it."""
    return "%08X" % int.from_bytes(ipaddress.IPv4Address(address).packed, sys.byteorder)


def route(interface: str, destination: str, gateway: str, mask: str) -> str:
    return "%s\t%s\t%s\t0001\t0\t0\t0\t%s\t0\t0\t0\n" % (
        interface,
        number(destination),
        number(gateway),
        number(mask),
    )


IPV4_ROUTES = (
    HEAD
    + route("eth0", "0.0.0.0", "192.0.2.1", "0.0.0.0")
    + route("eth0", "192.0.2.0", "0.0.0.0", "255.255.255.0")
    + route("docker0", "172.17.0.0", "0.0.0.0", "255.255.0.0")
    + route("docker0", "172.17.0.0", "0.0.0.0", "255.255.0.0")
    + route("br-1", "172.30.0.0", "0.0.0.0", "255.255.255.0")
    + route("br-1", "10.50.0.0", "172.30.0.9", "255.255.0.0")
    + route("br-1", "169.254.0.0", "0.0.0.0", "255.255.0.0")
    + route("br-1", "172.30.0.7", "0.0.0.0", "255.255.255.255")
    + route("br-1", "0.0.0.0", "0.0.0.0", "0.0.0.0")
)

ANY = "0" * 32
IPV6_ROUTES = "".join(
    "%s %02x %s 00 %s 00000100 00000001 00000000 00000001 %8s\n" % (destination, length, ANY, gateway, interface)
    for destination, length, gateway, interface in [
        ("fd000031000000000000000000000000", 64, ANY, "br-1"),
        ("fe800000000000000000000000000000", 64, ANY, "br-1"),
        ("ff000000000000000000000000000000", 8, ANY, "br-1"),
        ("fd000031000000000000000000000002", 128, ANY, "br-1"),
        ("fd000099000000000000000000000000", 64, "fd000031000000000000000000000009", "br-1"),
        (ANY, 0, ANY, "br-1"),
        ("20010db8000000000000000000000000", 32, ANY, "eth0"),
    ]
)


@pytest.mark.skipif(sys.byteorder != "little", reason="the sample is a little-endian machine's: run this on x86 or ARM")
def test_a_real_route_of_an_x86_machine() -> None:
    text = HEAD + "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    text += "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
    assert _host.parse_ipv4_routes(text) == [(ipaddress.IPv4Network("172.17.0.0/16"), "docker0")]


def test_connected_networks_only() -> None:
    found = _host.parse_ipv4_routes(IPV4_ROUTES)
    assert (ipaddress.IPv4Network("172.17.0.0/16"), "docker0") in found
    assert (ipaddress.IPv4Network("10.50.0.0/16"), "br-1") not in found
    six = _host.parse_ipv6_routes(IPV6_ROUTES)
    assert (ipaddress.IPv6Network("fd00:31::/64"), "br-1") in six
    assert (ipaddress.IPv6Network("fd00:99::/64"), "br-1") not in six


@pytest.mark.parametrize("text", ["", "\n", HEAD, HEAD + "docker0\t000011AC\n"])
def test_tables_that_say_nothing(text: str) -> None:
    assert _host.parse_ipv4_routes(text) == []
    assert _host.parse_ipv6_routes(text) == []


def test_bridge_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"route": IPV4_ROUTES, "ipv6_route": IPV6_ROUTES}
    asked: t.List[str] = []

    def isdir(path: str) -> bool:
        asked.append(path)
        return path in ("/sys/class/net/docker0/bridge", "/sys/class/net/br-1/bridge")

    monkeypatch.setattr(_host, "_read", texts.__getitem__)
    monkeypatch.setattr(_host.os.path, "isdir", isdir)
    assert _host.bridge_routes() == [
        BridgeRoute(ipaddress.ip_network("172.17.0.0/16"), "docker0"),
        BridgeRoute(ipaddress.ip_network("172.30.0.0/24"), "br-1"),
        BridgeRoute(ipaddress.ip_network("fd00:31::/64"), "br-1"),
    ]
    assert all(path.startswith("/sys/class/net/") for path in asked)


def test_a_host_without_ipv6(monkeypatch: pytest.MonkeyPatch, tmp_path: t.Any) -> None:
    """/proc/net/ipv6_route is not there with ipv6.disable=1."""
    (tmp_path / "route").write_text(IPV4_ROUTES)
    monkeypatch.setattr(_host, "_NET", str(tmp_path))
    monkeypatch.setattr(_host.os.path, "isdir", lambda path: True)
    assert {str(found.network) for found in _host.bridge_routes()} == {
        "192.0.2.0/24",
        "172.17.0.0/16",
        "172.30.0.0/24",
    }
