# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots of hosts as JSON documents (format version 1), for the tests of what judges them.

Four sources: real hosts that were captured (:func:`captured`), cases of real people (:func:`fixture`), hosts made up
from a list of containers (:func:`host`), and big ones (:func:`large`). What is made up is what Docker Engine 20.10,
26.1, 28.5 and 29.7 program for these containers, chain by chain: test__snapshots.py compares it with the captures.

Nothing here uses the code under test. Every function returns a new document and changes none that it is given.
"""

from __future__ import annotations

import copy
import hashlib
import ipaddress
import json
import random
import re
import typing as t

import pytest

from ansible_collections.quaywall.docker.tests.unit.support import SHARED, absent, capture, shared_text

Document = t.Dict[str, t.Any]
Lines = t.Iterable[str]

IPV4 = "ipv4"
IPV6 = "ipv6"
FAMILIES = (IPV4, IPV6)

#: The hosts' own addresses, and the routers' beyond them.
OUTSIDE = {IPV4: "203.0.113.1/24", IPV6: "2001:db8:113::1/64"}
ROUTERS = {IPV4: "203.0.113.254", IPV6: "2001:db8:113::fe"}
_EVERYWHERE = {IPV4: "0.0.0.0", IPV6: "::"}
_DEFAULT = {IPV4: "0.0.0.0/0", IPV6: "::/0"}

CAPTURES = (
    "docker-20.10-iptables-nft",
    "docker-26.1-iptables-nft",
    "docker-28.5-iptables-nft",
    "docker-29.7-iptables-nft",
    "docker-29.7-nftables",
)

#: Engine -> its full version, the newest API that it speaks, and the iptables that it was captured with.
ENGINES = {
    "20.10": ("20.10.24", "1.41", "1.8.9"),
    "26.1": ("26.1.5", "1.45", "1.8.11"),
    "28.5": ("28.5.2", "1.51", "1.8.13"),
    "29.7": ("29.7.2", "1.55", "1.8.13"),
}


# Dumps -----------------------------------------------------------------------------------------------------------

_BUILTIN = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}


class _Table:
    """One table of a dump, to be changed as iptables-restore --noflush does."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.before: t.List[str] = []
        self.heads = {chain: ":%s ACCEPT [0:0]" % chain for chain in _BUILTIN.get(name, ())}
        self.rules: t.Dict[str, t.List[str]] = {chain: [] for chain in self.heads}

    def _chain(self, chain: str) -> t.List[str]:
        if chain not in self.rules:
            raise ValueError("table %s has no chain %s" % (self.name, chain))
        return self.rules[chain]

    def add_chain(self, *chains: str) -> None:
        for chain in chains:
            self.heads[chain] = ":%s - [0:0]" % chain
            self.rules[chain] = []

    def append(self, chain: str, *rules: str) -> None:
        self._chain(chain).extend(rules)

    def insert(self, chain: str, *rules: str, at: int = 0) -> None:
        """Above the other rules (or above the one at this index), in the order given."""
        self._chain(chain)[at:at] = rules

    def apply(self, line: str, family: str) -> None:
        """One line of iptables-restore's language: a chain, or a command such as -A, -I, -D, -R, -F, -X, -N, -P."""
        if line.startswith(":"):
            chain, policy = line[1:].split(" ")[:2]
            if policy == "-" or chain not in self.rules:
                self.rules[chain] = []
            self.heads[chain] = line
            return
        command, _blank, rest = line.partition(" ")
        chain, _blank, rest = rest.partition(" ")
        if command == "-N":
            self.add_chain(chain)
            return
        rules = self._chain(chain)
        number = re.match(r"(\d+)(?: |\Z)", rest)
        if number is not None and command in ("-I", "-D", "-R"):
            index, rest = int(number.group(1)) - 1, rest[number.end() :]
            if not 0 <= index < len(rules) + (command == "-I"):
                raise ValueError("%s: the chain has %d rules" % (line, len(rules)))
        else:
            index = -1
        rule = spelled(rest, family)
        if command == "-A":
            rules.append(rule)
        elif command == "-I":
            rules.insert(max(index, 0), rule)
        elif command == "-R":
            rules[index] = rule
        elif command == "-D":
            del rules[rules.index(rule) if index < 0 else index]
        elif command == "-F":
            rules.clear()
        elif command == "-P":
            self.heads[chain] = ":%s %s [0:0]" % (chain, rest)
        elif command == "-X" and not rules:
            del self.heads[chain], self.rules[chain]
        else:
            raise ValueError("cannot do %s" % line)

    def render(self) -> t.List[str]:
        """Built-in chains first, then the others by name, each with its rules in the same order: so iptables-save."""
        builtin = [chain for chain in _BUILTIN.get(self.name, ()) if chain in self.heads]
        names = builtin + sorted(set(self.heads) - set(builtin))
        lines = [*self.before, "*" + self.name, *(self.heads[name] for name in names)]
        for name in names:
            lines.extend(("-A %s %s" % (name, rule)).rstrip(" ") for rule in self.rules[name])
        return [*lines, "COMMIT"]


def _logical_lines(text: str) -> t.Iterator[str]:
    """Lines of a dump; one whose quotes are not closed goes on in the next."""
    held = ""
    for line in text.split("\n"):
        held = held + "\n" + line if held else line
        if held[:1] != "-" or len(re.findall(r'(?<!\\)(?:\\\\)*"', held)) % 2 == 0:
            yield held
            held = ""
    if held:
        yield held


def _read(text: str) -> t.Tuple[t.List[_Table], t.List[str]]:
    """The tables of a dump, and the comments below the last."""
    tables: t.List[_Table] = []
    comments: t.List[str] = []
    table = _Table("")
    for line in _logical_lines(text):
        if line[:1] == "*":
            table = _Table(line[1:])
            table.heads, table.rules = {}, {}
            table.before, comments = comments, []
            tables.append(table)
        elif line[:1] == ":":
            chain = line[1:].split(" ")[0]
            table.heads[chain] = line
            table.rules[chain] = []
        elif line[:3] == "-A ":
            chain, _blank, rule = line[3:].partition(" ")
            table.rules[chain].append(rule)
        elif line and line != "COMMIT":
            comments.append(line)
    return tables, comments


def _written(tables: t.Iterable[_Table], comments: t.Sequence[str] = ()) -> str:
    lines = [line for table in tables for line in table.render()]
    return "".join(line + "\n" for line in [*lines, *comments])


def _stamped(tables: t.Sequence[_Table], version: str, family: str) -> str:
    """The text of iptables-save itself, with its two comments about each table."""
    command = "iptables-save" if family == IPV4 else "ip6tables-save"
    lines: t.List[str] = []
    for table in tables:
        lines.append("# Generated by %s v%s (nf_tables) on Mon Nov 23 03:18:15 2026" % (command, version))
        lines.extend(table.render())
        lines.append("# Completed on Mon Nov 23 03:18:15 2026")
    return "".join(line + "\n" for line in lines)


_STATES = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")
_HEAD = ("-s", "-d", "-i", "-o", "-p")


def spelled(rule: str, family: str = IPV4) -> str:
    """The rule as iptables-save prints it, as far as rules in tests go; a text that is unclear stays as it is.

    Addresses and interfaces first, networks in their shortest form (and none that is everything), C(-m tcp) for a
    port, what C(--syn) means, the states' order, and what REJECT does when it is not told.
    """
    words = re.findall(r'"(?:[^"\\]|\\.)*"|\S+', rule)
    if " ".join(words) != rule:
        return rule
    head: t.Dict[str, t.List[str]] = {}
    rest: t.List[str] = []
    index = 0
    while index < len(words):
        option = index + (words[index] == "!")
        if option + 1 < len(words) and words[option] in _HEAD and words[option] not in head:
            name, value = words[option], words[option + 1]
            if name in ("-s", "-d"):
                network = ipaddress.ip_network(value, strict=False)
                value = "" if network.prefixlen == 0 and option == index else str(network)
            head[name] = [*words[index:option], name, value] if value else []
            index = option + 2
        else:
            rest.append(words[index])
            index += 1
    if "--syn" in rest:
        at = rest.index("--syn")
        rest[at : at + 1] = ["--tcp-flags", "FIN,SYN,RST,ACK", "SYN"]
    protocol = head.get("-p", [""])[-1]
    if protocol in ("tcp", "udp", "sctp") and "-m %s" % protocol not in rule:
        ports = [at for at, word in enumerate(rest) if word in ("--dport", "--sport", "--tcp-flags")]
        if ports:
            first = ports[0] - (rest[ports[0] - 1 : ports[0]] == ["!"])
            rest[first:first] = ["-m", protocol]
    for at, word in enumerate(rest[:-1]):
        if word in ("--ctstate", "--state"):
            given = rest[at + 1].split(",")
            rest[at + 1] = ",".join(sorted(given, key=lambda state: (*_STATES, state).index(state)))
    if rest[-2:] == ["-j", "REJECT"]:
        rest += ["--reject-with", "icmp-port-unreachable" if family == IPV4 else "icmp6-port-unreachable"]
    return " ".join([word for name in _HEAD for word in head.get(name, ())] + rest)


