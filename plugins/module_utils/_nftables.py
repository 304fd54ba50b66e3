# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What C(nft -j list ruleset) tells that C(iptables-save) does not.

Rules that were written with nft can stand in the tables that iptables uses. It prints some of them rightly, calls some
tables incompatible, and misprints the rest with return code 0: C(ip saddr @set tcp dport {80, 443} drop) is shown as
C(-p tcp -j DROP). So every form that iptables itself writes is listed here, and all others count as misprinted.

Sources: what iptables 1.8.9 to 1.8.13 and nft 1.0.6 to 1.1.7 print for each other's rules.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6

Json = t.Mapping[str, t.Any]
#: Family and name of a table, as nft writes them.
TableKey = t.Tuple[str, str]

FAMILIES = {"ip": IPV4, "ip6": IPV6}
#: Tables that iptables and ip6tables use, whoever made them.
IPTABLES_TABLES = ("filter", "nat", "mangle", "raw", "security")
DOCKER_BRIDGES = "docker-bridges"

# nft reads its arguments as a script: what is not plainly a name could be a command.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*\Z")
_NFT_FAMILIES = ("ip", "ip6", "inet", "arp", "bridge", "netdev")

_EQUAL = ("==", "!=")
_ORDER = (*_EQUAL, "<", "<=", ">", ">=")
_VERDICTS = frozenset(("accept", "drop", "return", "continue", "counter", "xt", "jump", "goto"))
_STOPPING = frozenset(("drop", "reject", "queue", "fwd", "synproxy"))
_STOPPING_TARGETS = ("DROP", "REJECT", "TARPIT", "NFQUEUE", "drop")


def _is_ours(family: t.Any, table: t.Any) -> bool:
    """True for a table that iptables or ip6tables uses."""
    return family in FAMILIES and table in IPTABLES_TABLES


def _is_plain(value: t.Any) -> bool:
    """True for one value: no set, range, list or map."""
    return not isinstance(value, (dict, list)) and not (isinstance(value, str) and value.startswith("@"))


def _is_iptables_match(left: t.Any, op: t.Any, right: t.Any) -> bool:
    masked = isinstance(left, dict) and isinstance(left.get("&"), list) and len(left["&"]) >= 1
    base = left["&"][0] if masked else left
    if not isinstance(base, dict) or len(base) != 1:
        return False
    kind, detail = next(iter(base.items()))
    if not isinstance(detail, dict):
        return False
    if kind == "meta":
        key = detail.get("key")
        if key == "mark":
            return op in _EQUAL and _is_plain(right)
        return (
            key in ("iifname", "oifname", "iif", "oif", "l4proto") and not masked and op in _EQUAL and _is_plain(right)
        )
    if kind != "payload":
        return False
    protocol, field = detail.get("protocol"), detail.get("field")
    if protocol in ("ip", "ip6"):
        if field in ("saddr", "daddr"):
            prefix = isinstance(right, dict) and list(right) == ["prefix"] and not masked
            return op in _EQUAL and (prefix or _is_plain(right))
        if (protocol, field) == ("ip", "frag-off"):
            return masked and op in _EQUAL and left["&"][1:] == [0x1FFF] and right == 0
        return (protocol, field) == ("ip", "protocol") and not masked and op in _EQUAL and _is_plain(right)
    if protocol in ("tcp", "udp") and field in ("sport", "dport"):
        ranged = isinstance(right, dict) and list(right) == ["range"] and op in _EQUAL
        return not masked and (ranged or (op in _ORDER and _is_plain(right)))
    if (protocol, field) == ("tcp", "flags"):
        bits = isinstance(right, list) or (isinstance(right, dict) and list(right) == ["|"]) or _is_plain(right)
        return bits and op in (_EQUAL if masked else ("in", "!"))
    return False


def _is_iptables_rule(expressions: t.Any) -> bool:
    """True if iptables writes such a rule, and so prints it as it is."""
    if not isinstance(expressions, list):
        return False
    seen: t.List[t.Any] = []
    for expression in expressions:
        if not isinstance(expression, dict) or len(expression) != 1:
            return False
        kind, detail = next(iter(expression.items()))
        if kind in _VERDICTS:
            continue
        if not isinstance(detail, dict):
            return False
        if kind == "match":
            left = detail.get("left")
            # Of two matches on one thing iptables shows the last.
            if left in seen or not _is_iptables_match(left, detail.get("op"), detail.get("right")):
                return False
            seen.append(left)
        elif kind == "limit":
            # Older versions of nft have no unit, or one for packets.
            if detail.get("inv") or detail.get("rate_unit", "packets") != "packets":
                return False
        elif kind == "log":
            if "group" not in detail:
                return False
        elif not (kind == "mangle" and detail.get("key") == {"meta": {"key": "nftrace"}}):
            return False
    return True


def _inner(expression: t.Any) -> t.Iterator[t.Tuple[str, t.Any]]:
    """All keys of a rule or map with their values, however deep."""
    stack = [expression]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            for key, value in item.items():
                yield key, value
                stack.append(value)
        elif isinstance(item, list):
            stack.extend(item)


