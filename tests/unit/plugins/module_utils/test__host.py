# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's bridges, sockets and settings, from what a kernel's /proc and /sys hold (x86: least byte first)."""

from __future__ import annotations

import gzip
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


# Modules, sockets, settings, processes ------------------------------------------------------------------------------


def host(root: t.Any, files: t.Mapping[str, t.Union[str, bytes]]) -> str:
    """A host's files below a folder."""
    for path, content in files.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(root)


RELEASE = _host.os.uname().release


@pytest.mark.parametrize(
    ("files", "loaded"),
    [
        ({"/proc/modules": "nf_tables 1 1 - Live\n", "/sys/module/nf_tables/refcnt": "1\n"}, True),
        ({"/proc/modules": ""}, False),
        ({"/proc/version": "a kernel without modules\n"}, True),
        ({"/proc/modules": "", "/proc/sys/kernel/modules_disabled": "1\n"}, True),
        ({"/proc/modules": "", "/proc/sys/kernel/modules_disabled": "0\n"}, False),
        ({"/proc/modules": "", "/proc/config.gz": gzip.compress(b"CONFIG_A=m\nCONFIG_NF_TABLES=y\n")}, True),
        ({"/proc/modules": "", "/proc/config.gz": gzip.compress(b"CONFIG_A=m\nCONFIG_NF_TABLES=m\n")}, False),
        ({"/proc/modules": "", "/proc/config.gz": b"nonsense"}, False),
        ({"/proc/modules": "", "/boot/config-" + RELEASE: "# x\nCONFIG_NF_TABLES=y\n"}, True),
        ({"/proc/modules": "", "/boot/config-" + RELEASE: "# CONFIG_NF_TABLES is not set\n"}, False),
        (
            {
                "/proc/modules": "",
                "/lib/modules/%s/modules.builtin" % RELEASE: "kernel/net/netfilter/nf_tables.ko\n",
            },
            True,
        ),
    ],
)
def test_whether_asking_for_nftables_loads_it(
    tmp_path: t.Any, files: t.Mapping[str, t.Union[str, bytes]], loaded: bool
) -> None:
    assert _host.nf_tables_is_loaded(host(tmp_path, files)) is loaded


SOCKETS = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def socket_line(local: str, state: str, remote: str = "00000000:0000") -> str:
    return "   0: %s %s %s 00000000:00000000 00:00000000 00000000     0        0 12345 1\n" % (local, remote, state)


def endpoint(address: str, port: int) -> str:
    packed = ipaddress.ip_address(address).packed
    words = [packed[start : start + 4] for start in range(0, len(packed), 4)]
    return "".join("%08X" % int.from_bytes(word, sys.byteorder) for word in words) + ":%04X" % port


def test_sockets_that_wait() -> None:
    lines = [
        SOCKETS,
        socket_line(endpoint("0.0.0.0", 22), "0A"),
        socket_line(endpoint("127.0.0.1", 80), "03", endpoint("10.0.0.1", 5)),
        socket_line(endpoint("127.0.0.1", 8080), "0A"),
        socket_line(endpoint("0.0.0.0", 22), "0A"),
        socket_line(endpoint("10.0.0.1", 22), "01", endpoint("10.0.0.2", 5000)),
        "never read: connections come after all that listen",
    ]
    assert _host.parse_sockets(lines, "tcp") == [("0.0.0.0", 22), ("127.0.0.1", 8080)]
    lines = [
        SOCKETS,
        socket_line(endpoint("127.0.0.1", 5000), "01", endpoint("127.0.0.1", 53)),
        socket_line(endpoint("fd00:31::1", 53), "07", endpoint("::", 0)),
        "",
    ]
    assert _host.parse_sockets(lines, "udp") == [("fd00:31::1", 53)]


@pytest.mark.skipif(sys.byteorder != "little", reason="the sample is a little-endian machine's: run this on x86 or ARM")
def test_real_sockets_of_an_x86_machine() -> None:
    assert _host.parse_sockets([SOCKETS, socket_line("0100007F:1F90", "0A")], "tcp") == [("127.0.0.1", 8080)]
    six = socket_line("000000FD000000000000000002000000:1F91", "0A")
    assert _host.parse_sockets([SOCKETS, six], "tcp") == [("fd00::2", 8081)]


def test_settings(tmp_path: t.Any) -> None:
    files = {
        "/proc/sys/net/ipv4/ip_forward": "1\n",
        "/proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
        "/proc/sys/net/ipv4/conf/all/route_localnet": "0\n",
        "/proc/sys/net/ipv4/conf/lo/route_localnet": "0\n",
        "/proc/sys/net/ipv4/conf/eth0.5/route_localnet": "1\n",
    }
    assert _host.sysctls(host(tmp_path, files)) == {
        "net.ipv4.ip_forward": "1",
        "net.ipv4.ip_local_port_range": "32768\t60999",
        "net.ipv4.conf.all.route_localnet": "0",
        "net.ipv4.conf.eth0.5.route_localnet": "1",
    }


def process(root: t.Any, number: int, words: t.Sequence[str], network: str = "net:[1]") -> None:
    host(root, {"/proc/%d/cmdline" % number: "".join(word + "\0" for word in words)})
    (root / "proc" / str(number) / "ns").mkdir()
    (root / "proc" / str(number) / "ns" / "net").symlink_to(network)


def test_programs_of_our_own_network(tmp_path: t.Any) -> None:
    """Of a Docker that runs in a container the outer host sees the processes too."""
    (tmp_path / "proc" / "thread-self" / "ns").mkdir(parents=True)
    (tmp_path / "proc" / "thread-self" / "ns" / "net").symlink_to("net:[1]")
    process(tmp_path, 7, ["/usr/sbin/dockerd", "-H", "fd://"])
    process(tmp_path, 8, ["/usr/sbin/dockerd", "--iptables=false"], "net:[2]")
    process(tmp_path, 9, ["sh", "dockerd"])
    process(tmp_path, 10, [])
    host(tmp_path, {"/proc/11/cmdline": "dockerd\0"})  # ended between two looks
    (tmp_path / "proc" / "12").mkdir()
    assert _host.command_lines(("dockerd",), str(tmp_path)) == [("dockerd", ["-H", "fd://"])]