def with_rules(document: Document, family: str, table: str, lines: Lines, variant: str = "nft") -> Document:
    """The document with the lines carried out in one of its dumps, as C(iptables-restore --noflush) would.

    Lines are chains (C(:MYCHAIN - [0:0])) and commands (C(-A FORWARD -j X), C(-I DOCKER-USER 1 ...), C(-D FORWARD 1)).
    A dump or a table that is not there is made, with its own chains.
    """
    result = copy.deepcopy(document)
    dumps = result["iptables"][family]
    tables, comments = _read(dumps.get(variant) or "")
    found = [item for item in tables if item.name == table]
    if not found:
        found = [_Table(table)]
        tables.extend(found)
    for line in lines:
        found[0].apply(line, family)
    dumps[variant] = _written(tables, comments)
    return result


def without_rules(
    document: Document,
    family: str,
    predicate: t.Callable[[str], bool],
    table: t.Optional[str] = None,
    variant: str = "nft",
) -> Document:
    """The document without the rules of one dump (or of one table of it) of which the predicate is true.

    The predicate is given the rule as a line: C(-A FORWARD -j DOCKER-USER).
    """
    result = copy.deepcopy(document)
    dumps = result["iptables"][family]
    tables, comments = _read(dumps.get(variant) or "")
    for item in tables:
        if table is None or item.name == table:
            for chain, rules in item.rules.items():
                rules[:] = [rule for rule in rules if not predicate("-A %s %s" % (chain, rule))]
    dumps[variant] = _written(tables, comments)
    return result


def rules_of(document: Document, family: str, table: str, chain: str, variant: str = "nft") -> t.List[str]:
    """The rules of a chain, without C(-A CHAIN); none if there is no such chain."""
    tables, _comments = _read(document["iptables"][family].get(variant) or "")
    return [rule for item in tables if item.name == table for rule in item.rules.get(chain, ())]


def edited(document: Document, **edits: t.Any) -> Document:
    """The document with other parts: a mapping is merged into the one that is there, anything else replaces it."""

    def merge(old: t.Any, new: t.Any) -> t.Any:
        if isinstance(old, dict) and isinstance(new, dict):
            return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}
        return copy.deepcopy(new)

    result: Document = merge(copy.deepcopy(document), edits)
    return result


def _with_docker_user(document: Document, docker_user: Lines, docker_user6: Lines) -> Document:
    for family, given in ((IPV4, docker_user), (IPV6, docker_user6)):
        rules = list(given)
        if rules:
            lines = ["-I DOCKER-USER %d %s" % (number, rule) for number, rule in enumerate(rules, 1)]
            document = with_rules(document, family, "filter", lines)
    return document


# The host around the rules ---------------------------------------------------------------------------------------


def _family(address: str) -> str:
    return IPV6 if ":" in address else IPV4


def _hash(text: str) -> str:
    """Something that looks like an ID of Docker's, always the same for the same text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _interface(name: str, addresses: t.Sequence[str] = (), kind: str = "", master: str = "") -> Document:
    return {"name": name, "kind": kind, "up": True, "master": master, "addresses": list(addresses)}


def _route(
    destination: str,
    interface: str,
    gateway: str = "",
    metric: int = 0,
    table: str = "main",
    kind: str = "unicast",
) -> Document:
    return {
        "family": _family(destination),
        "destination": destination,
        "gateway": gateway,
        "interface": interface,
        "table": table,
        "type": kind,
        "metric": metric,
    }


def _routes(interfaces: t.Iterable[Document], gateways: t.Mapping[str, str]) -> t.List[Document]:
    """The default routes, and those that the kernel makes for each address: C(ip route show table all)."""
    default = [
        _route(_DEFAULT[family], "eth0", gateway, 1024 if family == IPV6 else 0) for family, gateway in gateways.items()
    ]
    found: t.Dict[t.Tuple[str, str, str], Document] = {}
    for item in interfaces:
        name = item["name"]
        for address in item["addresses"]:
            at = ipaddress.ip_interface(address)
            routes = [_route("%s/%d" % (at.ip, at.max_prefixlen), name, table="local", kind="local")]
            if at.version == 6:
                routes.append(_route(str(at.network), name, metric=256))
                if name != "lo":
                    routes.append(_route("ff00::/8", name, metric=256, table="local", kind="multicast"))
            else:
                last = "%s/32" % at.network.broadcast_address
                routes.append(_route(last, name, table="local", kind="broadcast"))
                if name == "lo":
                    routes.append(_route(str(at.network), name, table="local", kind="local"))
                else:
                    routes.append(_route(str(at.network), name))
            for route in routes:
                found[name, route["table"], route["destination"]] = route
    return default + list(found.values())


def _bridge_addresses(network: Document) -> t.List[str]:
    """The addresses of a network's bridge: its gateways, by default the first address of each subnet."""
    found = []
    for config in network["IPAM"]["Config"] or ():
        subnet = ipaddress.ip_network(config["Subnet"])
        gateway = config.get("Gateway") or str(subnet[1])
        found.append("%s/%d" % (gateway, subnet.prefixlen))
    if any(":" in address for address in found):
        found.append("fe80::1/64")
    return found


def _bridge(network: Document) -> str:
    options = network["Options"] or {}
    return str(options.get("com.docker.network.bridge.name") or "br-" + network["Id"][:12])


def _interfaces(docker: Document, outside: t.Sequence[str]) -> t.List[Document]:
    """Loopback, eth0, the networks' bridges, and the outer end of every running container's veth pairs."""
    bridges = {item["Name"]: _bridge(item) for item in docker["networks"] if item["Driver"] == "bridge"}
    found = [_interface("lo", ["127.0.0.1/8", "::1/128"]), _interface("eth0", outside)]
    for network in docker["networks"]:
        if network["Driver"] == "bridge":
            found.append(_interface(bridges[network["Name"]], _bridge_addresses(network), "bridge"))
    for container in docker["containers"]:
        for name, endpoint in container["NetworkSettings"]["Networks"].items():
            if name in bridges and endpoint["IPAddress"]:
                found.append(_interface("veth" + _hash(container["Id"] + name)[:7], (), "veth", bridges[name]))
    return found


def _publishing(networks: t.Mapping[str, Document]) -> t.Optional[Document]:
    """The endpoint that a container's ports are published on: one with IPv6 first, then by name (see the captures)."""
    ordered = sorted(networks.items(), key=lambda item: (not item[1]["GlobalIPv6Address"], item[0]))
    return ordered[0][1] if ordered else None


def _proxies(docker: Document) -> t.List[Document]:
    """One docker-proxy for each binding; on an address of IPv6 it leads to the container's IPv4 address at need."""
    found = []
    for container in docker["containers"]:
        endpoint = _publishing(container["NetworkSettings"]["Networks"])
        for port in container["Ports"]:
            if endpoint is not None and port.get("PublicPort"):
                address = endpoint["IPAddress"]
                if ":" in port["IP"]:
                    address = endpoint["GlobalIPv6Address"] or address
                found.append(
                    {
                        "protocol": port["Type"],
                        "host_address": port["IP"],
                        "host_port": port["PublicPort"],
                        "container_address": address,
                        "container_port": port["PrivatePort"],
                    }
                )
    return found


def _socket(protocol: str, address: str, port: int) -> Document:
    return {"protocol": protocol, "address": address, "port": port}


def _listening(bindings: t.Iterable[Document], more: t.Iterable[Document] = ()) -> t.List[Document]:
    found = list(more)
    found += [_socket(item["protocol"], item["host_address"], item["host_port"]) for item in bindings]
    return found


def _sshd() -> t.List[Document]:
    return [_socket("tcp", "0.0.0.0", 22), _socket("tcp", "::", 22)]


