# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a trace says of a connection is what the kernel does with its first packet and with the answer.

Rules by chance are loaded into every table and hook, packets by chance are sent: from outside, from containers, from
the host itself; to published ports, to the host, to containers. Rules whose counters moved are the rules of the trace.

QUAYWALL_TRACE_PAIRS says how many packets (400), QUAYWALL_TRACE_SEED where chance starts; a failure tells its own seed.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import os
import random
import socket
import struct
import time
import typing as t
from contextlib import ExitStack

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._chain import Chain, Dump, parse_dump
from ansible_collections.quaywall.docker.plugins.module_utils._collect import parse_interfaces, parse_routes
from ansible_collections.quaywall.docker.plugins.module_utils._reach import Judge
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.plugins.module_utils._trace import End, Start

from .lab import IPV4, IPV6, LEGACY, NFT, load, tool
from .test_walk import (
    _BRIDGES,
    _INNER,
    ADDRESSES,
    FAR,
    GATEWAYS,
    ONE,
    OTHER,
    OUTSIDE,
    PORTS,
    SETS,
    TWO,
    Network,
    Packet,
    Port,
    Rules,
)

if t.TYPE_CHECKING:
    from collections.abc import Iterator

PAIRS = int(os.environ.get("QUAYWALL_TRACE_PAIRS") or 400)
SEED = int(os.environ.get("QUAYWALL_TRACE_SEED") or 1)
SHARES = {(NFT, IPV4): 0.5, (LEGACY, IPV4): 0.2, (NFT, IPV6): 0.2, (LEGACY, IPV6): 0.1}
PACKETS_FOR_RULES = 10
PATIENCE = 5.0
PORTS_ASKED = (9000, 8080, 53, 9001, 80, 443, 7000)
_STOPS = ("DROP", "REJECT")
_DECIDE = (*_STOPS, "ACCEPT", "DNAT", "REDIRECT", "SNAT", "MASQUERADE")

#: Table -> hooks of it that get rules.
PLACES = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}


class Field(Network):
    """The network of the walk's test, with a host that listens."""

    def __init__(self, stack: ExitStack, variant: str, family: str) -> None:
        super().__init__(stack, variant, family)
        # Who listens does not answer that nobody does.
        kind = socket.AF_INET if family == IPV4 else socket.AF_INET6
        for number in PORTS_ASKED:
            made = stack.enter_context(self.host.call(socket.socket, kind, socket.SOCK_DGRAM))
            made.bind(("0.0.0.0" if family == IPV4 else "::", number))

    def token(self) -> int:
        return next(self._tokens)

    def dump(self) -> str:
        return self.host.run(tool(self.family, self.variant, "save"), "-c").decode()


class Shot(t.NamedTuple):
    """A first packet. ``sender`` None: the host itself."""

    sender: Port | None
    source: str
    source_port: int
    destination: str
    port: int
    protocol: str


def a_shot(chance: random.Random, network: Field) -> Shot:
    family = network.family
    addresses, gateways = ADDRESSES[family], {name: value.partition("/")[0] for name, value in GATEWAYS[family].items()}
    network.next_port += 1
    own, loopback = gateways["eth0"], "127.0.0.1" if family == IPV4 else "::1"
    container = addresses[chance.choice(_INNER)][0]
    port, protocol = chance.choice(PORTS_ASKED), chance.choice(("tcp", "udp"))
    kind = chance.choice(("outside", "outside", "direct", "container", "outgoing", "across", "host", "host"))
    if kind == "host":
        destination = chance.choice((own, own, loopback, container, gateways["br-a"], addresses[OUTSIDE][0]))
        if destination in gateways.values() or destination == loopback:
            source = destination
        elif destination == container:
            source = gateways["br-b" if destination == addresses[OTHER][0] else "br-a"]
        else:
            source = own
        return Shot(None, source, network.next_port, destination, port, "udp")
    inner = chance.choice(_INNER)
    sender = chance.choice((OUTSIDE, OUTSIDE, FAR)) if kind in ("outside", "direct") else inner
    destination = {
        "outside": chance.choice((own, own, own, gateways["eth1"], gateways["br-a"])),
        "direct": container,
        "container": own if chance.random() < 0.6 else gateways[sender.interface],
        "outgoing": addresses[chance.choice((OUTSIDE, FAR))][0],
        "across": container,
    }[kind]
    source = chance.choice(addresses[sender])
    if source == destination:
        return a_shot(chance, network)
    return Shot(sender, source, network.next_port, destination, port, protocol)


