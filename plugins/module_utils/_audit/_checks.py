# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""All checks by name, and the audit that runs them over one snapshot."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._addresses import (
    covers_no_container,
    stale_address,
    wrong_owner,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._allows import (
    host_port_never_matches,
    port_only_allow,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._backends import (
    backend_mixed,
    backend_nftables,
    docker_iptables_off,
    snapshot_incomplete,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._denies import (
    address_only,
    broad_deny,
    neighbours_cut_off,
    port_only_deny,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import (
    SEVERITIES,
    Finding,
    listed,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._order import (
    jump_missing,
    jump_not_first,
    jump_window,
    unreachable_rule,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._outside import (
    outside_this_firewall,
    swarm_ingress,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._places import docker_chain_edited, never_read
from ansible_collections.quaywall.docker.plugins.module_utils._audit._replies import (
    established_late,
    established_missing,
    replies_or_egress_hit,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._saved import not_persistent, saved_docker_rules
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Survey
from ansible_collections.quaywall.docker.plugins.module_utils._audit._ways import (
    direct_routing,
    exposed,
    ipv6_gap,
    proxy_bypass,
)

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import Snapshot

Check = t.Callable[[Survey], t.Iterator[Finding]]

CHECKS: t.Mapping[str, Check] = {
    "port_only_deny": port_only_deny,
    "broad_deny": broad_deny,
    "port_only_allow": port_only_allow,
    "host_port_never_matches": host_port_never_matches,
    "neighbours_cut_off": neighbours_cut_off,
    "replies_or_egress_hit": replies_or_egress_hit,
    "established_missing": established_missing,
    "established_late": established_late,
    "address_only": address_only,
    "jump_window": jump_window,
    "unreachable_rule": unreachable_rule,
    "stale_address": stale_address,
    "wrong_owner": wrong_owner,
    "covers_no_container": covers_no_container,
    "jump_missing": jump_missing,
    "jump_not_first": jump_not_first,
    "never_read": never_read,
    "docker_chain_edited": docker_chain_edited,
    "ipv6_gap": ipv6_gap,
    "proxy_bypass": proxy_bypass,
    "direct_routing": direct_routing,
    "backend_mixed": backend_mixed,
    "backend_nftables": backend_nftables,
    "docker_iptables_off": docker_iptables_off,
    "not_persistent": not_persistent,
    "saved_docker_rules": saved_docker_rules,
    "outside_this_firewall": outside_this_firewall,
    "swarm_ingress": swarm_ingress,
    "exposed": exposed,
    "snapshot_incomplete": snapshot_incomplete,
}


def audit(snapshot: Snapshot, names: t.Optional[t.Collection[str]] = None) -> t.List[Finding]:
    """The findings of the checks named (default: all), the most severe first, then by check and place."""
    survey = Survey(snapshot)
    found = [finding for name, check in CHECKS.items() if names is None or name in names for finding in check(survey)]
    return _told_apart(sorted(found, key=_order))


def _told_apart(found: t.List[Finding]) -> t.List[Finding]:
    """Fixes that delete the same rule say so: whichever comes second finds nothing to delete."""
    deleting: t.Dict[t.Tuple[str, ...], t.Dict[int, None]] = {}
    for index, finding in enumerate(found):
        for task in finding.fix.tasks if finding.fix is not None else ():
            words = task.get("ansible.builtin.command", {}).get("argv", ())
            if "-D" in words:
                deleting.setdefault(tuple(words), {})[index] = None
    others: t.Dict[int, t.Dict[str, None]] = {}
    for indexes in deleting.values():
        for index in indexes if len(indexes) > 1 else ():
            others.setdefault(index, {}).update((found[other].check, None) for other in indexes if other != index)
    for index, checks in others.items():
        fix = found[index].fix
        if fix is not None:
            text = "The fix of %s deletes the same rule: do one of them, then judge again." % listed(list(checks))
            found[index] = found[index]._replace(fix=fix._replace(description="%s %s" % (fix.description, text)))
    return found


def _order(finding: Finding) -> t.Tuple[t.Any, ...]:
    place = finding.place
    return (
        -SEVERITIES.index(finding.severity),
        finding.check,
        ("", "", 0) if place is None else (place.family, place.chain, place.position),
        finding.subject,
    )