def _sysctls(bridges: t.Iterable[str], ipv6: bool, bridge_nf: bool, hairpin: bool) -> t.Dict[str, str]:
    """Docker switches forwarding on; without its userland proxy it lets bridges route 127.0.0.0/8 too."""
    found = {
        "net.ipv4.ip_forward": "1",
        "net.ipv6.conf.all.forwarding": "1" if ipv6 else "0",
        "net.ipv4.conf.all.route_localnet": "0",
        "net.ipv4.conf.eth0.route_localnet": "0",
        "net.ipv4.ip_local_port_range": "32768\t60999",
    }
    for bridge in bridges:
        found["net.ipv4.conf.%s.route_localnet" % bridge] = "1" if hairpin else "0"
    if bridge_nf:
        found["net.bridge.bridge-nf-call-iptables"] = "1"
        found["net.bridge.bridge-nf-call-ip6tables"] = "1"
    return found


def _document(docker: t.Optional[Document], **parts: t.Any) -> Document:
    """A document in which nothing is missing and nothing could not be read."""
    result: Document = {
        "quaywall_snapshot": 1,
        "collected": "2026-11-23T03:18:15Z",
        "iptables": {},
        "ipsets": "",
        "nft": {"misprinted": {IPV4: [], IPV6: []}, "base_chains": [], "docker": []},
        "docker": docker,
        "services": [],
        "proxies": [],
        "listening": [],
        "sysctls": {},
        "interfaces": [],
        "routes": [],
        "saved": {},
        "holes": [],
    }
    assert set(parts) <= set(result), sorted(parts)
    result.update(parts)
    return result


def _iptables(version: str, ipv4: t.Optional[str], ipv6: t.Optional[str]) -> Document:
    return {
        "version": version,
        "default": {IPV4: "nft", IPV6: "nft"},
        IPV4: {"nft": ipv4, "legacy": None},
        IPV6: {"nft": ipv6, "legacy": None},
    }


# Captures --------------------------------------------------------------------------------------------------------

_ENDPOINT = ("NetworkID", "IPAddress", "GlobalIPv6Address", "IPAMConfig")
_NETWORK = ("Name", "Id", "Driver", "Scope", "EnableIPv4", "EnableIPv6", "Internal", "Ingress", "Options")
_INFO = (
    "ServerVersion",
    "FirewallBackend",
    "LiveRestoreEnabled",
    "Swarm",
    "SecurityOptions",
    "IPv4Forwarding",
    "OperatingSystem",
)


def _cut(answers: t.Mapping[str, t.Any]) -> Document:
    """What a snapshot keeps of the API's answers."""
    containers = []
    for item in answers["containers"]:
        networks = item["NetworkSettings"]["Networks"]
        kept = {name: {key: value.get(key) for key in _ENDPOINT} for name, value in networks.items()}
        containers.append(
            {
                "Id": item["Id"],
                "Names": item["Names"],
                "Image": item["Image"],
                "Ports": item["Ports"],
                "Labels": {key: value for key, value in item["Labels"].items() if key.startswith("com.docker.")},
                "State": item["State"],
                "HostConfig": {"NetworkMode": item["HostConfig"]["NetworkMode"]},
                "NetworkSettings": {"Networks": kept},
            }
        )
    networks = []
    for item in answers["networks"]:
        network = {key: item[key] for key in _NETWORK if key in item}
        networks.append({**network, "IPAM": {"Config": item["IPAM"]["Config"]}})
    return {
        "version": {key: answers["version"][key] for key in ("Version", "ApiVersion")},
        "info": {key: answers["info"][key] for key in _INFO if key in answers["info"]},
        "daemon": {},
        "containers": containers,
        "networks": networks,
    }


def _host_ports(item: t.Mapping[str, t.Any]) -> t.List[int]:
    """Where a container with the host's network listens: the workloads of the captures are told by -p."""
    return [int(port) for port in re.findall(r" -p (\d+)", item.get("Command") or "")]


def _nft(ruleset: t.Iterable[Document]) -> Document:
    """What a snapshot keeps of C(nft -j list ruleset), where all is either iptables' or Docker's, as on these hosts."""
    docker = []
    for item in ruleset:
        (inner,) = item.values()
        table = inner.get("name") if "table" in item else inner.get("table")
        if table == "docker-bridges":
            docker.append(item)
        else:
            assert table is None or table in _BUILTIN, table
    return {"misprinted": {IPV4: [], IPV6: []}, "base_chains": [], "docker": docker}


def captured(name: str, docker_user: Lines = (), docker_user6: Lines = (), **edits: t.Any) -> Document:
    """A captured host, with what was not captured (interfaces, routes, proxies, …) as such a host has it.

    :param name: a folder of the captures; the test is skipped where they are not.
    :param docker_user: rules, such as C(-p tcp --dport 80 -j DROP), above those that are in DOCKER-USER already.
    :param docker_user6: the same for IPv6.
    :param edits: see :func:`edited`.
    """
    answers = capture(name)
    docker = _cut(answers)
    folder = SHARED / "captures" / name
    texts: t.Dict[str, t.Optional[str]] = {}
    for family, file in ((IPV4, "iptables-save.txt"), (IPV6, "ip6tables-save.txt")):
        path = folder / file
        texts[family] = shared_text(path) if path.is_file() else None
    version = re.search(r"iptables-save v(\S+)", texts[IPV4] or "")
    ruleset = json.loads((folder / "nft-ruleset.json").read_text(encoding="utf-8"))["nftables"]
    interfaces = _interfaces(docker, list(OUTSIDE.values()))
    proxies = _proxies(docker)
    more = _sshd()
    for item in answers["containers"]:
        if item["HostConfig"]["NetworkMode"] == "host":
            more += [_socket("tcp", "::", port) for port in _host_ports(item)]
    bridges = [item["name"] for item in interfaces if item["kind"] == "bridge"]
    document = _document(
        docker,
        iptables=_iptables(version.group(1) if version else "", texts[IPV4], texts[IPV6]),
        nft=_nft(ruleset),
        proxies=proxies,
        listening=_listening(proxies, more),
        sysctls=_sysctls(bridges, True, True, False),
        interfaces=interfaces,
        routes=_routes(interfaces, ROUTERS),
    )
    return edited(_with_docker_user(document, docker_user, docker_user6), **edits)


# Cases of real people --------------------------------------------------------------------------------------------


def fixtures() -> t.List[t.Any]:
    """Parameters for a test: (case, variant) of each fixture, or one skipped test that says so."""
    found = sorted((SHARED / "cases" / "fixtures").glob("*/*.probes.json"))
    if not found:
        why = pytest.mark.skip(reason=absent("cases/fixtures"))
        return [pytest.param(None, None, id="absent", marks=why)]
    pairs = [(path.parent.name, path.name[: -len(".probes.json")]) for path in found]
    return [pytest.param(case, variant, id="%s-%s" % (case, variant)) for case, variant in pairs]


def probes(case: str, variant: str) -> Document:
    """The topology of a fixture and what the kernel did; skips the test that asks where the cases are not."""
    path = SHARED / "cases" / "fixtures" / case / (variant + ".probes.json")
    if not path.is_file():
        pytest.skip(absent("cases/fixtures/%s/%s.probes.json" % (case, variant)))
    result: Document = json.loads(path.read_text(encoding="utf-8"))
    return result


