# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What the kernel tells about the host's bridges, read from /proc and /sys."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import typing as t

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
