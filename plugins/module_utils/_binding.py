# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""A published port. A policy for one needs no more of what Docker has, and nothing of what is in _inventory.py."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6


class Binding(t.NamedTuple):
    """A container port that is published: C(-p host_address:host_port:container_port/protocol).

    ``host_address`` is empty for all addresses, C(0.0.0.0) or C(::) for all of one family: the same host port may
    be one container's in IPv4 and another's in IPv6. ``fixed`` is false for a host port that Docker chose for this run.
    """

    protocol: str
    container_port: int
    host_port: int
    host_address: str
    fixed: bool

    def serves(self, family: str) -> bool:
        """True if the port is published on an address of the family."""
        if not self.host_address:
            return True
        return (":" in self.host_address) == (family == IPV6)


def families(addresses: t.Iterable[str]) -> t.Set[str]:
    """The families of some addresses."""
    return {IPV6 if ":" in address else IPV4 for address in addresses}