def fixture(case: str, variant: str, **edits: t.Any) -> Document:
    """The host of a fixture; its probes are those of :func:`probes`.

    A network that is not C(bridge) is a bridge of that name. A probe's source that is no container is a machine behind
    such a bridge that Docker does not know.
    """
    given = probes(case, variant)
    nftables = variant.startswith("nft")
    engine = "29.7" if nftables else "28.5" if variant.startswith("new") else "20.10"
    proxied = {(port, ":" in address) for address, port, _name, _inner in given["userland_proxy"]}
    boxes = []
    networks: t.List[Net] = []
    for item in given["containers"]:
        network = item.get("network", "bridge")
        subnet = str(ipaddress.ip_interface(item["ip"] + "/24").network)
        if network != "bridge" and network not in [net.name for net in networks]:
            networks.append(Net(network, subnet, bridge=network))
        boxes.append(Box(item["name"], *item.get("ports", ()), network=network, address=item["ip"]))
    document = host(engine, boxes, networks=networks, backend="nftables" if nftables else "iptables")
    docker = document["docker"]
    for container in docker["containers"]:
        # The rig's proxies are those that the case is about, and all that answers on IPv6.
        ports = container["Ports"]
        container["Ports"] = [port for port in ports if ":" not in port["IP"] or (port["PublicPort"], True) in proxied]
        for endpoint in container["NetworkSettings"]["Networks"].values():
            endpoint["IPAMConfig"] = None
    texts: t.Dict[str, t.Optional[str]] = {}
    for family, suffix in ((IPV4, ".v4.iptables-save"), (IPV6, ".v6.ip6tables-save")):
        path = SHARED / "cases" / "fixtures" / case / (variant + suffix)
        texts[family] = shared_text(path) if path.is_file() else None
    addresses = {box.name: box.address for box in boxes}
    proxies = [
        {
            "protocol": "tcp",
            "host_address": address,
            "host_port": port,
            "container_address": addresses[name],
            "container_port": inner,
        }
        for address, port, name, inner in given["userland_proxy"]
    ]
    outside = [given["host"]["eth0"]]
    outside += ["%s/64" % item["dst"] for item in given["probes"] if ":" in item["dst"]]
    interfaces = _interfaces(docker, outside)
    sources = {item["src"] for item in given["probes"]} - {"C", "H"} - set(addresses)
    if sources:
        interfaces.append(_interface("br1", ["192.0.2.1/24"], "bridge"))
    services = [
        _socket(protocol, "::" if number == 6 else "0.0.0.0", port)
        for _where, number, protocol, port, _name in given["host_services"]
    ]
    document["iptables"] = _iptables(ENGINES[engine][2], texts[IPV4], texts[IPV6])
    document["nft"] = _nft(item for item in document["nft"]["docker"] if next(iter(item.values()))["family"] == "ip")
    document["proxies"] = proxies
    document["listening"] = _listening(proxies, services)
    document["interfaces"] = interfaces
    document["routes"] = _routes(interfaces, {IPV4: "203.0.113.5"})
    return edited(document, **edits)


# Hosts that are made up ------------------------------------------------------------------------------------------


class Net:
    """A bridge network of Docker's. The subnets are the next of Docker's pools unless they are given.

    :param gateway_mode: C(nat), C(nat-unprotected) or C(routed), for both families (Engine 28 and later).
    """

    def __init__(
        self,
        name: str,
        subnet: str = "",
        subnet6: str = "",
        bridge: str = "",
        internal: bool = False,
        icc: bool = True,
        masquerade: bool = True,
        gateway_mode: str = "nat",
        identity: str = "",
    ) -> None:
        self.name = name
        self.subnets = {IPV4: subnet, IPV6: subnet6}
        self.id = identity or _hash("network " + name)
        self.own_bridge = bridge
        self.bridge = bridge or "br-" + self.id[:12]
        self.internal = internal
        self.icc = icc
        self.masquerade = masquerade
        self.gateway_mode = gateway_mode


class Box:
    """A container: its name, its ports as C(docker run -p) takes them, and where it is.

    :param ports: C(9000:8080), C(127.0.0.1:8081:80), C(53:53/udp), C(7000-7002:7000-7002), C([::1]:80:80);
        a lone C(8080) is exposed, not published.
    :param network: a network of the host, C(bridge), C(host), C(none) or C(container:NAME).
    :param address: a static address; the next free one of the network if empty.
    :param also: further networks that it is connected to, each a name or (name, address, address6).
    :param listens: the TCP ports that it listens on with the host's network.
    """

    def __init__(
        self,
        name: str,
        *ports: str,
        network: str = "bridge",
        address: str = "",
        address6: str = "",
        also: t.Sequence[t.Union[str, t.Sequence[str]]] = (),
        running: bool = True,
        labels: t.Optional[t.Mapping[str, str]] = None,
        image: str = "app:1",
        listens: t.Sequence[int] = (),
        identity: str = "",
    ) -> None:
        self.name = name
        self.ports = ports
        self.network = network
        self.address = address
        self.attached = [(network, address, address6)]
        for item in also:
            further = (*((item,) if isinstance(item, str) else item), "", "")
            self.attached.append((further[0], further[1], further[2]))
        self.running = running
        self.labels = dict(labels or {})
        self.image = image
        self.listens = tuple(listens)
        self.id = identity or _hash("container " + name)


class _Port(t.NamedTuple):
    protocol: str
    address: str
    host_port: int
    container_port: int


_SPEC = re.compile(
    r"(?:(?:(\[[^]]*\]|[0-9.]*):)?(\d+)(?:-(\d+))?:)?(\d+)(?:-(\d+))?(?:/(tcp|udp|sctp))?\Z",
)


def _ports(spec: str) -> t.List[_Port]:
    """What one -p asks for; a port that is not published has host port 0."""
    found = _SPEC.match(spec)
    if found is None:
        raise ValueError("%s is no port as docker run -p takes it" % spec)
    address, host, host_end, inner, inner_end, protocol = found.groups()
    count = int(inner_end or inner) - int(inner) + 1
    if host and int(host_end or host) - int(host) + 1 != count:
        raise ValueError("%s: the ranges differ in length" % spec)
    first = int(host or 0)
    return [
        _Port(protocol or "tcp", (address or "").strip("[]"), first + at if host else 0, int(inner) + at)
        for at in range(count)
    ]


class _Place(t.NamedTuple):
    """A running container on a network."""

    box: Box
    net: Net
    addresses: t.Mapping[str, str]


class _Addresses:
    """Gives addresses as Docker does: the first of a subnet that is free, after the gateway's."""

    def __init__(self) -> None:
        self._taken: t.Set[t.Tuple[str, str]] = set()
        self._last: t.Dict[str, int] = {}

    def reserve(self, subnet: str, address: str) -> None:
        self._taken.add((subnet, address))

    def next(self, subnet: str) -> str:
        network = ipaddress.ip_network(subnet)
        for number in range(self._last.get(subnet, 1) + 1, min(network.num_addresses - 1, 1 << 20)):
            address = str(network[number])
            if (subnet, address) not in self._taken:
                self._last[subnet] = number
                return address
        raise ValueError("%s is full" % subnet)


def _all_networks(boxes: t.Sequence[Box], networks: t.Sequence[Net], ipv6: bool, swarm: bool) -> t.List[Net]:
    """The default bridge, those that are given, those that containers name, and Swarm's."""
    found = {net.name: copy.copy(net) for net in networks}
    if "bridge" not in found:
        first = Net("bridge", "172.17.0.0/16", "fd00:17::/64" if ipv6 else "", "docker0")
        found = {"bridge": first, **found}
    for box in boxes:
        for name, address, address6 in box.attached:
            if name not in found and name not in ("host", "none") and ":" not in name:
                subnet = str(ipaddress.ip_interface(address + "/24").network) if address else ""
                subnet6 = str(ipaddress.ip_interface(address6 + "/64").network) if address6 else ""
                found[name] = Net(name, subnet, subnet6)
    if swarm and "docker_gwbridge" not in found:
        found["docker_gwbridge"] = Net("docker_gwbridge", bridge="docker_gwbridge", icc=False)
    nets = list(found.values())
    taken = {net.subnets[IPV4] for net in nets}
    pools = ["172.%d.0.0/16" % number for number in range(17, 32)] + ["192.168.%d.0/20" % n for n in range(0, 256, 16)]
    for net in nets:
        net.subnets = dict(net.subnets)
        if not net.subnets[IPV4]:
            net.subnets[IPV4] = next(
                pool
                for pool in pools
                if not any(
                    other and ipaddress.ip_network(pool).overlaps(ipaddress.ip_network(other)) for other in taken
                )
            )
            taken.add(net.subnets[IPV4])
    return nets


def _placed(boxes: t.Sequence[Box], nets: t.Sequence[Net]) -> t.List[_Place]:
    """The endpoints of the containers that run, in the order of their start."""
    by_name = {net.name: net for net in nets}
    addresses = _Addresses()
    for box in boxes:
        for name, *static in box.attached:
            for family, address in zip(FAMILIES, static):
                if address:
                    addresses.reserve(by_name[name].subnets[family], address)
    places = []
    for box in boxes:
        for name, *static in box.attached:
            if box.running and name in by_name:
                subnets = by_name[name].subnets
                given = {
                    family: address or addresses.next(subnets[family])
                    for family, address in zip(FAMILIES, static)
                    if subnets[family]
                }
                places.append(_Place(box, by_name[name], given))
    return places


def _published_at(places: t.Sequence[_Place]) -> t.Dict[str, _Place]:
    """By container, where its ports are published: see _publishing."""
    found: t.Dict[str, _Place] = {}
    for place in sorted(places, key=lambda item: (IPV6 not in item.addresses, item.net.name)):
        if not place.net.internal:
            found.setdefault(place.box.name, place)
    return found


