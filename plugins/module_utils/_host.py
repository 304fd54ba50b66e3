# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What the kernel and files tell about the host, read from /proc, /sys and /etc: reading them loads and makes nothing.

:param root: of every function, where the host's files are.
"""

from __future__ import annotations

import gzip
import ipaddress
import os
import socket
import struct
import typing as t

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._policy import BridgeRoute

_NET = "/proc/thread-self/net"
_ANY_GATEWAY = ("00000000", "0" * 32)


def parse_ipv4_routes(text: str) -> t.List[t.Tuple[ipaddress.IPv4Network, str]]:
    """Directly connected networks and their interfaces, from /proc/net/route."""
    routes = []
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) >= 8 and words[2] == _ANY_GATEWAY[0]:
            # The kernel prints the bytes of an address as one number in the machine's own order.
            address, mask = (socket.inet_ntoa(struct.pack("=I", int(words[column], 16))) for column in (1, 7))
            routes.append((ipaddress.IPv4Network((address, mask)), words[0]))
    return routes


def parse_ipv6_routes(text: str) -> t.List[t.Tuple[ipaddress.IPv6Network, str]]:
    """Directly connected networks and their interfaces, from /proc/net/ipv6_route."""
    routes = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 10 and words[4] == _ANY_GATEWAY[1]:
            address = ipaddress.IPv6Address(int(words[0], 16))
            routes.append((ipaddress.IPv6Network((address, int(words[1], 16)), strict=False), words[9]))
    return routes


def _read(name: str) -> str:
    try:
        with open(os.path.join(_NET, name)) as file:
            return file.read()
    except OSError:
        return ""


def bridge_routes() -> t.List[BridgeRoute]:
    """The networks that are directly connected to a bridge of this host, narrow ones and link-local left out."""
    # Only here: who reads a host's snapshot has no policies.
    from ansible_collections.quaywall.docker.plugins.module_utils._policy import BridgeRoute

    routes: t.List[t.Tuple[t.Union[ipaddress.IPv4Network, ipaddress.IPv6Network], str]] = []
    routes += parse_ipv4_routes(_read("route"))
    routes += parse_ipv6_routes(_read("ipv6_route"))
    return [
        BridgeRoute(network, interface)
        for network, interface in dict.fromkeys(routes)
        if not network.is_link_local
        and not network.is_multicast
        and 0 < network.prefixlen < network.max_prefixlen
        and os.path.isdir("/sys/class/net/%s/bridge" % interface)
    ]


def _text(path: str) -> t.Optional[str]:
    """A file's text, or None if it is not there or cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "backslashreplace")
    except OSError:
        return None


def nf_tables_is_loaded(root: str = "") -> bool:
    """True if asking for nftables' rules loads no module: it is loaded, built in, or nothing can be loaded.

    The kernel loads nf_tables for whoever asks, by netlink, and a part that is built in need not be in /sys/module.
    """
    if os.path.isdir(root + "/sys/module/nf_tables") or not os.path.exists(root + "/proc/modules"):
        return True
    if (_text(root + "/proc/sys/kernel/modules_disabled") or "").strip() == "1":
        return True
    try:
        with gzip.open(root + "/proc/config.gz", "rb") as file:
            return b"\nCONFIG_NF_TABLES=y\n" in file.read()
    except (OSError, EOFError):
        pass
    release = os.uname().release
    config = _text("%s/boot/config-%s" % (root, release))
    if config is not None:
        return "\nCONFIG_NF_TABLES=y\n" in config
    return "/nf_tables.ko" in (_text("%s/lib/modules/%s/modules.builtin" % (root, release)) or "")


def ip_set_is_loaded(root: str = "") -> bool:
    return os.path.isdir(root + "/sys/module/ip_set")


def sysctls(root: str = "") -> t.Dict[str, str]:
    """The settings that decide about Docker's traffic, as far as they exist.

    Of route_localnet of single interfaces only those that are on: a host has hundreds of interfaces.
    """
    base = root + "/proc/sys/net"
    paths = [
        "bridge/bridge-nf-call-iptables",
        "bridge/bridge-nf-call-ip6tables",
        "ipv4/ip_forward",
        "ipv4/ip_local_port_range",
        "ipv6/conf/all/forwarding",
        "ipv4/conf/all/route_localnet",
    ]
    found: t.Dict[str, str] = {}
    for path in paths:
        value = _text(os.path.join(base, path))
        if value is not None:
            found["net." + path.replace("/", ".")] = value.strip()
    for interface in sorted(os.listdir(os.fsencode(base + "/ipv4/conf"))):
        name = interface.decode("utf-8", "backslashreplace")
        value = _text(os.path.join(base, "ipv4/conf", os.fsdecode(interface), "route_localnet"))
        if name != "all" and value is not None and value.strip() != "0":
            found["net.ipv4.conf.%s.route_localnet" % name] = value.strip()
    return found


def _endpoint(text: str) -> t.Tuple[str, int]:
    """Address and port of /proc/net/tcp: words in the machine's own order of bytes, the port as a number."""
    address, _colon, port = text.partition(":")
    words = [int(address[start : start + 8], 16) for start in range(0, len(address), 8)]
    packed = struct.pack("=%dI" % len(words), *words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed), int(port, 16)


_TCP_LISTEN, _TCP_SYN_RECV, _UDP_UNCONNECTED = "0A", "03", "07"


def parse_sockets(lines: t.Iterable[str], protocol: str) -> t.List[t.Tuple[str, int]]:
    """Addresses and ports that wait for packets from anywhere, from /proc/net/{tcp,tcp6,udp,udp6}."""
    found: t.Dict[t.Tuple[str, int], None] = {}
    for number, line in enumerate(lines):
        words = line.split()
        if number == 0 or len(words) < 4:
            continue
        if protocol == "tcp":
            if words[3] == _TCP_LISTEN:
                found[_endpoint(words[1])] = None
            elif words[3] != _TCP_SYN_RECV:
                break  # the kernel lists all that listen first, and connections may be hundreds of thousands
        elif words[3] == _UDP_UNCONNECTED and not words[2].strip("0:"):
            found[_endpoint(words[1])] = None
    return list(found)


def listening(root: str = "") -> t.List[t.Dict[str, t.Any]]:
    """The part C(listening) of a snapshot.

    :raises OSError: /proc cannot be read.
    """
    found: t.List[t.Dict[str, t.Any]] = []
    for name in ("tcp", "tcp6", "udp", "udp6"):
        path = root + os.path.join(_NET, name)
        if name.endswith("6") and not os.path.exists(path):
            continue  # a kernel without IPv6
        with open(path) as file:
            for address, port in parse_sockets(file, name[:3]):
                found.append({"protocol": name[:3], "address": address, "port": port})
    return found


def command_lines(programs: t.Container[str], root: str = "") -> t.List[t.Tuple[str, t.List[str]]]:
    """Names and arguments of the running programs of that name, in our own network: a container may run Docker too.

    :raises OSError: /proc cannot be read, or it is not told whose network a program has.
    """
    own = os.readlink(root + "/proc/thread-self/ns/net")
    found: t.List[t.Tuple[str, t.List[str]]] = []
    for entry in os.listdir(root + "/proc"):
        if not entry.isdigit():
            continue
        folder = "%s/proc/%s" % (root, entry)
        words = (_text(folder + "/cmdline") or "").rstrip("\0").split("\0")
        name = os.path.basename(words[0])
        if name not in programs:
            continue
        try:
            if os.readlink(folder + "/ns/net") == own:
                found.append((name, words[1:]))
        except FileNotFoundError:
            continue  # it has ended
    return found