class _Table:
    """One table's chains, rules and verdict maps."""

    def __init__(self) -> None:
        self.flagged = False
        self.dormant = False
        self.chains: t.Dict[str, Json] = {}
        self.rules: t.Dict[str, t.List[t.Any]] = {}
        self.verdict_maps: t.Dict[str, t.Any] = {}

    def stops(self, chain: str) -> bool:
        """True if a rule that drops, rejects or queues is reached from the chain; maps without elements may."""
        found, reached = [chain], {chain}
        while found:
            for expressions in self.rules.get(found.pop(), ()):
                stack = [expressions]
                while stack:
                    for key, value in _inner(stack.pop()):
                        if key in _STOPPING:
                            return True
                        if key == "xt" and isinstance(value, dict) and value.get("name") in _STOPPING_TARGETS:
                            return True
                        if key in ("jump", "goto") and isinstance(value, dict):
                            target = str(value.get("target"))
                            if target not in reached:
                                reached.add(target)
                                found.append(target)
                        if key == "vmap" and isinstance(value, dict) and isinstance(value.get("data"), str):
                            name = value["data"]
                            if name not in reached:
                                reached.add(name)
                                elements = self.verdict_maps.get(name[1:])
                                if elements is None:
                                    return True
                                stack.append(elements)
        return False


def _tables(objects: t.Iterable[Json]) -> t.Dict[TableKey, _Table]:
    tables: t.Dict[TableKey, _Table] = {}
    for item in objects:
        for kind, value in item.items():
            if not isinstance(value, dict):
                continue
            if kind == "table":
                table = tables.setdefault((value["family"], value["name"]), _Table())
                flags = value.get("flags") or []
                table.flagged = bool(flags)
                # nft 1.0.6 prints the table's name in place of a flag: then it counts as one that is read.
                table.dormant = "dormant" in (flags if isinstance(flags, list) else [flags])
            elif "table" in value and "family" in value:
                table = tables.setdefault((value["family"], value["table"]), _Table())
                if kind == "chain":
                    table.chains[value["name"]] = value
                elif kind == "rule":
                    table.rules.setdefault(value["chain"], []).append(value.get("expr"))
                elif kind == "map" and value.get("map") == "verdict":
                    table.verdict_maps[value["name"]] = value.get("elem")
    return tables


def wanted_whole(objects: t.Sequence[Json]) -> t.List[TableKey]:
    """The tables whose elements of sets and maps matter, which a terse listing leaves out."""
    return [
        key
        for key, table in _tables(objects).items()
        if key[0] in _NFT_FAMILIES
        and _NAME.match(key[1])
        and not _is_ours(*key)
        and (key[1] == DOCKER_BRIDGES or table.verdict_maps)
    ]


def _of_table(item: Json, key: TableKey) -> bool:
    for kind, value in item.items():
        if isinstance(value, dict):
            return (value.get("family"), value.get("name" if kind == "table" else "table")) == key
    return False


def replace_table(objects: t.Iterable[Json], key: TableKey, whole: t.Iterable[Json]) -> t.List[Json]:
    """The listing with one table's objects replaced by those of a listing of it."""
    return [item for item in objects if not _of_table(item, key)] + [item for item in whole if _of_table(item, key)]


def summary(objects: t.Sequence[Json]) -> t.Dict[str, t.Any]:
    """The part C(nft) of a snapshot, from nft's objects.

    :raises Exception: the objects are not as nft prints them.
    """
    misprinted: t.Dict[str, t.List[str]] = {IPV4: [], IPV6: []}
    base_chains: t.List[t.Dict[str, t.Any]] = []
    for (family, name), table in _tables(objects).items():
        if _is_ours(family, name):
            for chain in table.chains:
                # iptables shows the rules of a table that is switched off (dormant) as if they were read.
                if table.flagged or not all(map(_is_iptables_rule, table.rules.get(chain, ()))):
                    misprinted[FAMILIES[family]].append("%s %s" % (name, chain))
        elif name != DOCKER_BRIDGES and not table.dormant:
            for chain, head in table.chains.items():
                if "hook" in head:
                    policy = str(head.get("policy") or "accept")
                    base_chains.append(
                        {
                            "family": family,
                            "table": name,
                            "chain": chain,
                            "hook": str(head["hook"]),
                            "priority": int(head.get("prio") or 0),
                            "policy": policy,
                            "rules": len(table.rules.get(chain, ())),
                            "stops": policy == "drop" or table.stops(chain),
                        }
                    )
    docker = [item for item in objects for family in FAMILIES if _of_table(item, (family, DOCKER_BRIDGES))]
    return {"misprinted": misprinted, "base_chains": base_chains, "docker": docker}


def iptables_tables(objects: t.Iterable[Json]) -> t.Dict[str, t.List[str]]:
    """The tables of each family that C(iptables-nft-save) should show."""
    keys = _tables(objects)
    return {name: [table for table in IPTABLES_TABLES if (family, table) in keys] for family, name in FAMILIES.items()}