class _Docker:
    """What an engine programs into one family's tables, step by step as it does.

    :param version: such as (28, 5).
    :param hairpin: the userland proxy is off.
    :param policy: of FORWARD.
    :param direct: C(allow-direct-routing) is set.
    """

    def __init__(
        self, version: t.Tuple[int, ...], family: str, hairpin: bool, policy: str, direct: bool = False
    ) -> None:
        self.version = version
        self.family = family
        self.hairpin = hairpin
        self.direct = direct
        self.modern = version >= (28,)
        self.raw = _Table("raw")
        self.filter = _Table("filter")
        self.nat = _Table("nat")
        self.filter.heads["FORWARD"] = ":FORWARD %s [0:0]" % policy
        self._start()

    def tables(self) -> t.List[_Table]:
        return [self.raw, self.filter, self.nat] if any(self.raw.rules.values()) else [self.filter, self.nat]

    def _start(self) -> None:
        isolation = ("DOCKER-ISOLATION-STAGE-1", "DOCKER-ISOLATION-STAGE-2")
        user = self.family == IPV4 or self.version >= (23,)
        self.filter.add_chain("DOCKER", *(("DOCKER-USER",) if user else ()))
        if user:
            self.filter.append("FORWARD", "-j DOCKER-USER")
        if user and self.version < (28, 2):
            self.filter.append("DOCKER-USER", "-j RETURN")
        if self.modern:
            self.filter.add_chain("DOCKER-BRIDGE", "DOCKER-CT", "DOCKER-FORWARD")
            self.filter.append("FORWARD", "-j DOCKER-FORWARD")
            between = "DOCKER-INTERNAL" if self.version >= (29,) else isolation[0]
            self.filter.add_chain(*(("DOCKER-INTERNAL",) if self.version >= (29,) else isolation))
            self.filter.append("DOCKER-FORWARD", "-j DOCKER-CT", "-j " + between, "-j DOCKER-BRIDGE")
        else:
            self.filter.add_chain(*isolation)
            self.filter.append("FORWARD", "-j " + isolation[0])
            for chain in isolation:
                self.filter.append(chain, "-j RETURN")
        self.nat.add_chain("DOCKER")
        self.nat.append("PREROUTING", "-m addrtype --dst-type LOCAL -j DOCKER")
        loopback = "127.0.0.0/8" if self.family == IPV4 else "::1/128"
        but = "" if self.hairpin else "! -d %s " % loopback
        self.nat.append("OUTPUT", but + "-m addrtype --dst-type LOCAL -j DOCKER")

    def network(self, net: Net) -> None:
        subnet, bridge = net.subnets[self.family], net.bridge
        if net.internal:
            self._internal(subnet, bridge, net.icc)
            return
        if net.masquerade and net.gateway_mode != "routed":
            self.nat.insert("POSTROUTING", "-s %s ! -o %s -j MASQUERADE" % (subnet, bridge))
            if not self.hairpin and self.version < (29,):
                self.nat.insert("DOCKER", "-i %s -j RETURN" % bridge)
        if self.hairpin:
            self.nat.insert("POSTROUTING", "-o %s -m addrtype --src-type LOCAL -j MASQUERADE" % bridge)
        (self._modern_network if self.modern else self._old_network)(net)

    def _modern_network(self, net: Net) -> None:
        bridge = net.bridge
        if net.gateway_mode == "routed":
            icmp = "icmp" if self.family == IPV4 else "ipv6-icmp"
            self.filter.append("DOCKER", "-o %s -p %s -j ACCEPT" % (bridge, icmp))
        verdict = "ACCEPT" if net.gateway_mode == "nat-unprotected" else "DROP"
        self.filter.append("DOCKER", f"! -i {bridge} -o {bridge} -j {verdict}")
        self.filter.append("DOCKER-BRIDGE", "-o %s -j DOCKER" % bridge)
        self.filter.append("DOCKER-CT", "-o %s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT" % bridge)
        if net.icc:
            self.filter.append("DOCKER-FORWARD", "-i %s -j ACCEPT" % bridge)
        else:
            self.filter.append("DOCKER-FORWARD", f"-i {bridge} -o {bridge} -j DROP")
            self.filter.append("DOCKER-FORWARD", f"-i {bridge} ! -o {bridge} -j ACCEPT")
        if self.version < (29,):
            jump = f"-i {bridge} ! -o {bridge} -j DOCKER-ISOLATION-STAGE-2"
            self.filter.append("DOCKER-ISOLATION-STAGE-1", jump)
            self.filter.insert("DOCKER-ISOLATION-STAGE-2", "-o %s -j DROP" % bridge)

    def _old_network(self, net: Net) -> None:
        rules = [
            "-o {0} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-o {0} -j DOCKER",
            "-i {0} ! -o {0} -j ACCEPT",
            "-i {0} -o {0} -j %s" % ("ACCEPT" if net.icc else "DROP"),
        ]
        self.filter.insert("FORWARD", *(rule.format(net.bridge) for rule in rules), at=self._jumps())
        jump = f"-i {net.bridge} ! -o {net.bridge} -j DOCKER-ISOLATION-STAGE-2"
        self.filter.insert("DOCKER-ISOLATION-STAGE-1", jump)
        self.filter.insert("DOCKER-ISOLATION-STAGE-2", "-o %s -j DROP" % net.bridge)

    def _jumps(self) -> int:
        """How many jumps an old engine keeps at the top of FORWARD."""
        own = ("-j DOCKER-USER", "-j DOCKER-INGRESS", "-j DOCKER-ISOLATION-STAGE-1")
        return sum(rule in own for rule in self.filter.rules["FORWARD"])

    def _internal(self, subnet: str, bridge: str, icc: bool) -> None:
        chain = "DOCKER-INTERNAL" if self.version >= (29,) else "DOCKER-ISOLATION-STAGE-1"
        # Neighbours on the bridge talk to each other's link-local addresses too.
        leaving = "! -d %s -i %s " % (subnet, bridge) + ("" if self.family == IPV4 else "! -o %s " % bridge) + "-j DROP"
        coming = "! -s %s " % subnet + ("" if self.family == IPV4 else "! -i %s " % bridge) + "-o %s -j DROP" % bridge
        self.filter.insert(chain, coming, leaving)
        within = "-i {0} -o {0} -j {1}".format(bridge, "ACCEPT" if icc else "DROP")
        if self.modern:
            self.filter.append("DOCKER-FORWARD", within)
        else:
            self.filter.insert("FORWARD", within, at=self._jumps())

    def endpoint(self, place: _Place) -> None:
        """A container joins a network; Engine 28 and later guard its address."""
        if self.modern and not self.direct and not place.net.internal and place.net.gateway_mode == "nat":
            address = place.addresses[self.family]
            rule = "-d %s/%d ! -i %s -j DROP" % (address, self._bits(), place.net.bridge)
            self.raw.append("PREROUTING", rule)

    def _bits(self) -> int:
        return 32 if self.family == IPV4 else 128

    def publish(self, place: _Place, port: _Port) -> None:
        address, bridge, bits = place.addresses[self.family], place.net.bridge, self._bits()
        match = f"-p {port.protocol} -m {port.protocol} --dport "
        accept = f"-d {address}/{bits} ! -i {bridge} -o {bridge} {match}{port.container_port} -j ACCEPT"
        mode = place.net.gateway_mode
        if not self.modern:
            self.filter.append("DOCKER", accept)
        elif mode != "nat-unprotected":
            self.filter.insert("DOCKER", accept)
        if mode == "routed":
            return
        if self.hairpin or not self.modern:
            self.nat.append(
                "POSTROUTING",
                f"-s {address}/{bits} -d {address}/{bits} {match}{port.container_port} -j MASQUERADE",
            )
        only = "" if port.address in ("", "0.0.0.0", "::") else "-d %s/%d " % (port.address, bits)
        link_local = "! -s fe80::/10 " if self.family == IPV6 else ""
        elsewhere = "" if self.hairpin else "! -i %s " % bridge
        target = "%s:%d" if self.family == IPV4 else "[%s]:%d"
        self.nat.append(
            "DOCKER",
            "%s%s%s%s%d -j DNAT --to-destination %s"
            % (link_local, only, elsewhere, match, port.host_port, target % (address, port.container_port)),
        )
        if self.modern and self.family == IPV4 and port.address.startswith("127."):
            self.raw.append("PREROUTING", "%s! -i lo %s%d -j DROP" % (only, match, port.host_port))

    def ingress(self, sandbox: str, ports: t.Sequence[_Port]) -> None:
        """Swarm's published ports lead to a network namespace on docker_gwbridge; IPv4 only, the port is kept."""
        chain = "DOCKER-INGRESS"
        self.filter.add_chain(chain)
        self.nat.add_chain(chain)
        if self.modern:
            self.filter.insert("DOCKER-FORWARD", "-j " + chain)
        else:
            self.filter.insert("FORWARD", "-j " + chain, at=1)
        local = "-m addrtype --dst-type LOCAL -j " + chain
        self.nat.insert("PREROUTING", local)
        self.nat.insert("OUTPUT", local)
        self.nat.insert("POSTROUTING", "-o docker_gwbridge -m addrtype --src-type LOCAL -j MASQUERADE")
        for port in ports:
            match = f"-p {port.protocol} -m {port.protocol} "
            number = port.host_port
            self.nat.append(chain, "%s--dport %d -j DNAT --to-destination %s:%d" % (match, number, sandbox, number))
            reply = "%s--sport %d -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT" % (match, number)
            self.filter.append(chain, "%s--dport %d -j ACCEPT" % (match, number), reply)
        self.filter.append(chain, "-j RETURN")
        self.nat.append(chain, "-j RETURN")