# Rules ---------------------------------------------------------------------------------------------------------------


class Tables(Rules):
    """Rules by chance for every table, as far as a table and hook take them."""

    def tables(self) -> dict[str, dict[str, list[str]]]:
        found: dict[str, dict[str, list[str]]] = {}
        for table, hooks in PLACES.items():
            chains = found[table] = {}
            for hook in hooks:
                names = (hook, "A-" + hook, "B-" + hook)
                for index, name in enumerate(names):
                    count = self.chance.choice((0, 0, 1, 2, 4) if table != "filter" else (1, 2, 4, 6))
                    chains[name] = [self._one(table, hook, names[index + 1 :]) for _number in range(count)]
        return found

    def _one(self, table: str, hook: str, later: t.Sequence[str]) -> str:
        while True:
            if table == "nat" and self.chance.random() < 0.6:
                return self._translating(hook)
            rule = self._rule(later)
            if hook in ("OUTPUT", "POSTROUTING") and self.chance.random() < 0.1:
                rule = "-m owner %s %s" % (self._maybe_not("--uid-owner %d" % self.chance.choice((0, 1000))), rule)
            words = rule.split()
            if table == "nat" and ("DROP" in words or "REJECT" in words):
                continue
            if "REJECT" in words and table != "filter":
                continue
            if ("-o" in words and hook in ("PREROUTING", "INPUT")) or (
                "-i" in words and hook in ("POSTROUTING", "OUTPUT")
            ):
                continue
            if "physdev" in words and hook not in ("PREROUTING", "FORWARD"):
                continue
            if ("--limit-iface-in" in words and hook in ("OUTPUT", "POSTROUTING")) or (
                "--limit-iface-out" in words and hook in ("PREROUTING", "INPUT")
            ):
                continue
            if table == "raw" and self.chance.random() < 0.15:
                return "%s -j CT --notrack" % self._maybe_not("-s " + self._network())
            # A rule that stops all there is leaves nothing for what comes later.
            if words[:2] in (["-j", "DROP"], ["-j", "REJECT"]) and self.chance.random() < 0.8:
                continue
            return rule

    def _translating(self, hook: str) -> str:
        chance = self.chance
        protocol = chance.choice(("tcp", "udp"))
        if hook == "POSTROUTING":
            match = chance.choice(("-o eth+", "-s " + self._network(), "-o br-a ! -s " + self._network()))
            return "%s -j MASQUERADE" % match
        words = ["-p", protocol, "-m", protocol, "--dport", str(chance.choice((*PORTS_ASKED, "80:443")))]
        if chance.random() < 0.5:
            words += ["-m", "addrtype", "--dst-type", "LOCAL"]
        if chance.random() < 0.3:
            words += ["!", "-s", self._network()]
        if chance.random() < 0.25:
            return " ".join([*words, "-j REDIRECT --to-ports %d" % chance.choice(PORTS_ASKED)])
        address = ADDRESSES[self.family][chance.choice(_INNER)][0]
        target = "[%s]" % address if self.family == IPV6 else address
        return " ".join([*words, "-j DNAT --to-destination %s%s" % (target, chance.choice(("", ":80", ":8080")))])


def text_of(tables: t.Mapping[str, t.Mapping[str, t.Sequence[str]]], policies: t.Mapping[str, str]) -> str:
    lines: list[str] = []
    for table, chains in tables.items():
        lines.append("*" + table)
        lines += [
            ":%s %s [0:0]" % (name, policies.get("%s %s" % (table, name), "ACCEPT" if name in PLACES[table] else "-"))
            for name in chains
        ]
        lines += ["-A %s %s" % (name, rule) for name, rules in chains.items() for rule in rules]
        lines.append("COMMIT")
    return "\n".join([*lines, ""])


# The snapshot --------------------------------------------------------------------------------------------------------


