# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Docker's own tables of nftables (C(ip docker-bridges)) in the words of iptables, so that one walk reads both.

A base chain becomes the built-in chain of its hook, by C(jump), and other chains keep their names. Of nft's language
this reads what Docker writes; a rule with anything else gets an opaque match, and a walk says that it hangs on that.
An accept ends the hook's chain only, as it does in iptables' tables.
"""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._chain import Chain, Dump, Table
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, Parser

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import Json, Snapshot

#: By hook and priority the table whose chain is read at that place.
_PLACES = {
    ("prerouting", -300): ("raw", "PREROUTING"),
    ("prerouting", -100): ("nat", "PREROUTING"),
    ("output", -100): ("nat", "OUTPUT"),
    ("postrouting", 100): ("nat", "POSTROUTING"),
    ("input", 0): ("filter", "INPUT"),
    ("forward", 0): ("filter", "FORWARD"),
    ("output", 0): ("filter", "OUTPUT"),
}
_INTERFACES = {"iifname": "-i", "oifname": "-o", "iif": "-i", "oif": "-o"}
_ADDRESSES = {"saddr": "-s", "daddr": "-d"}
_PORTS = {"sport": "--sport", "dport": "--dport"}
_PLAIN = {"accept": "ACCEPT", "drop": "DROP", "return": "RETURN"}


def tables_of(snapshot: Snapshot, family: str) -> t.Tuple[Dump, t.Tuple[str, ...]]:
    """Docker's tables of one family, and what of them could not be read."""
    wanted = "ip" if family == IPV4 else "ip6"
    objects = [
        (kind, item)
        for entry in (snapshot.nft.docker if snapshot.nft is not None else ())
        for kind, item in entry.items()
        if isinstance(item, dict) and item.get("family") == wanted
    ]
    maps = {item.get("name"): item for kind, item in objects if kind == "map"}
    parser = Parser(family)
    lines: t.Dict[str, t.List[str]] = {}
    places: t.Dict[str, t.Tuple[str, str]] = {}
    policies: t.Dict[str, str] = {}
    missing: t.List[str] = []
    for kind, item in objects:
        if kind == "chain":
            name = str(item.get("name"))
            lines.setdefault(name, [])
            if item.get("hook"):
                place = _PLACES.get((str(item["hook"]), int(item.get("prio") or 0)))
                if place is None:
                    missing.append("nftables' chain %s" % name)
                else:
                    places[name], policies[name] = place, str(item.get("policy") or "accept").upper()
        elif kind == "rule":
            lines.setdefault(str(item.get("chain")), []).extend(_rules(item.get("expr") or (), maps))
    own = {
        name: Chain(name, None, tuple(parser.parse(line) for line in rules))
        for name, rules in lines.items()
        if name not in places
    }
    tables: t.Dict[str, t.Dict[str, Chain]] = {}
    for name, (table, hook) in places.items():
        rules = tuple(parser.parse(line) for line in lines[name])
        tables.setdefault(table, dict(own))[hook] = Chain(hook, policies[name], rules)
    dump = Dump({name: Table(name, chains) for name, chains in tables.items()})
    return dump, tuple(missing)


def _rules(expressions: t.Iterable[Json], maps: t.Mapping[t.Any, Json]) -> t.Iterator[str]:
    """The rules that one rule is; a verdict map is one for each of its elements."""
    words: t.List[str] = []
    for expression in expressions:
        ((kind, value),) = expression.items()
        if kind in ("counter", "comment"):
            continue
        if kind == "match":
            words.append(_match(value))
        elif kind == "vmap":
            option = _INTERFACES.get(str(((value.get("key") or {}).get("meta") or {}).get("key")), "")
            for name, verdict in _elements(value.get("data"), maps):
                matches = [*words, "%s %s" % (option, name) if option else "-m nft --vmap"]
                yield " ".join(filter(None, [*matches, _verdict(verdict)]))
            return
        else:
            yield " ".join(filter(None, [*words, _verdict(expression)]))
            return


def _elements(data: t.Any, maps: t.Mapping[t.Any, Json]) -> t.Iterator[t.Tuple[str, Json]]:
    if isinstance(data, str):
        listed = (maps.get(data.lstrip("@")) or {}).get("elem") or ()
    else:
        listed = (data or {}).get("set") or ()
    for key, verdict in listed:
        # An element with a comment or a counter is an object.
        name = (key.get("elem") or {}).get("val") if isinstance(key, dict) else key
        yield str(name), verdict


def _verdict(expression: Json) -> str:
    ((kind, value),) = expression.items()
    if kind in _PLAIN:
        return "-j " + _PLAIN[kind]
    if kind in ("jump", "goto"):
        return "-%s %s" % (kind[0], value.get("target"))
    if kind == "reject":
        return "-j REJECT"
    if kind == "masquerade":
        return "-j MASQUERADE"
    if kind in ("dnat", "snat") and isinstance(value, dict):
        address, port = value.get("addr"), value.get("port")
        target = "" if address is None else "[%s]" % address if ":" in str(address) and port else str(address)
        if port is not None:
            target += ":%s" % port
        return "-j %s --to-%s %s" % (kind.upper(), "destination" if kind == "dnat" else "source", target)
    return "-j NFT-%s" % kind.upper().replace(" ", "-")


def _match(value: Json) -> str:
    """One match in iptables' words; what is not understood as an option that iptables does not have."""
    left, right = value.get("left") or {}, value.get("right")
    negation = "! " if value.get("op") == "!=" else ""
    unknown = "-m nft --match %s" % "".join(char for char in str(value) if char.isalnum())[:40]
    if not isinstance(left, dict) or value.get("op") not in ("==", "!=", "in"):
        return unknown
    key = str((left.get("meta") or {}).get("key"))
    if key in _INTERFACES and isinstance(right, str):
        return "%s%s %s" % (negation, _INTERFACES[key], right.replace("*", "+"))
    if key == "mark" and isinstance(right, int):
        return "-m mark %s--mark 0x%x" % (negation, right)
    if key in ("l4proto", "protocol") and isinstance(right, str):
        return "%s-p %s" % (negation, right)
    payload = left.get("payload") or {}
    side, protocol = str(payload.get("field")), str(payload.get("protocol"))
    if side in _ADDRESSES and not isinstance(right, list):
        if isinstance(right, dict):
            prefix = right.get("prefix")
            if not prefix:
                return unknown
            right = "%s/%s" % (prefix.get("addr"), prefix.get("len"))
        return "%s%s %s" % (negation, _ADDRESSES[side], right)
    if side in _PORTS and isinstance(right, int):
        return "-p %s -m %s %s%s %d" % (protocol, protocol, negation, _PORTS[side], right)
    if (left.get("fib") or {}).get("result") == "type" and isinstance(right, str):
        end = "dst" if "daddr" in left["fib"].get("flags", ()) else "src"
        return "-m addrtype %s--%s-type %s" % (negation, end, right.upper())
    if (left.get("ct") or {}).get("key") == "state":
        states = right if isinstance(right, list) else (right or {}).get("set") if isinstance(right, dict) else [right]
        return "-m conntrack %s--ctstate %s" % (negation, ",".join(str(state).upper() for state in states or ()))
    return unknown