def _in_docker_order(ports: t.Iterable[_Port], modern: bool) -> t.List[_Port]:
    """The order in which an engine publishes the ports of one container, as the captures show it."""
    given = sorted(ports, key=lambda port: (port.container_port, port.protocol))
    return given if modern else sorted(given, key=lambda port: -port.container_port)


class _Bridges:
    """Docker's own table of one family, as C(nft -j) lists it, made in the steps of :class:`_Docker`.

    Only what was captured: networks with and without ICC, and ports behind DNAT.
    """

    def __init__(self, family: str) -> None:
        self.family = family
        self.protocol = "ip" if family == IPV4 else "ip6"
        self.chains: t.Dict[str, Document] = {}
        self.rules: t.Dict[str, t.List[Document]] = {}
        self.jumps: t.Dict[str, t.List[str]] = {}
        self._chain("filter-FORWARD", {"type": "filter", "hook": "forward", "prio": 0, "policy": "accept"})
        self._chain("nat-OUTPUT", {"type": "nat", "hook": "output", "prio": -100, "policy": "accept"})
        self._chain("nat-POSTROUTING", {"type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"})
        self._chain("nat-PREROUTING", {"type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept"})
        self._chain("nat-prerouting-and-output", {})
        self._chain("raw-PREROUTING", {"type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept"})
        for chain, key, jumps in (
            ("filter-FORWARD", "oifname", "filter-forward-in"),
            ("filter-FORWARD", "iifname", "filter-forward-out"),
            ("nat-POSTROUTING", "iifname", "nat-postrouting-out"),
            ("nat-POSTROUTING", "oifname", "nat-postrouting-in"),
        ):
            vmap = {"vmap": {"key": {"meta": {"key": key}}, "data": "@%s-jumps" % jumps}}
            self.rules[chain].append({"expr": [vmap]})
            self.jumps[jumps] = []
        local = self._match({"fib": {"result": "type", "flags": ["daddr"]}}, "local")
        jump = {"jump": {"target": "nat-prerouting-and-output"}}
        loopback = {"prefix": {"addr": "127.0.0.0", "len": 8}} if family == IPV4 else "::1"
        self._rule("nat-OUTPUT", [self._address("daddr", loopback, "!="), local], jump)
        self._rule("nat-PREROUTING", [local], jump)

    def _chain(self, name: str, attributes: Document) -> None:
        self.chains[name] = attributes
        self.rules[name] = []

    def _match(self, left: Document, right: t.Any, op: str = "==") -> Document:
        return {"match": {"op": op, "left": left, "right": right}}

    def _meta(self, key: str, interface: str, op: str = "==") -> Document:
        return self._match({"meta": {"key": key}}, interface, op)

    def _address(self, side: str, value: t.Any, op: str = "==") -> Document:
        return self._match({"payload": {"protocol": self.protocol, "field": side}}, value, op)

    def _port(self, protocol: str, port: int) -> Document:
        return self._match({"payload": {"protocol": protocol, "field": "dport"}}, port)

    def _rule(
        self, chain: str, matches: t.List[Document], verdict: Document, comment: str = "", at: t.Optional[int] = None
    ) -> None:
        rule: Document = {"comment": comment} if comment else {}
        rule["expr"] = [*matches, {"counter": {"packets": 0, "bytes": 0}}, verdict]
        rules = self.rules[chain]
        rules.insert(len(rules) if at is None else at, rule)

    def network(self, net: Net) -> None:
        if net.internal or net.gateway_mode != "nat":
            raise ValueError("%s: no such network was captured with nftables" % net.name)
        for jumps in ("filter-forward-in", "filter-forward-out", "nat-postrouting-in", "nat-postrouting-out"):
            self.jumps[jumps].append(net.bridge)
            self._chain("%s__%s" % (jumps, net.bridge), {})
        into, out = "filter-forward-in__" + net.bridge, "filter-forward-out__" + net.bridge
        replies = self._match({"ct": {"key": "state"}}, ["established", "related"], "in")
        self._rule(into, [replies], {"accept": None})
        self._rule(into, [self._meta("iifname", net.bridge)], {"accept" if net.icc else "drop": None}, "ICC")
        self._rule(into, [], {"drop": None}, "UNPUBLISHED PORT DROP")
        self._rule(out, [replies], {"accept": None})
        self._rule(out, [], {"accept": None}, "OUTGOING")
        if net.masquerade:
            subnet = ipaddress.ip_network(net.subnets[self.family])
            source = {"prefix": {"addr": str(subnet.network_address), "len": subnet.prefixlen}}
            leaving = [self._meta("oifname", net.bridge, "!="), self._address("saddr", source)]
            self._rule("nat-postrouting-out__" + net.bridge, leaving, {"masquerade": None}, "MASQUERADE")

    def endpoint(self, place: _Place) -> None:
        matches = [
            self._address("daddr", place.addresses[self.family]),
            self._meta("iifname", place.net.bridge, "!="),
        ]
        self._rule("raw-PREROUTING", matches, {"drop": None}, "DROP DIRECT ACCESS")

    def publish(self, place: _Place, port: _Port) -> None:
        address, bridge = place.addresses[self.family], place.net.bridge
        into = "filter-forward-in__" + bridge
        accepted = [self._address("daddr", address), self._port(port.protocol, port.container_port)]
        self._rule(into, accepted, {"accept": None}, at=len(self.rules[into]) - 1)
        matches = [self._meta("iifname", bridge, "!=")]
        if self.family == IPV6:
            link_local = {"prefix": {"addr": "fe80::", "len": 10}}
            matches.append(self._address("saddr", link_local, "!="))
        only = [] if port.address in ("", "0.0.0.0", "::") else [self._address("daddr", port.address)]
        matches += [*only, self._port(port.protocol, port.host_port)]
        target = {"dnat": {"addr": address, "port": port.container_port}}
        self._rule("nat-prerouting-and-output", matches, target, "DNAT")
        if port.address.startswith("127."):
            matches = [self._meta("iifname", "lo", "!="), *only, self._port(port.protocol, port.host_port)]
            self._rule("raw-PREROUTING", matches, {"drop": None}, "DROP REMOTE LOOPBACK")

    def objects(self) -> t.List[Document]:
        inside = {"family": self.protocol, "table": "docker-bridges"}
        found: t.List[Document] = [{"table": {"family": self.protocol, "name": "docker-bridges"}}]
        found += [{"chain": {**inside, "name": name, **more}} for name, more in self.chains.items()]
        for jumps in sorted(self.jumps):
            jump: Document = {"type": "ifname", "map": "verdict"}
            elements = [[name, {"jump": {"target": "%s__%s" % (jumps, name)}}] for name in sorted(self.jumps[jumps])]
            if elements:
                jump["elem"] = elements
            found.append({"map": {**inside, "name": jumps + "-jumps", **jump}})
        for chain, rules in self.rules.items():
            found += [{"rule": {**inside, "chain": chain, **rule}} for rule in rules]
        for number, item in enumerate(found, 1):
            next(iter(item.values()))["handle"] = number
        return found


