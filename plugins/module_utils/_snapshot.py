# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What a judgement of a host reads, as one value; to and from JSON (version 1).

A mapping with these keys. C(_SHAPES) below has each key's type; what is in brackets is where the part comes from.

* C(quaywall_snapshot): 1, the version of this format. C(collected): when, in UTC (C(2026-11-23T06:42:45Z)).
* C(iptables): C(version) of the tools; C(default), the variant that the names iptables and ip6tables mean; for each
  family and variant the text of all tables [C(iptables-nft-save), C(ip6tables-legacy-save) ...; without counters], null
  where there is nothing.
* C(ipsets): text [C(ipset save)]; null if no rule uses a set, or if it could not be read.
* C(nft) [C(nft -j list ruleset)]: C(misprinted), the C("<table> <chain>") of iptables' own tables that hold rules which
  iptables-save misprints or hides; C(base_chains) outside of iptables' tables (C(rules): how many it has itself;
  C(stops): a drop or reject is reached from it, or its policy is drop); C(docker), nft's own objects of the tables
  named docker-bridges, whose chains are not among the others.
* C(docker) [Engine API C(/version), C(/info), C(/containers/json?all=1), C(/networks)]: as the API names things, cut to
  what is judged; labels only C(com.docker.*). C(daemon) [/etc/docker/daemon.json, dockerd's command line]: the options
  that are set.
* C(services) [C(/services), on Swarm managers]: their published ports.
* C(proxies) [command lines of docker-proxy], C(listening) [/proc/net/tcp, tcp6, udp, udp6].
* C(sysctls) [/proc/sys]: by name, with the values as texts; of single interfaces only a route_localnet that is on.
* C(interfaces), C(routes) [C(ip -j -d address), C(ip -j route show table all)]: addresses are CIDRs, C(metric) as the
  kernel has it (0: none), C(table) by name where it has one; without link-local and multicast routes of IPv6.
* C(saved): texts of the saved rule files, by path [/etc/iptables/rules.v4, rules.v6]. Where policies are stored on the
  host, the path of that file too, with an empty text.
* C(holes): what could not be read, by part, with a sentence that says why and what to do.

A part that is missing or null is a hole (but not C(ipsets): null). Further keys are ignored. An address is never with
a zone, and empty where there is none. Text that was no UTF-8 has its bytes as backslash escapes.
"""

from __future__ import annotations

import ipaddress
import json
import re
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    DOCKER_USER,
    Dump,
    docker_manages,
    parse_dump,
)
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Inventory, parse_inventory
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6

Json = t.Mapping[str, t.Any]

VERSION = 1
NFT = "nft"
LEGACY = "legacy"
FAMILIES = (IPV4, IPV6)
VARIANTS = (NFT, LEGACY)


_ANEW = "take a new one (docker_fw_audit with return_snapshot: true) and do not edit it"


class SnapshotError(Exception):
    """A document that is no snapshot, as one sentence; ``reason`` says only what is wrong, and where."""

    def __init__(self, reason: str, text: str = "In the snapshot %s: " + _ANEW + ".") -> None:
        super().__init__(text % reason)
        self.reason = reason


class Hole(t.NamedTuple):
    """A part of the host that could not be read, and why."""

    part: str
    reason: str


class Interface(t.NamedTuple):
    """An interface of the host. ``kind`` is bridge, veth, vlan ..., empty for a plain one; addresses are CIDRs."""

    name: str
    kind: str
    up: bool
    master: str
    addresses: t.Tuple[str, ...]


class Route(t.NamedTuple):
    """A route of any table. ``destination`` is a CIDR; ``type`` is unicast, local, broadcast, blackhole ..."""

    family: str
    destination: str
    gateway: str
    interface: str
    table: str
    type: str
    metric: int


class Proxy(t.NamedTuple):
    """A docker-proxy process: it listens at the host's address and connects to the container's."""

    protocol: str
    host_address: str
    host_port: int
    container_address: str
    container_port: int


class Socket(t.NamedTuple):
    """A socket of the host that waits for packets from anywhere."""

    protocol: str
    address: str
    port: int


class BaseChain(t.NamedTuple):
    """A base chain of nftables outside of iptables' own tables. ``stops``: a drop or reject is reached from it."""

    family: str
    table: str
    chain: str
    hook: str
    priority: int
    policy: str
    rules: int
    stops: bool


class Nft(t.NamedTuple):
    """What nft shows and iptables does not.

    ``misprinted`` are (table, chain) by family; ``docker`` are nft's own objects (of C(nft -j)), one after the other.
    """

    misprinted: t.Mapping[str, t.FrozenSet[t.Tuple[str, str]]]
    base_chains: t.Tuple[BaseChain, ...]
    docker: t.Tuple[Json, ...]


class Engine(t.NamedTuple):
    """The engine. ``version`` is C((28, 5, 2)), or C(()) if unknown; ``options`` are those that are set."""

    version: t.Tuple[int, ...]
    backend: str
    live_restore: bool
    swarm: bool
    options: t.Mapping[str, t.Any]


class SwarmPort(t.NamedTuple):
    """A published port of a Swarm service. ``mode`` is ingress or host."""

    service: str
    protocol: str
    published_port: int
    target_port: int
    mode: str


class IpSet(t.NamedTuple):
    """A set of addresses. ``entries`` alone say what it matches only if it is ``complete``: it is not with exceptions
    (C(nomatch)) and the like, which are not among them. An entry is an element as ipset prints it, such as
    C(10.0.0.0/8) or C(10.0.0.1,tcp:80), with the set's netmask.
    """

    name: str
    kind: str
    family: str
    entries: t.Tuple[str, ...]
    complete: bool


class Snapshot(t.NamedTuple):
    """Everything that a judgement reads. ``data`` is the document that it was made from.

    ``dumps`` are by (family, variant), only those that were there; ``sets`` is None if they were not read. ``stored``
    says whether policies are stored on the host, which are written again before Docker starts.
    """

    data: Json
    dumps: t.Mapping[t.Tuple[str, str], Dump]
    default_variants: t.Mapping[str, str]
    sets: t.Optional[t.Mapping[str, IpSet]]
    nft: t.Optional[Nft]
    engine: t.Optional[Engine]
    inventory: t.Optional[Inventory]
    swarm_ports: t.Tuple[SwarmPort, ...]
    proxies: t.Tuple[Proxy, ...]
    listening: t.Tuple[Socket, ...]
    interfaces: t.Tuple[Interface, ...]
    routes: t.Tuple[Route, ...]
    sysctls: t.Mapping[str, str]
    saved: t.Mapping[str, Dump]
    holes: t.Tuple[Hole, ...]
    stored: bool = False


# The shape of a document ---------------------------------------------------------------------------------------------


class _Kind(t.NamedTuple):
    words: str
    fits: t.Callable[[t.Any], bool]


def _is_number(value: t.Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_address(value: t.Any) -> bool:
    # A zone is of one host only, and Python 3.8 refuses it.
    if not isinstance(value, str) or "%" in value:
        return False
    try:
        return not value or bool(ipaddress.ip_address(value))
    except ValueError:
        return False


def _is_cidr(value: t.Any) -> bool:
    if not isinstance(value, str) or "/" not in value or "%" in value:
        return False
    try:
        return bool(ipaddress.ip_interface(value))
    except ValueError:
        return False


_TEXT = _Kind("a text", lambda value: isinstance(value, str))
_FLAG = _Kind("true or false", lambda value: isinstance(value, bool))
_NUMBER = _Kind("a whole number", _is_number)
_PORT = _Kind("a port (0 to 65535)", lambda value: _is_number(value) and 0 <= value <= 65535)
_ADDRESS = _Kind("an IP address or empty", _is_address)
_CIDR = _Kind("a network such as 172.17.0.0/16", _is_cidr)
_FAMILY = _Kind("ipv4 or ipv6", lambda value: value in FAMILIES)
_VARIANT = _Kind("nft or legacy", lambda value: value in VARIANTS)
_CHAIN = _Kind("a text such as filter DOCKER-USER", lambda value: isinstance(value, str) and " " in value)
_ANY = _Kind("anything", lambda value: True)

#: Stands for every key of a mapping.
_EACH = "*"

#: Parts by name. A mapping's key with C(!) must be there; any other may be missing or null.
_SHAPES: t.Mapping[str, t.Any] = {
    "iptables": {
        "version": _TEXT,
        "default": {"ipv4": _VARIANT, "ipv6": _VARIANT},
        "ipv4": {"nft": _TEXT, "legacy": _TEXT},
        "ipv6": {"nft": _TEXT, "legacy": _TEXT},
    },
    "ipsets": _TEXT,
    "nft": {
        "misprinted": {"ipv4": [_CHAIN], "ipv6": [_CHAIN]},
        "base_chains": [
            {
                "family!": _TEXT,
                "table!": _TEXT,
                "chain!": _TEXT,
                "hook!": _TEXT,
                "priority!": _NUMBER,
                "policy": _TEXT,
                "rules": _NUMBER,
                "stops!": _FLAG,
            }
        ],
        "docker": [{_EACH: _ANY}],
    },
    "docker": {
        "version": {"Version": _TEXT, "ApiVersion": _TEXT},
        "info": {
            "ServerVersion": _TEXT,
            "FirewallBackend": {"Driver": _TEXT},
            "LiveRestoreEnabled": _FLAG,
            "Swarm": {"LocalNodeState": _TEXT, "ControlAvailable": _FLAG},
            "SecurityOptions": [_TEXT],
            "IPv4Forwarding": _FLAG,
            "OperatingSystem": _TEXT,
        },
        "daemon": {_EACH: _ANY},
        "containers": [
            {
                "Id!": _TEXT,
                "Names": [_TEXT],
                "Image": _TEXT,
                "Ports": [{"IP": _ADDRESS, "PrivatePort!": _PORT, "PublicPort": _PORT, "Type": _TEXT}],
                "Labels": {_EACH: _TEXT},
                "State": _TEXT,
                "HostConfig": {"NetworkMode": _TEXT},
                "NetworkSettings": {
                    "Networks": {
                        _EACH: {
                            "NetworkID": _TEXT,
                            "IPAddress": _ADDRESS,
                            "GlobalIPv6Address": _ADDRESS,
                            "IPAMConfig": {"IPv4Address": _ADDRESS, "IPv6Address": _ADDRESS},
                        }
                    }
                },
            }
        ],
        "networks": [
            {
                "Name!": _TEXT,
                "Id!": _TEXT,
                "Driver": _TEXT,
                "Scope": _TEXT,
                "EnableIPv4": _FLAG,
                "EnableIPv6": _FLAG,
                "Internal": _FLAG,
                "Ingress": _FLAG,
                "IPAM": {"Config": [{"Subnet": _CIDR}]},
                "Options": {_EACH: _TEXT},
            }
        ],
    },
    "services": [
        {
            "name": _TEXT,
            "ports": [{"protocol!": _TEXT, "published_port!": _PORT, "target_port!": _PORT, "mode": _TEXT}],
        }
    ],
    "proxies": [
        {
            "protocol!": _TEXT,
            "host_address!": _ADDRESS,
            "host_port!": _PORT,
            "container_address!": _ADDRESS,
            "container_port!": _PORT,
        }
    ],
    "listening": [{"protocol!": _TEXT, "address!": _ADDRESS, "port!": _PORT}],
    "sysctls": {_EACH: _TEXT},
    "interfaces": [{"name!": _TEXT, "kind": _TEXT, "up": _FLAG, "master": _TEXT, "addresses": [_CIDR]}],
    "routes": [
        {
            "family!": _FAMILY,
            "destination!": _CIDR,
            "gateway": _ADDRESS,
            "interface": _TEXT,
            "table": _TEXT,
            "type": _TEXT,
            "metric": _NUMBER,
        }
    ],
    "saved": {_EACH: _TEXT},
}
_HOLES = [{"part!": _TEXT, "reason!": _TEXT}]

#: Where policies are stored on a host (see C(_store)).
STORED_POLICIES = "/etc/quaywall/policies.json"

#: All parts of a document, in its order.
PARTS = tuple(_SHAPES)

_Path = t.Tuple[t.Union[str, int], ...]


def _said(path: _Path) -> str:
    """A path as a person writes it; names in it may be anything."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += "[%d]" % step
        elif re.match(r"[A-Za-z0-9_.-]{1,64}\Z", step):
            text += "." + step if text else step
        else:
            text += "[%s]" % json.dumps(step[:64])
    return text


def _what(value: t.Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "the text %s" % json.dumps(value if len(value) <= 40 else value[:37] + "...")
    if isinstance(value, t.Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, int) and abs(value) < 10**18:
        return "the number %d" % value
    return "a number" if isinstance(value, (int, float)) else "something else"


def _fail(path: _Path, wanted: str, value: t.Any) -> t.NoReturn:
    raise SnapshotError("%s must be %s, and is %s" % (_said(path), wanted, _what(value)))


def _check(value: t.Any, shape: t.Any, path: _Path) -> None:
    """Raise SnapshotError unless the value has the shape."""
    if isinstance(shape, _Kind):
        if not shape.fits(value):
            _fail(path, shape.words, value)
    elif isinstance(shape, list):
        if not isinstance(value, (list, tuple)):
            _fail(path, "a list", value)
        for index, item in enumerate(value):
            _check(item, shape[0], (*path, index))
    else:
        if not isinstance(value, t.Mapping):
            _fail(path, "a mapping", value)
        if _EACH in shape:
            for key, item in value.items():
                if not isinstance(key, str):
                    _fail(path, "a mapping with texts as keys", value)
                if item is not None:
                    _check(item, shape[_EACH], (*path, key))
            return
        for name, inner in shape.items():
            key = name.rstrip("!")
            item = value.get(key)
            if item is not None or name != key:
                _check(item, inner, (*path, key))


def dump_fault(text: str) -> str:
    """What shows that a text is not the whole output of iptables-save, in a few words; empty if nothing does."""
    begun, last = False, ""
    for line in text.split("\n"):
        if line and not line.isspace():
            last = line
            if not begun and line[0] != "#":
                if line[0] != "*":
                    return "it does not begin with a table as iptables-save prints it (*filter)"
                begun = True
    if last.startswith("# G") and (last + "# Generated by"[len(last) :]).startswith("# Generated by"):
        return "it ends before its first table"
    if begun:
        # Only comments follow the last COMMIT, such as the date and names of incompatible tables.
        tail = [line for line in text.rsplit("COMMIT", 1)[-1].split("\n") if line and not line.isspace()]
        if ("\n" + text).rfind("\nCOMMIT") < ("\n" + text).rfind("\n*") or any(line[0] != "#" for line in tail):
            return "it ends before the COMMIT of its last table"
    return ""


def check_part(part: str, value: t.Any) -> None:
    """Raise SnapshotError unless this is what :func:`from_json` takes as that part; never fails otherwise."""
    _check(value, _SHAPES[part], (part,))
    if part == "iptables":
        for family in FAMILIES:
            for variant in VARIANTS:
                fault = dump_fault((value.get(family) or {}).get(variant) or "")
                if fault:
                    raise SnapshotError("iptables.%s.%s is no whole dump, as %s" % (family, variant, fault))
    elif part == "ipsets":
        parse_sets(value)


# From a document -----------------------------------------------------------------------------------------------------

_SET_KIND = re.compile(r" ((?:hash|bitmap|list):[a-z0-9,]+)(?= |\Z)")
_NETMASK = re.compile(r" netmask ([0-9]{1,3})(?= |\Z)")
# What the entries do not show: they match but for these, or by a mask, or by the beginning of a name.
_HIDDEN = frozenset(("nomatch", "wildcard"))
_MASKS = (" bitmask ", " markmask ")


def _set_head(line: str) -> t.Optional[t.Tuple[IpSet, str]]:
    """The set, still empty, and what to append to its addresses, by C(create NAME TYPE ...)."""
    kind = _SET_KIND.search(line, 7)
    if kind is None:
        return None
    options = line[kind.end() :]
    netmask = _NETMASK.search(options)
    family = IPV6 if " family inet6 " in options + " " else IPV4
    complete = not any(mask in options for mask in _MASKS)
    return IpSet(line[7 : kind.start()], kind.group(1), family, (), complete), "/" + netmask.group(1) if netmask else ""


def parse_sets(text: str) -> t.Dict[str, IpSet]:
    """What C(ipset save) printed. Names of sets may hold blanks, and are not quoted.

    :raises SnapshotError: it is something else.
    """
    found: t.Dict[str, IpSet] = {}
    entries: t.Dict[str, t.List[str]] = {}
    masks: t.Dict[str, str] = {}
    name = ""
    for number, line in enumerate(text.split("\n"), 1):
        words: t.List[str] = []
        if line.startswith("create "):
            head = _set_head(line)
            if head is not None:
                name = head[0].name
                found[name], masks[name] = head
                entries[name] = []
                continue
        elif line.startswith("add "):
            # An entry follows its set, or is that of another set with a name that it begins with.
            if not line.startswith(name + " ", 4):
                name = max((known for known in found if line.startswith(known + " ", 4)), key=len, default=name)
            if name in found and line.startswith(name + " ", 4):
                words = line[5 + len(name) :].split(" ")
        elif not line or line.isspace():
            continue
        if not words or not words[0]:
            raise SnapshotError("line %d of ipsets is none that ipset save prints, but %s" % (number, _what(line)))
        if _HIDDEN & set(words[1:]) or (found[name].kind == "list:set" and len(words) > 1):
            # In a list a set's name may hold blanks, and look like options.
            found[name] = found[name]._replace(complete=False)
        else:
            address, comma, rest = words[0].partition(",")
            entries[name].append(address + masks[name] + comma + rest)
    return {key: item._replace(entries=tuple(entries[key])) for key, item in found.items()}


def _engine(docker: Json) -> Engine:
    info = docker.get("info") or {}
    text = (docker.get("version") or {}).get("Version") or info.get("ServerVersion") or ""
    version = re.match(r"[0-9]{1,6}(?:\.[0-9]{1,6}){0,3}", text)
    return Engine(
        version=tuple(int(number) for number in version.group().split(".")) if version else (),
        backend=(info.get("FirewallBackend") or {}).get("Driver") or "",
        live_restore=bool(info.get("LiveRestoreEnabled")),
        swarm=(info.get("Swarm") or {}).get("LocalNodeState") == "active",
        options={key: value for key, value in (docker.get("daemon") or {}).items() if value is not None},
    )


def _nft(data: Json) -> Nft:
    misprinted = data.get("misprinted") or {}
    return Nft(
        misprinted={
            family: frozenset(
                (table, chain)
                for table, _blank, chain in (item.partition(" ") for item in misprinted.get(family) or ())
            )
            for family in FAMILIES
        },
        base_chains=tuple(
            BaseChain(
                item["family"],
                item["table"],
                item["chain"],
                item["hook"],
                item["priority"],
                item.get("policy") or "accept",
                item.get("rules") or 0,
                item["stops"],
            )
            for item in data.get("base_chains") or ()
        ),
        docker=tuple(data.get("docker") or ()),
    )


def _swarm_ports(services: t.Iterable[Json]) -> t.Tuple[SwarmPort, ...]:
    return tuple(
        SwarmPort(
            service.get("name") or "",
            port["protocol"],
            port["published_port"],
            port["target_port"],
            port.get("mode") or "ingress",
        )
        for service in services
        for port in service.get("ports") or ()
    )


def _saved_family(path: str) -> str:
    return IPV6 if path.endswith("v6") or "ip6tables" in path else IPV4


def from_json(data: t.Any) -> Snapshot:
    """The snapshot that a document holds.

    :raises SnapshotError: it is none, or another version, or not whole.
    """
    if not isinstance(data, t.Mapping):
        raise SnapshotError(
            _what(data),
            "A snapshot is a mapping, and this is %s: give what docker_fw_audit returned as snapshot, from a file with "
            "snapshot: \"{{ lookup('file', 'host.json') | from_json }}\".",
        )
    version = data.get("quaywall_snapshot")
    if version is None:
        raise SnapshotError(
            "it has no key quaywall_snapshot",
            "This is no snapshot, as %s: give what docker_fw_audit (return_snapshot: true) returned as snapshot, not "
            "its whole result.",
        )
    if not _is_number(version) or version != VERSION:
        raise SnapshotError(
            _what(version),
            "This snapshot's version is %%s, and this collection reads version %d: take it with the same version of "
            "quaywall.docker that judges it." % VERSION,
        )
    listed = data.get("holes")
    if listed is not None:
        _check(listed, _HOLES, ("holes",))
    holes = [Hole(item["part"], item["reason"]) for item in listed or ()]
    told = {hole.part for hole in holes}
    parts: t.Dict[str, t.Any] = {}
    for part in PARTS:
        parts[part] = data.get(part)
        if parts[part] is not None:
            check_part(part, parts[part])
        elif part not in told and not (part == "ipsets" and part in data):
            holes.append(Hole(part, "The snapshot has no part %s, so what needs it was not judged." % part))

    iptables, docker, nft = parts["iptables"] or {}, parts["docker"], parts["nft"]
    inventory = None
    if docker is not None:
        if docker.get("containers") is not None and docker.get("networks") is not None:
            inventory = parse_inventory(docker["containers"], docker["networks"])
        elif "docker" not in told:
            holes.append(Hole("docker", "The snapshot has no docker.containers or no docker.networks."))
    saved: t.Dict[str, Dump] = {}
    files = dict(parts["saved"] or {})
    stored = files.pop(STORED_POLICIES, None) is not None
    for path, text in files.items():
        # A file that somebody wrote by hand is no fault of the snapshot's.
        fault = dump_fault(text or "")
        if fault:
            holes.append(Hole("saved", "%s is no whole dump of rules, as %s: save it anew." % (path, fault)))
        elif text is not None:
            saved[path] = parse_dump(text, _saved_family(path))
    texts = {
        (family, variant): (iptables.get(family) or {}).get(variant) for family in FAMILIES for variant in VARIANTS
    }
    return Snapshot(
        data=data,
        dumps={key: parse_dump(text, key[0]) for key, text in texts.items() if text is not None},
        default_variants={
            family: variant
            for family, variant in (iptables.get("default") or {}).items()
            if family in FAMILIES and variant
        },
        sets=None if parts["ipsets"] is None else parse_sets(parts["ipsets"]),
        nft=None if nft is None else _nft(nft),
        engine=None if docker is None else _engine(docker),
        inventory=inventory,
        swarm_ports=_swarm_ports(parts["services"] or ()),
        proxies=tuple(Proxy(*(item[key] for key in Proxy._fields)) for item in parts["proxies"] or ()),
        listening=tuple(Socket(*(item[key] for key in Socket._fields)) for item in parts["listening"] or ()),
        interfaces=tuple(
            Interface(
                item["name"],
                item.get("kind") or "",
                bool(item.get("up")),
                item.get("master") or "",
                tuple(item.get("addresses") or ()),
            )
            for item in parts["interfaces"] or ()
        ),
        routes=tuple(
            Route(
                item["family"],
                item["destination"],
                item.get("gateway") or "",
                item.get("interface") or "",
                item.get("table") or "main",
                item.get("type") or "unicast",
                item.get("metric") or 0,
            )
            for item in parts["routes"] or ()
        ),
        sysctls={key: value for key, value in (parts["sysctls"] or {}).items() if value is not None},
        saved=saved,
        stored=stored,
        holes=tuple(holes),
    )


def to_json(snapshot: Snapshot) -> Json:
    """The document that :func:`from_json` makes this snapshot from."""
    return snapshot.data


def docker_variant(snapshot: Snapshot, family: str) -> str:
    """The variant of iptables that Docker uses: it holds Docker's chains, or DOCKER-USER alone, or is the default.

    Where both variants hold them, the default decides, as Docker runs C(iptables). Where nothing does, what is there.
    """
    default = snapshot.default_variants.get(family, "")
    order = [variant for variant in (default, *VARIANTS) if variant]
    there = {variant: snapshot.dumps[family, variant] for variant in VARIANTS if (family, variant) in snapshot.dumps}
    for holds in (docker_manages, lambda table: DOCKER_USER in table.chains):
        for variant in order:
            table = there[variant].tables.get("filter") if variant in there else None
            if table is not None and holds(table):
                return variant
    if default:
        return default
    return LEGACY if LEGACY in there and NFT not in there else NFT
