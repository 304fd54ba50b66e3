# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Where on a packet's way a finding belongs: the stations that the page draws."""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.plugin_utils._report._model import Finding

#: The stations at which there can be findings, in the order of the way. HOST is what is off it: files, services, and
#: whether the host could be read.
STATIONS = (
    "prerouting",
    "routing",
    "forward",
    "docker_user",
    "docker_chains",
    "input",
    "proxy",
    "host",
)
PREROUTING, ROUTING, FORWARD, DOCKER_USER, DOCKER_CHAINS, INPUT, PROXY, HOST = STATIONS

#: Checks that are about a station whatever chain their rule is in.
_BY_CHECK = {
    "proxy_bypass": PROXY,
    "direct_routing": ROUTING,
    "jump_missing": FORWARD,
    "jump_not_first": FORWARD,
    "jump_window": FORWARD,
    "exposed": DOCKER_USER,
    "swarm_ingress": DOCKER_CHAINS,
    "docker_iptables_off": DOCKER_CHAINS,
    "backend_nftables": DOCKER_CHAINS,
    "not_persistent": HOST,
    "saved_docker_rules": HOST,
    "outside_this_firewall": INPUT,
    "snapshot_incomplete": HOST,
}


def station(finding: Finding) -> str:
    """The station that a finding is about."""
    return _BY_CHECK.get(finding.check) or _by_chain(finding.table, finding.chain)


def _by_chain(table: str, chain: str) -> str:
    name = chain.lower()
    if not chain or "output" in name:
        return HOST
    if table == "nat" or "prerouting" in name:
        return PREROUTING
    if name.startswith("docker") and chain != "DOCKER-USER":
        return DOCKER_CHAINS
    if "input" in name:
        return INPUT
    # FORWARD itself, and chains such as ufw-before-forward.
    if "forward" in name:
        return FORWARD
    # A chain of somebody's own is judged where DOCKER-USER leads to it.
    return DOCKER_USER
