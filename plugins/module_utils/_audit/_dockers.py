# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The rules that Docker writes itself, by table and chain.

Read from moby (17.06 to 29.8) and held against dumps of real engines. A rule of such a shape is taken for Docker's,
also where somebody else wrote it: nobody is told off for what Docker may have done.
"""

from __future__ import annotations

import functools
import re
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER
from ansible_collections.quaywall.docker.plugins.module_utils._rule import Rule, normalise

_RETURN = "-j RETURN"
_PORT = r"-p (?P<p>\w+) -m (?P=p) --dport \d+ "
_SOURCE_PORT = r"-m (?P=p) --sport \d+ "
_REPLIES = r"-m (?:conntrack --ct|state --)state RELATED,ESTABLISHED "
_DNAT = r"-j DNAT --to-destination \S+"
_INTERNAL = (
    r"! -s \S+ (?:! -i (?P<a>\S+) -o (?P=a)|-o \S+) -j DROP",
    r"! -d \S+ (?:-i (?P<a>\S+) ! -o (?P=a)|-i \S+) -j DROP",
)

_SHAPES: t.Mapping[t.Tuple[str, str], t.Tuple[str, ...]] = {
    ("filter", "FORWARD"): (
        r"-j DOCKER(?:-FORWARD|-INGRESS|-OVERLAY|-ISOLATION(?:-STAGE-1)?)?",
        r"-o (?P<b>\S+) " + _REPLIES + "-j ACCEPT",
        r"-o (?P<b>\S+) -j DOCKER",
        r"-i (?P<b>\S+)(?: (?:! )?-o (?P=b))? -j ACCEPT",
        r"-i (?P<b>\S+) -o (?P=b) -j DROP",
        # 28.0.0 alone
        r"-m set --match-set docker-ext-bridges-v[46] dst .*-j (?:ACCEPT|DOCKER)",
    ),
    ("filter", "DOCKER"): (
        r"-d \S+ ! -i (?P<b>\S+) -o (?P=b) " + _PORT + "-j ACCEPT",
        r"! -i (?P<b>\S+) -o (?P=b) -j (?:DROP|ACCEPT)",
        r"-o \S+ -p (?:ipv6-)?icmp -j ACCEPT",
        # neighbour discovery without ICC, 29.7
        r"-i (?P<b>\S+) -o (?P=b) -p ipv6-icmp -m icmp6 --icmpv6-type 13[56] -j ACCEPT",
        # docker run --link without ICC
        r"-s \S+ -d \S+ -i (?P<b>\S+) -o (?P=b) -p (?P<p>\w+) -m (?P=p) --[ds]port \d+ -j ACCEPT",
    ),
    ("filter", "DOCKER-FORWARD"): (
        r"-j DOCKER-(?:CT|INTERNAL|BRIDGE|INGRESS|ISOLATION-STAGE-1)",
        r"-i (?P<b>\S+)(?: (?:! )?-o (?P=b))? -j ACCEPT",
        r"-i (?P<b>\S+) -o (?P=b) -j DROP",
        r"-m mark --mark \S+ -j ACCEPT",
    ),
    ("filter", "DOCKER-BRIDGE"): (r"-o \S+ -j DOCKER",),
    ("filter", "DOCKER-CT"): (r"-o \S+ " + _REPLIES + "-j ACCEPT",),
    ("filter", "DOCKER-INTERNAL"): _INTERNAL,
    ("filter", "DOCKER-ISOLATION-STAGE-1"): (
        *_INTERNAL,
        r"-i (?P<b>\S+) ! -o (?P=b) -j DOCKER-ISOLATION-STAGE-2",
        _RETURN,
    ),
    ("filter", "DOCKER-ISOLATION-STAGE-2"): (r"-o \S+ -j DROP", _RETURN),
    ("filter", "DOCKER-INGRESS"): (
        _PORT + "-j ACCEPT",
        r"-p (?P<p>\w+) (?:" + _SOURCE_PORT + _REPLIES + "|" + _REPLIES + _SOURCE_PORT + ")-j ACCEPT",
        _RETURN,
    ),
    ("nat", "DOCKER"): (
        r"-i \S+ -j RETURN",
        r"-d 127\.0\.0\.0/8 -i loopback0 -j RETURN",
        r"(?:! -s fe80::/10 )?(?:-d \S+ )?(?:! -i \S+ )?" + _PORT + _DNAT,
    ),
    ("nat", "DOCKER-INGRESS"): (_PORT + _DNAT, _RETURN),
}
#: The chains that Docker makes and fills.
CHAINS = tuple(place for place in _SHAPES if place != ("filter", "FORWARD"))

_BRIDGE = re.compile(r"docker0\Z|docker_gwbridge\Z|br-[0-9a-f]{12}\Z")


@functools.lru_cache(maxsize=None)
def _patterns(table: str, chain: str) -> t.Tuple[t.Pattern[str], ...]:
    return tuple(re.compile("(?:%s)\\Z" % shape) for shape in _SHAPES.get((table, chain), ()))


def is_of_docker(table: str, chain: str, rule: Rule, family: str) -> bool:
    """True for a rule such as Docker writes into this chain."""
    patterns = _patterns(table, chain)
    if not patterns:
        return False
    text = rule.render()
    if any(pattern.match(text) for pattern in patterns):
        return True
    text = normalise(rule, family).render()  # as another version of iptables prints it
    return any(pattern.match(text) for pattern in patterns)


def looks_like_bridge(name: str) -> bool:
    """True for a name that Docker gives to a bridge of its own accord."""
    return bool(_BRIDGE.match(name))


def forward_is_of_docker(rule: Rule, family: str, bridges: t.Container[str]) -> bool:
    """True for a rule such as Docker writes into FORWARD: for one of its bridges, or a jump into its chains.

    The jump into DOCKER-USER is among them.
    """
    if rule.target == DOCKER_USER:
        return len(rule.fields) == 1
    if not is_of_docker("filter", "FORWARD", rule, family):
        return False
    interfaces = [field.value for field in rule.fields if field.name in ("in_interface", "out_interface")]
    return all(name in bridges or looks_like_bridge(name) for name in interfaces)