class _Made(t.NamedTuple):
    """A host before it is written down. ``swarm`` are Swarm's ports with their services' names."""

    version: t.Tuple[int, ...]
    boxes: t.Sequence[Box]
    nets: t.Sequence[Net]
    places: t.Sequence[_Place]
    swarm: t.Sequence[t.Tuple[str, _Port]]
    options: t.Mapping[str, t.Any]

    @property
    def proxy(self) -> bool:
        return bool(self.options.get("userland-proxy", True))

    def managed(self, family: str) -> bool:
        """True if the engine writes rules for the family."""
        of_family = family == IPV4 or self.options.get("ip6tables", self.version >= (27,))
        return bool(of_family and self.options.get("iptables", True))


def _program(target: t.Union[_Docker, _Bridges], made: _Made) -> None:
    """Networks first, then each container as it starts."""
    for net in made.nets:
        if net.subnets[target.family]:
            target.network(net)
    published = _published_at(made.places)
    for place in made.places:
        if target.family in place.addresses:
            target.endpoint(place)
            if published.get(place.box.name) is place:
                ports = [port for spec in place.box.ports for port in _ports(spec) if port.host_port]
                for port in _in_docker_order(ports, made.version >= (28,)):
                    if not port.address or _family(port.address) == target.family:
                        target.publish(place, port)


def _dump(made: _Made, family: str, policy: str, tools: str) -> str:
    """What iptables-save prints on the host."""
    if made.options.get("ip-forward-no-drop") and made.version >= (28,):
        policy = "ACCEPT"
    elif family == IPV6 and made.version < (28,):
        policy = "DROP"
    direct = bool(made.options.get("allow-direct-routing"))
    docker = _Docker(made.version, family, not made.proxy, policy, direct)
    _program(docker, made)
    if made.swarm and family == IPV4:
        gateway = next(net for net in made.nets if net.name == "docker_gwbridge")
        sandbox = str(ipaddress.ip_network(gateway.subnets[IPV4])[2])
        docker.ingress(sandbox, [port for _name, port in made.swarm])
    return _stamped(docker.tables(), tools, family)


def _nft_objects(made: _Made) -> t.List[Document]:
    """What C(nft -j list ruleset) prints on the host, if Docker's backend is nftables."""
    if made.version < (29,) or not made.proxy or made.swarm:
        raise ValueError("no such host was captured with nftables")
    found = []
    for family in FAMILIES:
        if made.managed(family):
            bridges = _Bridges(family)
            _program(bridges, made)
            found += bridges.objects()
    return found


def _api_networks(made: _Made) -> t.List[Document]:
    """C(GET /networks), as far as a snapshot keeps it."""

    def network(name: str, driver: str, identity: str, ipv6: bool, config: t.Any, **more: t.Any) -> Document:
        shown = {
            "Name": name,
            "Id": identity,
            "Driver": driver,
            "Scope": "local",
            "EnableIPv6": ipv6,
            "Internal": False,
            "Ingress": False,
            "Options": {},
            "IPAM": {"Config": config},
        }
        if made.version >= (28,):
            shown["EnableIPv4"] = True
        return {**shown, **more}

    found = []
    for net in made.nets:
        options = {}
        prefix = "com.docker.network.bridge."
        if net.name == "bridge":
            options = {prefix + "default_bridge": "true", prefix + "host_binding_ipv4": "0.0.0.0"}
        if net.own_bridge:
            options[prefix + "name"] = net.bridge
        if not net.icc or net.name == "bridge":
            options[prefix + "enable_icc"] = "true" if net.icc else "false"
        if not net.masquerade or net.name == "bridge":
            options[prefix + "enable_ip_masquerade"] = "true" if net.masquerade else "false"
        if net.gateway_mode != "nat":
            options.update({prefix + "gateway_mode_" + family: net.gateway_mode for family in FAMILIES})
        config = [
            {"Subnet": subnet, "Gateway": str(ipaddress.ip_network(subnet)[1])}
            for subnet in net.subnets.values()
            if subnet
        ]
        found.append(
            network(
                net.name,
                "bridge",
                net.id,
                bool(net.subnets[IPV6]),
                config,
                Internal=net.internal,
                Options=options,
            )
        )
    found.append(network("host", "host", _hash("network host"), False, None))
    found.append(network("none", "null", _hash("network none"), False, None))
    if made.swarm:
        config = [{"Subnet": "10.0.0.0/24", "Gateway": "10.0.0.1"}]
        ingress = network("ingress", "overlay", _hash("network ingress")[:25], False, config)
        found.append({**ingress, "Scope": "swarm", "Ingress": True})
    return found


def _api_ports(box: Box, place: t.Optional[_Place], proxy: bool) -> t.List[Document]:
    """A container's ports in the list: one entry for each address of the host, one without for an exposed port."""
    found = []
    for port in [port for spec in box.ports for port in _ports(spec)]:
        if not port.host_port:
            found.append({"PrivatePort": port.container_port, "Type": port.protocol})
            continue
        if place is None:
            continue
        if place.net.gateway_mode == "routed":
            shown = {"PrivatePort": port.container_port, "Type": port.protocol}
            found += [{"IP": _EVERYWHERE[family], **shown} for family in place.addresses]
            continue
        for family in FAMILIES:
            served = family in place.addresses or proxy
            if served and (not port.address or _family(port.address) == family):
                found.append(
                    {
                        "IP": port.address or _EVERYWHERE[family],
                        "PrivatePort": port.container_port,
                        "PublicPort": port.host_port,
                        "Type": port.protocol,
                    }
                )
    return found


def _api_containers(made: _Made) -> t.List[Document]:
    """C(GET /containers/json?all=1), as far as a snapshot keeps it: the newest container first."""
    identities = {net.name: net.id for net in made.nets}
    addresses = {(place.box.name, place.net.name): place.addresses for place in made.places}
    published = _published_at(made.places)
    by_name = {box.name: box for box in made.boxes}
    found = []
    for box in made.boxes:
        mode = box.network
        networks: t.Dict[str, Document] = {}
        if mode.startswith("container:"):
            mode = "container:" + by_name[mode.partition(":")[2]].id
        else:
            if mode == "bridge" and made.version < (26,):
                mode = "default"
            for name, *static in box.attached:
                at = addresses.get((box.name, name), {})
                keys = ("IPv4Address", "IPv6Address")
                config = {key: address for key, address in zip(keys, static) if address}
                networks[name] = {
                    "NetworkID": identities.get(name) or _hash("network " + name),
                    "IPAddress": at.get(IPV4, ""),
                    "GlobalIPv6Address": at.get(IPV6, ""),
                    "IPAMConfig": config or None,
                }
        found.append(
            {
                "Id": box.id,
                "Names": ["/" + box.name],
                "Image": box.image,
                "Ports": _api_ports(box, published.get(box.name), made.proxy) if box.running else [],
                "Labels": {key: value for key, value in box.labels.items() if key.startswith("com.docker.")},
                "State": "running" if box.running else "exited",
                "HostConfig": {"NetworkMode": mode},
                "NetworkSettings": {"Networks": networks},
            }
        )
    return found[::-1]


def _services(swarm: t.Iterable[t.Tuple[str, _Port]]) -> t.List[Document]:
    found: t.Dict[str, t.List[Document]] = {}
    for name, port in swarm:
        shown = {"published_port": port.host_port, "target_port": port.container_port, "mode": "ingress"}
        found.setdefault(name, []).append({"protocol": port.protocol, **shown})
    return [{"name": name, "ports": ports} for name, ports in found.items()]


