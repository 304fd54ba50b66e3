# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Cuts the connections that a chain would not let in any more: what C(drop_connections) of the modules asks for."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER, Chain
from ansible_collections.quaywall.docker.plugins.module_utils._connections import (
    all_routes,
    denied,
    local_addresses,
)
from ansible_collections.quaywall.docker.plugins.module_utils._host import bridge_routes
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import join, of_network
from ansible_collections.quaywall.docker.plugins.module_utils._rule import Parser
from ansible_collections.quaywall.docker.plugins.module_utils._walk import Program

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._ipset import AddressSet
    from ansible_collections.quaywall.docker.plugins.module_utils._iptables import Change
    from ansible_collections.quaywall.docker.plugins.module_utils._module._edge import Host


def cut_connections(
    host: Host, changes: t.Mapping[str, Change], sets: t.Mapping[str, AddressSet], dry: bool
) -> t.List[str]:
    """Make the kernel forget the connections that the chain would not let in now.

    :param sets: the ipsets that the rules ask.
    :param dry: only say which.
    :returns: the connections, as text.
    :raises FirewallError: conntrack is missing, or the kernel refuses. The rules stay.
    """
    connections = host.connections()
    found: t.List[str] = []
    for family, change in changes.items():
        parser = Parser(family)
        chains = dict(host.firewall.state.tables[family].chains)
        after = {DOCKER_USER: change.after}
        after.update({own.name: own.after or () for own in change.plan.own if own.table == "filter"})
        for name, rules in after.items():
            chains[name] = Chain(name, None, tuple(parser.parse(rule) for rule in rules))
        contents = {
            name: join(piece for network in made.networks for piece in of_network(network))
            for name, made in sets.items()
            if made.family == family
        }
        program = Program(chains, family, contents)
        refused = denied(connections.listed(family), program, bridge_routes(), local_addresses(), all_routes())
        if not dry:
            connections.drop(refused)
        found += [
            "%s %s port %d to %s port %d"
            % (one.protocol, one.source, one.source_port, one.destination, one.destination_port)
            for one in refused
        ]
    return found