def document(network: Field, dump: str) -> dict[str, t.Any]:
    family, host = network.family, network.host
    routes = []
    for name, option in ((IPV4, "-4"), (IPV6, "-6")):
        routes += parse_routes(json.loads(host.run("ip", option, "-j", "route", "show", "table", "all")), name)
    networks, containers = [], []
    for number, bridge in enumerate(_BRIDGES):
        subnet = str(ipaddress.ip_interface(GATEWAYS[family][bridge]).network)
        networks.append(
            {
                "Name": bridge,
                "Id": "%064x" % number,
                "Driver": "bridge",
                "IPAM": {"Config": [{"Subnet": subnet}]},
                "Options": {"com.docker.network.bridge.name": bridge},
            }
        )
    for number, port in enumerate((ONE, TWO, OTHER)):
        key = "IPAddress" if family == IPV4 else "GlobalIPv6Address"
        endpoint = {"NetworkID": "%064x" % list(_BRIDGES).index(port.master), key: ADDRESSES[family][port][0]}
        containers.append(
            {
                "Id": "%064x" % (16 + number),
                "Names": ["/" + port.name],
                "State": "running",
                "NetworkSettings": {"Networks": {port.master: endpoint}},
            }
        )
    sysctls = {
        "net.ipv4.ip_forward": "1",
        "net.ipv6.conf.all.forwarding": "1",
        "net.bridge.bridge-nf-call-iptables": "1",
        "net.bridge.bridge-nf-call-ip6tables": "1",
    }
    everywhere = "0.0.0.0" if family == IPV4 else "::"
    return {
        "quaywall_snapshot": 1,
        "iptables": {
            "version": "1.8",
            "default": {family: network.variant},
            family: {network.variant: dump},
        },
        "ipsets": "".join(
            "create %s %s family %s\n" % (name, kind, "inet" if family == IPV4 else "inet6")
            + "".join("add %s %s\n" % (name, entry) for entry in entries)
            for name, kind, entries in SETS[family]
        ),
        "nft": {"misprinted": {}, "base_chains": [], "docker": []},
        "docker": {"version": {"Version": "28.5.2"}, "info": {}, "containers": containers, "networks": networks},
        "services": [],
        "proxies": [],
        "listening": [
            {"protocol": protocol, "address": everywhere, "port": number}
            for number in range(1, 10000)
            for protocol in ("tcp", "udp")
            if number in PORTS_ASKED
        ],
        "sysctls": sysctls,
        "interfaces": parse_interfaces(json.loads(host.run("ip", "-j", "-d", "address"))),
        "routes": routes,
        "saved": {},
    }


# Sending -------------------------------------------------------------------------------------------------------------


def _send_own(family: str, shot: Shot, payload: bytes) -> None:
    kind = socket.AF_INET if family == IPV4 else socket.AF_INET6
    with socket.socket(kind, socket.SOCK_DGRAM) as sender:
        sender.bind((shot.source, shot.source_port))
        # What OUTPUT drops is an error here.
        with contextlib.suppress(OSError):
            sender.sendto(payload, (shot.destination, shot.port))


def fire(network: Field, shot: Shot) -> int:
    if shot.sender is None:
        token = network.token()
        network.host.call(_send_own, network.family, shot, b"token %08x" % token)
        return token
    flags = frozenset(("SYN",) if shot.protocol == "tcp" else ())
    packet = Packet(shot.source, shot.destination, shot.protocol, shot.source_port, shot.port, flags)
    return network.send(shot.sender, packet, hardware(network, shot.sender, shot.destination))


def hardware(network: Field, sender: Port, destination: str) -> str:
    """Whom a machine sends to: a neighbour on its bridge, or the host."""
    if sender.master:
        for port in _INNER:
            if port.master == sender.master and destination in ADDRESSES[network.family][port]:
                return port.hardware(False)
        return "02:00:00:00:00:%02x" % _BRIDGES[sender.master]
    return sender.hardware(True)


def answer(network: Field, token: int, at: Port) -> int:
    """Answer a packet that arrived."""
    data = network.frames[token]
    if network.family == IPV4:
        protocol, start = data[23], 14 + (data[14] & 15) * 4
        source, destination = (str(ipaddress.ip_address(data[place : place + 4])) for place in (26, 30))
    else:
        protocol, start = data[20], 54
        source, destination = (str(ipaddress.ip_address(data[place : place + 16])) for place in (22, 38))
    from_port, to_port = struct.unpack("!HH", data[start : start + 4])
    tcp = protocol == 6
    flags = frozenset(("SYN", "ACK") if tcp else ())
    packet = Packet(destination, source, "tcp" if tcp else "udp", to_port, from_port, flags)
    return network.send(at, packet, hardware(network, at, source))


Moved = dict[tuple[str, str, int], str]


def moved(before: Dump, after: Dump) -> tuple[Moved, list[tuple[str, str]]]:
    """Rules that decide and whose counters moved, with their targets; and chains whose policy did."""
    rules: Moved = {}
    policies = []
    for table, found in after.tables.items():
        for name, chain in found.chains.items():
            last: Chain = before.tables[table].chains[name]
            for index, (old, new) in enumerate(zip(last.rules, chain.rules, strict=True)):
                if old.counters != new.counters and new.target in _DECIDE:
                    rules[table, name, index + 1] = new.target or ""
            if chain.policy is not None and chain.counters != last.counters:
                policies.append((table, name))
    return rules, policies