def host(
    engine: str = "28.5",
    containers: t.Iterable[Box] = (),
    docker_user: Lines = (),
    docker_user6: Lines = (),
    networks: t.Iterable[Net] = (),
    saved: t.Optional[t.Mapping[str, str]] = None,
    options: t.Optional[t.Mapping[str, t.Any]] = None,
    bridge_nf: bool = True,
    ipv6: bool = False,
    services: t.Iterable[t.Tuple[str, str]] = (),
    forward_policy: str = "DROP",
    listening: t.Iterable[t.Tuple[str, str, int]] = (),
    backend: str = "iptables",
    **edits: t.Any,
) -> Document:
    """A host made up from scratch: what it has is what the engine really makes of these containers.

    :param engine: 20.10, 26.1, 28.5 or 29.7.
    :param containers: in the order of their start.
    :param docker_user: rules above those that Docker puts into DOCKER-USER; C(docker_user6) for IPv6.
    :param networks: besides the default bridge and those that containers only name.
    :param saved: saved rule files by path.
    :param options: of the daemon. C(userland-proxy), C(iptables), C(ip6tables), C(allow-direct-routing) and
        C(ip-forward-no-drop) change what is programmed.
    :param bridge_nf: br_netfilter is loaded.
    :param ipv6: the default bridge has IPv6 too.
    :param services: Swarm's published ports, each (service, C(8080:80/tcp)); any makes the host a Swarm manager.
    :param listening: further sockets of the host, each (protocol, address, port).
    :param forward_policy: ACCEPT if something else than Docker had switched forwarding on.
    :param backend: C(nftables): Docker's own tables instead of DOCKER-USER (29.7).
    :param edits: see :func:`edited`.
    """
    full, api, tools = ENGINES[engine]
    version = tuple(int(number) for number in engine.split("."))
    boxes = list(containers)
    swarm = [(name, port) for name, spec in services for port in _ports(spec)]
    nets = _all_networks(boxes, list(networks), ipv6, bool(swarm))
    made = _Made(version, boxes, nets, _placed(boxes, nets), swarm, dict(options or {}))
    info: Document = {
        "ServerVersion": full,
        "LiveRestoreEnabled": bool(made.options.get("live-restore", False)),
        "Swarm": {"LocalNodeState": "active" if swarm else "inactive", "ControlAvailable": bool(swarm)},
        "SecurityOptions": ["name=seccomp,profile=default"],
        "IPv4Forwarding": True,
        "OperatingSystem": "Debian GNU/Linux",
    }
    if version >= (28, 1):
        info["FirewallBackend"] = {"Driver": backend}
    docker = {
        "version": {"Version": full, "ApiVersion": api},
        "info": info,
        "daemon": dict(made.options),
        "containers": _api_containers(made),
        "networks": _api_networks(made),
    }
    texts: t.Dict[str, t.Optional[str]] = {IPV4: None, IPV6: None}
    ruleset: t.List[Document] = []
    if backend == "nftables":
        ruleset = _nft_objects(made)
    else:
        for family in FAMILIES:
            if made.managed(family):
                texts[family] = _dump(made, family, forward_policy, tools)
    interfaces = _interfaces(docker, list(OUTSIDE.values()))
    proxies = _proxies(docker)
    sockets = _sshd()
    sockets += [_socket("tcp", "::", port) for box in boxes if box.network == "host" for port in box.listens]
    sockets += [_socket(port.protocol, "::", port.host_port) for _name, port in swarm]
    sockets += [_socket(*item) for item in listening]
    document = _document(
        docker,
        iptables=_iptables(tools, texts[IPV4], texts[IPV6]),
        nft=_nft(ruleset),
        services=_services(swarm),
        proxies=proxies if made.proxy else [],
        # Without a proxy, engines before 28 keep the port with a socket of their own.
        listening=_listening(proxies if made.proxy or version < (28,) else [], sockets),
        sysctls=_sysctls(
            [net.bridge for net in nets], any(net.subnets[IPV6] for net in nets), bridge_nf, not made.proxy
        ),
        interfaces=interfaces,
        routes=_routes(interfaces, ROUTERS),
        saved=dict(saved or {}),
    )
    return edited(_with_docker_user(document, docker_user, docker_user6), **edits)


# Big hosts -------------------------------------------------------------------------------------------------------


#: Inner ports of a typical fleet: many containers share one, which is where rules by port go wrong.
_INNER = (80, 80, 8080, 8080, 8080, 443, 3000, 5432, 6379, 9000, 9090, 53)


def _fleet(containers: int, chance: random.Random) -> t.Tuple[t.List[Net], t.List[Box]]:
    count = max(1, min(29, containers // 12))
    nets = [
        Net("net%d" % number, "10.%d.0.0/21" % (100 + number), "" if number % 5 else "fd00:%x::/64" % (100 + number))
        for number in range(count)
    ]
    boxes = []
    for number in range(containers):
        specs = []
        for extra in range(chance.choice((0, 1, 1, 1, 2, 3))):
            where = chance.choice(("", "", "", "", "127.0.0.1:", "203.0.113.1:"))
            protocol = chance.choice(("", "", "", "", "/udp"))
            specs.append("%s%d:%d%s" % (where, 1024 + 3 * number + extra, chance.choice(_INNER) + extra, protocol))
        network = "bridge" if number % 10 == 0 else nets[number % count].name
        also = [nets[(number + 1) % count].name] if number % 17 == 3 and count > 1 and network != "bridge" else []
        boxes.append(Box("box%d" % number, *specs, network=network, also=also, running=number % 23 != 7))
    return nets, boxes


class _Guarded(t.NamedTuple):
    """A port that rules can be about: where it is published (0: nowhere), and where that leads."""

    address: str
    bridge: str
    protocol: str
    host_port: int
    container_port: int


def _guarded(document: Document) -> t.List[_Guarded]:
    found = []
    bridges = {item["Name"]: _bridge(item) for item in document["docker"]["networks"] if item["Driver"] == "bridge"}
    for container in document["docker"]["containers"]:
        networks = container["NetworkSettings"]["Networks"]
        endpoint = _publishing(networks)
        for port in container["Ports"]:
            if endpoint is not None and ":" not in port["IP"]:
                bridge = next(bridges[name] for name, item in networks.items() if item is endpoint)
                found.append(
                    _Guarded(endpoint["IPAddress"], bridge, port["Type"], port["PublicPort"], port["PrivatePort"])
                )
    return found or [_Guarded("172.17.0.2", "docker0", "tcp", 0, 80)]


def _source(chance: random.Random) -> str:
    return "198.%d.%d.%d" % (chance.choice((18, 19)), chance.randrange(256), chance.randrange(1, 255))


def _tenth(number: int, about: _Guarded, chance: random.Random) -> t.List[str]:
    """Some rules of one kind; which kind, that depends on the number."""
    named = '-m comment --comment "rule %d"' % number
    port = f"-p {about.protocol} -m {about.protocol} --dport {about.container_port}"
    original = "-m conntrack --ctstate DNAT --ctorigdstport %d --ctdir ORIGINAL" % about.host_port
    several = ",".join(str(about.container_port + n) for n in range(chance.randrange(2, 6)))
    kinds: t.Dict[int, t.List[str]] = {
        0: [
            "-A DOCKER-USER -s %s/32 -d %s/32 ! -i %s %s -j ACCEPT"
            % (_source(chance), about.address, about.bridge, port),
            "-A DOCKER-USER -d %s/32 ! -i %s %s -j DROP" % (about.address, about.bridge, port),
        ],
        1: ["-A DOCKER-USER -d %s/32 -i eth0 %s %s -j DROP" % (about.address, port, named)],
        2: ["-A DOCKER-USER -p %s %s %s -j DROP" % (about.protocol, original, named)],
        3: ["-A DOCKER-USER -i eth0 -p %s -m conntrack --ctorigdstport %d -j DROP" % (about.protocol, about.host_port)],
        4: ["-A DOCKER-USER -d %s/32 -p tcp -m multiport --dports %s %s -j DROP" % (about.address, several, named)],
        5: ["-A APPS -s %s/32 -d %s/32 %s -j RETURN" % (_source(chance), about.address, port)],
        6: ["-A APPS -d %s/32 %s %s -j REJECT --reject-with icmp-port-unreachable" % (about.address, port, named)],
        7: ["-A BANNED -s %s/32 -j DROP" % _source(chance)],
        8: ["-A BANNED -s %s/32 %s -j REJECT --reject-with icmp-port-unreachable" % (_source(chance), named)],
        9: ["-A DOCKER-USER -s %s/32 -j DROP" % _source(chance)],
    }
    if number % 97 == 13:
        return ["-A DOCKER-USER -i eth0 %s -j DROP" % port]
    return kinds[number % 10]


def large(containers: int, rules: int, seed: int = 0) -> Document:
    """A host for measuring, with so many containers and rules of a person's making; always the same for a seed.

    The containers are on at most thirty bridges. The rules are in DOCKER-USER and in two chains that it jumps to: by
    address, by host port, by port alone (few), several ports, and a list of banned sources.
    """
    chance = random.Random(seed)
    nets, boxes = _fleet(containers, chance)
    document = host("28.5", boxes, networks=nets)
    ports = _guarded(document)
    lines = [
        "-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A DOCKER-USER -i eth0 -j BANNED",
        "-A DOCKER-USER -i eth0 -j APPS",
    ]
    number = 0
    while len(lines) < rules - 1:
        lines += _tenth(number, chance.choice(ports), chance)
        number += 1
    lines = [*lines[: max(rules - 1, 0)], "-A DOCKER-USER -j RETURN"][-rules:] if rules else []
    return with_rules(document, IPV4, "filter", [":BANNED - [0:0]", ":APPS - [0:0]", *lines])