def blocked_by(
    rules: Moved, policies: list[tuple[str, str]], after: Dump, hooks: t.Collection[str]
) -> list[tuple[str, str, int]]:
    """What stopped something at these hooks: the packet, or the error that a REJECT sent on the same way."""
    found = [key for key, target in rules.items() if target in _STOPS and key[1].split("-")[-1] in hooks]
    found += [
        (table, chain, 0)
        for table, chain in policies
        if after.tables[table].chains[chain].policy == "DROP" and chain in hooks
    ]
    rejects = [key for key in found if rules.get(key) == "REJECT"]
    assert len(found) < 2 or rejects, found
    return found


def settled(network: Field, before: Dump, shown: t.Callable[[Dump], bool]) -> Dump:
    deadline = time.monotonic() + 0.5
    while True:
        after = parse_dump(network.dump(), network.family)
        if shown(after) or time.monotonic() > deadline:
            return after
        time.sleep(0.002)


class Story(t.NamedTuple):
    seed: int
    shot: Shot
    ends: list[End]
    rules: t.Any
    policies: t.Any
    dump: str

    def __str__(self) -> str:
        told = "\n".join(
            "%s %s reasons=%s %s\n%s"
            % (
                end.delivered,
                end.kind,
                end.reasons,
                end.decided,
                "\n".join("   %s: %s" % step[:2] for step in end.steps),
            )
            for end in self.ends
        )
        return "QUAYWALL_TRACE_SEED=%d\n%s\n%s\nthe kernel: %s %s\n%s" % (
            self.seed,
            self.shot,
            told,
            self.rules,
            self.policies,
            self.dump,
        )


def _path(end: End, answered: bool) -> list[t.Any]:
    """The steps of the request, or of the answer."""
    hooks = [step.hook for step in end.steps]
    middle = hooks.index("answer") if "answer" in hooks else len(hooks)
    return list(end.steps[middle:] if answered else end.steps[:middle])


def _rules_of(steps: t.Iterable[t.Any]) -> set[tuple[str, str, int]]:
    return {
        (step.decided.table, step.decided.chain, step.decided.position)
        for step in steps
        if step.decided is not None and step.decided.position
    }


@pytest.fixture(scope="module", params=SHARES, ids="-".join)
def network(request: pytest.FixtureRequest) -> Iterator[Field]:
    with ExitStack() as stack:
        yield Field(stack, *request.param)


def restore(network: Field, text: str) -> bool:
    """False where the kernel refuses such rules."""
    done = network.host.attempt(tool(network.family, network.variant, "restore"), data=text.encode())
    return done.returncode == 0


def test_the_kernel_does_as_the_trace_says(network: Field) -> None:
    wanted = max(1, int(PAIRS * SHARES[network.variant, network.family]))
    pairs = certain = answers = refused = 0
    for seed in itertools.count(SEED):
        if pairs >= wanted:
            break
        chance = random.Random("trace %s %s %d" % (network.variant, network.family, seed))
        network.next_port = 40000 + seed * 50 % 20000
        policies = {
            "filter " + hook: "DROP"
            for hook in PLACES["filter"]
            if chance.random() < (0.4 if hook == "FORWARD" else 0.1)
        }
        if not restore(network, text_of(Tables(chance, network.family).tables(), policies)):
            refused += 1
            assert refused < 30, (seed, "rules that the kernel refuses")
            continue
        judge = Judge(from_json(document(network, network.dump())))
        for _number in range(min(PACKETS_FOR_RULES, wanted - pairs)):
            shot = a_shot(chance, network)
            found, answered = compare(network, judge, shot, seed)
            pairs += 1
            certain += found
            answers += answered
    print("%d packets, %d certain, %d answers" % (pairs, certain, answers))
    assert pairs < 50 or certain > pairs * 0.5
    load(network.host, network.variant, network.family, text_of({table: {} for table in PLACES}, {}))


def compare(network: Field, judge: Judge, shot: Shot, seed: int) -> tuple[bool, bool]:
    """One packet, and its answer: whether the trace is certain, and whether there was an answer to look at."""
    family = network.family
    number = int(ipaddress.ip_address(shot.source))
    interface = shot.sender.interface if shot.sender is not None else ""
    start = Start(family, ((number, number),), interface, shot.sender is None, interface)
    destination = int(ipaddress.ip_address(shot.destination))
    ends = judge.tracer.ends(start, destination, shot.port, shot.protocol, (shot.source_port, shot.source_port))
    before = parse_dump(network.dump(), family)
    token = fire(network, shot)
    stopped = [end for end in ends if not end.delivered and not end.reply]
    sure_path = len(ends) == 1 and not ends[0].reasons and not ends[0].fuzzy
    hooks = {step.hook for end in ends for step in _path(end, False)}
    local = shot.sender is None and ends and any(end.kind == "host" for end in ends)
    expected = _rules_of(_path(ends[0], False)) if sure_path else set()
    leaves = any(_has(network, port, end) for end in ends for port in PORTS if end not in stopped)
    arrived = network.arrives(token, (PATIENCE if sure_path else 0.1) if leaves else 0.0)

    def shown(dump: Dump) -> bool:
        rules, policies = moved(before, dump)
        if blocked_by(rules, policies, dump, hooks):
            return True
        return arrived is not None or (bool(expected) and expected <= set(rules) and not stopped)

    after = settled(network, before, shown)
    rules, policies = moved(before, after)
    told = str(Story(seed, shot, ends, rules, policies, network.dump()))
    kernel = blocked_by(rules, policies, after, hooks)
    inside = [end for end in ends if end.delivered or end.reply]
    answered_no = any(target == "REJECT" and key[1].split("-")[-1] not in hooks for key, target in rules.items())
    if kernel and inside and not stopped and answered_no:
        # What was stopped is the error that the host sent itself, as a rule rejected its own answer.
        return False, False
    if kernel:
        assert stopped, told
        if not inside and sure_path:
            decided = ends[0].decided
            assert decided is not None, told
            assert (decided.table, decided.chain, decided.position) in kernel, told
    elif stopped and not inside:
        # Nothing to see in the counters: routing, or nobody there.
        assert all(end.decided is None for end in stopped), told
        assert arrived is None, told
    if inside and not stopped:
        assert not kernel, told
        to = [[port for port in PORTS if _has(network, port, end)] for end in inside]
        # One that is for the host, or that nobody of ours has, arrives nowhere.
        if all(to):
            assert arrived in [port for ports in to for port in ports], told
    quiet = not any(target == "REJECT" for target in rules.values()) and not local
    quiet = quiet and not any(" perhaps " in step.text for end in ends for step in end.steps)
    if sure_path and quiet and (arrived is not None or stopped):
        on_path = {key for key in rules if key[1].split("-")[-1] in hooks}
        if stopped and shot.protocol == "tcp":
            on_path = {key for key in on_path if key[1].split("-")[-1] not in ("OUTPUT", "POSTROUTING")}
            expected = {key for key in expected if key[1].split("-")[-1] not in ("OUTPUT", "POSTROUTING")}
        assert on_path == expected, told
    answered = False
    if arrived is not None and len(ends) == 1 and not ends[0].reasons and shot.sender is not None:
        answered = True
        look_at_answer(network, shot, ends, token, arrived, seed)
    return sure_path, answered


def _has(network: Field, port: Port, end: End) -> bool:
    address = (
        ipaddress.ip_address(end.destination) if network.family == IPV4 else ipaddress.IPv6Address(end.destination)
    )
    return str(address) in ADDRESSES[network.family][port]


def look_at_answer(network: Field, shot: Shot, ends: list[End], token: int, at: Port, seed: int) -> None:
    """The same for the answer."""
    end = ends[0]
    assert shot.sender is not None
    before = parse_dump(network.dump(), network.family)
    back = answer(network, token, at)
    steps = _path(end, True)
    hooks = {step.hook for step in steps} | {"PREROUTING", "FORWARD", "POSTROUTING"}
    returned = network.arrives(back, 0.3 if end.delivered else 0.0)

    def shown(dump: Dump) -> bool:
        rules, policies = moved(before, dump)
        return returned is not None or bool(blocked_by(rules, policies, dump, hooks))

    after = settled(network, before, shown)
    rules, policies = moved(before, after)
    told = str(Story(seed, shot, ends, rules, policies, "(the answer)\n" + network.dump()))
    kernel = blocked_by(rules, policies, after, hooks)
    if end.kind == "untracked":
        # It may come back, but from another address than the client asked.
        assert returned is None or end.translated is not None, told
    elif end.delivered:
        assert returned == shot.sender, told
        assert not kernel, told
    else:
        assert returned is None, told
        if end.decided is not None and not end.fuzzy:
            assert (end.decided.table, end.decided.chain, end.decided.position) in kernel, told
