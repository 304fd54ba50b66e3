# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The snapshots that tests are made of: what is made up is what real engines program, and all of it can be read."""

from __future__ import annotations

import copy
import json
import re
import typing as t
from pathlib import Path

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import Snapshot, from_json, to_json
from ansible_collections.quaywall.docker.tests.unit.snapshots import (
    CAPTURES,
    ENGINES,
    FAMILIES,
    IPV4,
    IPV6,
    Box,
    Document,
    Net,
    captured,
    edited,
    fixture,
    fixtures,
    host,
    large,
    probes,
    rules_of,
    spelled,
    with_rules,
    without_rules,
)
from ansible_collections.quaywall.docker.tests.unit.support import SHARED, shared_files, shared_text

IPTABLES = tuple(name for name in CAPTURES if name.endswith("iptables-nft"))
NFTABLES = "docker-29.7-nftables"


def read(document: Document) -> Snapshot:
    """The document is JSON, is whole, and says the same when it comes back."""
    assert json.loads(json.dumps(document)) == document
    snapshot = from_json(document)
    assert snapshot.holes == ()
    assert from_json(to_json(snapshot)) == snapshot
    return snapshot


def engine_of(name: str) -> str:
    return name.split("-")[1]


def text(document: Document, family: str) -> t.List[str]:
    """The dump without dates, counters, and the DNS rules of the network that the captured hosts were on."""
    lines = (document["iptables"][family]["nft"] or "").splitlines()
    kept = [line for line in lines if not line.startswith("#") and "DOCKER_" not in line]
    return [re.sub(r" \[\d+:\d+\]$", " [0:0]", line) for line in kept]


def table(lines: t.Iterable[str], name: str) -> t.List[str]:
    found: t.List[str] = []
    inside = False
    for line in lines:
        inside = (inside or line == "*" + name) and line != "COMMIT"
        if inside:
            found.append(line)
    return found


# Made up and real ------------------------------------------------------------------------------------------------


def ten_containers(like: Document, **options: t.Any) -> Document:
    """The captures' containers, by hand: captures/README.md and what docker ps would say. Only the IDs are copied."""
    docker = like["docker"]
    networks = {item["Name"]: item["Id"] for item in docker["networks"]}
    ids = {item["Names"][0][1:]: item["Id"] for item in docker["containers"]}

    def box(name: str, *ports: str, **more: t.Any) -> Box:
        return Box(name, *ports, identity=ids[name], **more)

    compose = {"com.docker.compose.project": "shop", "com.docker.compose.service": "admin"}
    return host(
        containers=[
            box("web-a", "9000:8080"),
            box("web-b", "8080:8080"),
            box("admin", "3000:3000", network="app-net", address="172.30.0.10", labels=compose),
            box("dns", "53:53", "53:53/udp", network="app-net", address="172.30.0.53"),
            box("local-only", "127.0.0.1:8081:8080"),
            box("range", "7000-7002:7000-7002"),
            box("hostnet", network="host", listens=[8088]),
            box("dual", "8090:8080", network="dual-net"),
            box("twonets", "8091:8080", network="app-net", also=["dual-net"]),
            box("unpublished"),
        ],
        networks=[
            Net("app-net", "172.30.0.0/24", identity=networks["app-net"]),
            Net("dual-net", "172.31.0.0/24", "fd00:31::/64", identity=networks["dual-net"]),
        ],
        **options,
    )


@pytest.mark.parametrize("name", IPTABLES)
def test_a_host_that_is_made_up_has_the_rules_of_the_real_one(name: str) -> None:
    """Rule for rule and in order, in all tables of both families."""
    real = captured(name)
    made = ten_containers(real, engine=engine_of(name))
    for family in FAMILIES:
        assert text(made, family) == text(real, family)
        assert (made["iptables"][family]["nft"] is None) == (real["iptables"][family]["nft"] is None)
    assert made["iptables"]["version"] == real["iptables"]["version"]
    assert made["nft"] == real["nft"] == {"misprinted": {IPV4: [], IPV6: []}, "base_chains": [], "docker": []}


def test_docker_s_nftables_that_are_made_up_are_the_real_ones() -> None:
    real = captured(NFTABLES)
    made = ten_containers(real, engine="29.7", backend="nftables")

    def bare(objects: t.Iterable[t.Any]) -> str:
        found = re.sub(r'"handle": \d+|"(packets|bytes)": \d+', "", json.dumps(list(objects), sort_keys=True))
        return found.replace("}, {", "},\n{")

    assert bare(made["nft"]["docker"]) == bare(real["nft"]["docker"])
    assert made["iptables"][IPV4]["nft"] is None


@pytest.mark.parametrize("name", CAPTURES)
def test_a_host_that_is_made_up_is_one_of_docker_s(name: str) -> None:
    """The API's answers but for what is a matter of chance there: dates, images, the order of networks and ports."""
    real = captured(name)
    made = ten_containers(real, engine=engine_of(name), backend="nftables" if name == NFTABLES else "iptables")
    for part in ("proxies", "listening", "routes"):
        assert sorted(made[part], key=json.dumps) == sorted(real[part], key=json.dumps)
    assert made["sysctls"] == real["sysctls"]

    def containers(document: Document) -> t.List[t.Any]:
        found: t.List[t.Any] = copy.deepcopy(document["docker"]["containers"])
        for item in found:
            item["Ports"].sort(key=json.dumps)
            for endpoint in item["NetworkSettings"]["Networks"].values():
                del endpoint["NetworkID"]
                endpoint["IPAMConfig"] = endpoint["IPAMConfig"] or None
        return found

    assert containers(made) == containers(real)

    def networks(document: Document) -> t.Dict[str, t.Any]:
        found = {}
        for item in document["docker"]["networks"]:
            subnets = [config["Subnet"] for config in item["IPAM"]["Config"] or ()]
            shape = {
                key: item.get(key) for key in ("Driver", "Scope", "EnableIPv4", "EnableIPv6", "Internal", "Ingress")
            }
            found[item["Name"]] = (shape, subnets, item["Options"].get("com.docker.network.bridge.name"))
        return found

    assert networks(made) == networks(real)

    def veths(document: Document) -> t.List[str]:
        return sorted(item["master"] for item in document["interfaces"] if item["kind"] == "veth")

    def plain(document: Document) -> t.List[str]:
        return sorted(json.dumps(item) for item in document["interfaces"] if item["kind"] != "veth")

    assert veths(made) == veths(real)
    assert plain(made) == plain(real)


GOLDEN = [
    item
    for item in shared_files("rulesets/moby-iptabler/hairpin=*.golden")
    if "wsl2mirrored" not in str(item.id) and "snat=true" not in str(item.id)
]


@pytest.mark.parametrize("path", GOLDEN)
def test_one_bridge_with_all_its_options(path: Path) -> None:
    """TestIptabler's golden files are of Engine 29, whose test has neither DOCKER-USER nor docker0."""
    options = dict(re.findall(r"(\w+)=([a-z-]+)", path.name))
    routed = options.get("gwm") == "routed"
    net = Net(
        "bridge",
        "192.168.0.0/24",
        "fd49:efd7:54aa::/64",
        bridge="br-dummy",
        internal=options["internal"] == "true",
        icc=options["icc"] == "true",
        masquerade=options.get("masq") != "false",
        gateway_mode=options.get("gwm", "nat"),
    )
    local = options.get("bindlh") == "true"
    ports = ("127.0.0.1:8080:80", "[::1]:8080:80") if local else ("8080:80",)
    made = host(
        "29.7",
        [Box("x", *ports, address="192.168.0.2", address6="fd49:efd7:54aa::1")],
        networks=[net],
        options={"userland-proxy": options["hairpin"] == "false"},
        forward_policy="ACCEPT",
    )
    family = IPV6 if "ip6tables" in path.name else IPV4
    lines = shared_text(path).splitlines()
    assert lines
    for name in ("raw", "filter", "nat"):
        # That test maps a port of the host's on a routed network, too; Docker does not (moby-docs, portmap-routed).
        wanted = [line for line in table(lines, name) if not (routed and name != "filter" and "--dport" in line)]
        found = [line for line in table(text(made, family), name) if "DOCKER-USER" not in line]
        # Nobody made that test's empty raw table, but it is listed.
        assert found == wanted or (name == "raw" and not found and not [line for line in wanted if line[0] == "-"])


DOCUMENTED: t.Dict[str, t.Dict[str, t.Any]] = {
    "new-daemon": {"networks": (), "containers": ()},
    "usernet-portmap": {},
    "usernet-portmap-lo": {"containers": (Box("c", "127.0.0.1:8080:80", network="bridge1"),)},
    "usernet-portmap-noicc": {"networks": (Net("bridge1", "192.0.2.0/24", bridge="bridge1", icc=False),)},
    "usernet-portmap-noproxy": {"options": {"userland-proxy": False}},
    "usernet-portmap-routed": {
        "networks": (Net("bridge1", "192.0.2.0/24", bridge="bridge1", gateway_mode="routed"),),
    },
    "usernet-portmap-natunprot": {
        "networks": (Net("bridge1", "192.0.2.0/24", bridge="bridge1", gateway_mode="nat-unprotected"),),
    },
    "usernet-internal": {
        "networks": (
            Net("icc", "192.0.2.0/24", bridge="bridgeICC", internal=True),
            Net("no-icc", "198.51.100.0/24", bridge="bridgeNoICC", internal=True, icc=False),
        ),
        "containers": (),
    },
    "swarm-portmap": {"networks": (), "containers": (), "services": (("web", "8080:80"),)},
}


@pytest.mark.parametrize("path", shared_files("rulesets/moby-docs/*.iptables-save"))
def test_docker_s_own_documentation(path: Path) -> None:
    """Its layouts are of Engine 29; most leave the raw table out."""
    options = DOCUMENTED[path.name[: -len(".iptables-save")]]
    made = host(
        **{
            "engine": "29.7",
            "containers": (Box("c", "8080:80", network="bridge1"),),
            "networks": (Net("bridge1", "192.0.2.0/24", bridge="bridge1"),),
            "forward_policy": "ACCEPT",
            **options,
        }
    )
    lines = shared_text(path).splitlines()
    assert table(lines, "filter")
    for name in ("raw", "filter", "nat"):
        if name != "raw" or table(lines, name):
            assert table(text(made, IPV4), name) == table(lines, name)


# Captures and cases ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAPTURES)
def test_a_capture_as_it_is(name: str) -> None:
    document = captured(name)
    snapshot = read(document)
    assert snapshot.engine is not None
    assert snapshot.engine.version[:2] == tuple(int(number) for number in engine_of(name).split("."))
    assert document["iptables"][IPV4]["nft"] == shared_text(SHARED / "captures" / name / "iptables-save.txt")
    assert snapshot.inventory is not None
    assert len(snapshot.inventory.containers) == 10
    assert {(item.host_address, item.host_port, item.container_address) for item in snapshot.proxies} >= {
        ("0.0.0.0", 9000, "172.17.0.2"),
        ("::", 9000, "172.17.0.2"),
        ("127.0.0.1", 8081, "172.17.0.4"),
        ("::", 8091, "fd00:31::3"),
    }
    assert len(snapshot.proxies) == 2 * 10 + 1
    assert {(item.protocol, item.port) for item in snapshot.listening} >= {("tcp", 22), ("tcp", 8088), ("udp", 53)}
    assert {item.name: item.addresses for item in snapshot.interfaces}["docker0"] == ("172.17.0.1/16",)
    bridge = next(item for item in snapshot.interfaces if "fd00:31::1/64" in item.addresses)
    assert ("172.31.0.0/24", bridge.name, "main") in {
        (item.destination, item.interface, item.table) for item in snapshot.routes
    }


@pytest.mark.parametrize("name", IPTABLES)
def test_rules_in_a_capture_s_docker_user(name: str) -> None:
    before = captured(name)
    after = captured(name, ["-p tcp --dport 80 -j DROP", "-s 192.0.2.1 -j RETURN"], services=[{"name": "x"}])
    rules = rules_of(after, IPV4, "filter", "DOCKER-USER")
    assert rules[:2] == ["-p tcp -m tcp --dport 80 -j DROP", "-s 192.0.2.1/32 -j RETURN"]
    assert rules[2:] == rules_of(before, IPV4, "filter", "DOCKER-USER")
    assert after["services"] == [{"name": "x"}]
    back = without_rules(after, IPV4, lambda line: line in ["-A DOCKER-USER " + rule for rule in rules[:2]])
    assert back["iptables"] == before["iptables"]


@pytest.mark.parametrize(("case", "variant"), fixtures())
def test_a_case_as_it_is(case: str, variant: str) -> None:
    document = fixture(case, variant)
    snapshot = read(document)
    given = probes(case, variant)
    folder = SHARED / "cases" / "fixtures" / case
    for family, suffix in ((IPV4, ".v4.iptables-save"), (IPV6, ".v6.ip6tables-save")):
        path = folder / (variant + suffix)
        assert document["iptables"][family]["nft"] == (shared_text(path) if path.is_file() else None)
    assert snapshot.inventory is not None
    assert {
        item.name: {a for found in item.networks.values() for a in found} for item in snapshot.inventory.containers
    } == {item["name"]: {item["ip"]} for item in given["containers"]}
    interfaces = {item.name: item.addresses for item in snapshot.interfaces}
    for name, address in given["host"].items():
        assert address in interfaces[name]
    assert {(item.host_address, item.host_port) for item in snapshot.proxies} == {
        (address, port) for address, port, _name, _inner in given["userland_proxy"]
    }
    # Every published port is where the rules lead, and IPv6 has only what a proxy answers.
    for item in snapshot.inventory.containers:
        for port in item.current_ports:
            if ":" in port.host_address:
                assert (port.host_address, port.host_port) in {(p.host_address, p.host_port) for p in snapshot.proxies}
            elif document["iptables"][IPV4]["nft"] and "DOCKER-USER" in document["iptables"][IPV4]["nft"]:
                rules = rules_of(document, IPV4, "nat", "DOCKER")
                (address,) = (a for found in item.networks.values() for a in found)
                assert any(rule.endswith("%s:%d" % (address, port.container_port)) for rule in rules)


def test_a_case_with_docker_s_nftables() -> None:
    document = fixture("moby-50566", "nft-only")
    ruleset = shared_text(SHARED / "cases" / "fixtures" / "moby-50566" / "nft-only.nft")
    snapshot = read(document)
    assert snapshot.nft is not None
    assert {item["chain"]["name"] for item in snapshot.nft.docker if "chain" in item} == set(
        re.findall(r"chain (\S+) \{", ruleset)
    )
    rules = [line for line in ruleset.splitlines() if re.search(r"\b(counter|vmap)\b", line)]
    assert len([item for item in snapshot.nft.docker if "rule" in item]) == len(rules)
    assert snapshot.nft.docker[0] == {"table": {"family": "ip", "name": "docker-bridges", "handle": 1}}


# Hosts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_hosts_can_be_read(engine: str) -> None:
    snapshot = read(
        host(
            engine,
            [
                Box("admin", "9000:8080"),
                Box("shop", "8080:8080", "[::1]:8081:80", "7/sctp", network="shop", address="172.30.0.10"),
                Box("gone", "81:80", running=False),
                Box("beside", network="container:shop"),
                Box("alone", network="none"),
                Box("near", "82:80", network="inner"),
            ],
            networks=[Net("inner", internal=True)],
            docker_user=["-s 192.0.2.1 -j DROP"],
            saved={"/etc/iptables/rules.v4": "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"},
            options={"live-restore": True},
            bridge_nf=False,
            ipv6=True,
            services=[("web", "8090:80")],
            listening=[("udp", "0.0.0.0", 123)],
            proxies=[],
        )
    )
    assert snapshot.engine is not None
    assert snapshot.engine.swarm
    assert snapshot.engine.options == {"live-restore": True}
    assert [tuple(port) for port in snapshot.swarm_ports] == [("web", "tcp", 8090, 80, "ingress")]
    assert "net.bridge.bridge-nf-call-iptables" not in snapshot.sysctls
    assert snapshot.proxies == ()
    assert ("udp", "0.0.0.0", 123) in snapshot.listening
    assert list(snapshot.saved) == ["/etc/iptables/rules.v4"]
    assert snapshot.inventory is not None
    containers = {item.name: item for item in snapshot.inventory.containers}
    assert containers["admin"].networks == {"bridge": ("172.17.0.2", "fd00:17::2")}
    assert containers["shop"].networks == {"shop": ("172.30.0.10",)}
    assert containers["gone"].networks == {"bridge": ()}
    assert not containers["gone"].running
    assert containers["beside"].network_mode == "container:" + containers["shop"].id
    assert containers["beside"].networks == {}
    assert containers["near"].current_ports == ()
    assert snapshot.inventory.networks["inner"].subnets == ("172.18.0.0/16",)
    assert snapshot.inventory.networks["docker_gwbridge"].subnets == ("172.19.0.0/16",)
    assert [(item.host_port, item.host_address) for item in containers["shop"].current_ports] == [
        (8080, "0.0.0.0"),
        (8080, "::"),
        (8081, "::1"),
    ]


def test_an_old_engine_writes_rules_for_ipv6_when_it_is_told_to() -> None:
    """Facts 1.2: DOCKER-USER with RETURN and FORWARD DROP in 26.1; no DOCKER-USER in 20.10."""
    boxes = [Box("a", "9000:80")]
    for engine in ("20.10", "26.1"):
        assert host(engine, boxes, ipv6=True)["iptables"][IPV6]["nft"] is None
    options = {"ip6tables": True}
    newer = host("26.1", boxes, ipv6=True, options=options, forward_policy="ACCEPT")
    assert ":FORWARD DROP [0:0]" in newer["iptables"][IPV6]["nft"]
    assert ":FORWARD ACCEPT [0:0]" in newer["iptables"][IPV4]["nft"]
    assert rules_of(newer, IPV6, "filter", "DOCKER-USER") == ["-j RETURN"]
    older = host("20.10", boxes, ipv6=True, options=options)
    assert "DOCKER-USER" not in older["iptables"][IPV6]["nft"]
    assert rules_of(older, IPV6, "nat", "DOCKER") == [
        "-i docker0 -j RETURN",
        "! -s fe80::/10 ! -i docker0 -p tcp -m tcp --dport 9000 -j DNAT --to-destination [fd00:17::2]:80",
    ]


def test_options_of_the_daemon() -> None:
    boxes = [Box("a", "9000:80")]
    direct = host("28.5", boxes, options={"allow-direct-routing": True})
    assert rules_of(direct, IPV4, "raw", "PREROUTING") == []
    assert ":FORWARD ACCEPT" in host("29.7", options={"ip-forward-no-drop": True})["iptables"][IPV4]["nft"]
    alone = host("28.5", boxes, options={"iptables": False})
    assert alone["iptables"][IPV4] == {"nft": None, "legacy": None}
    assert [item["host_port"] for item in alone["proxies"]] == [9000, 9000]
    quiet = host("28.5", boxes, options={"userland-proxy": False})
    assert quiet["proxies"] == []
    assert [port["IP"] for port in quiet["docker"]["containers"][0]["Ports"]] == ["0.0.0.0"]
    assert quiet["sysctls"]["net.ipv4.conf.docker0.route_localnet"] == "1"


def test_what_cannot_be_made_up_is_said() -> None:
    for wrong in ("a", "80:90-91", "1.2.3.4:80", "80/icmp", "x:1:2"):
        with pytest.raises(ValueError, match=r"docker run -p|differ in length"):
            host(containers=[Box("a", wrong)])
    with pytest.raises(ValueError, match="full"):
        host(containers=[Box(str(n), network="n") for n in range(14)], networks=[Net("n", "10.0.0.0/28")])
    with pytest.raises(ValueError, match="captured"):
        host("28.5", backend="nftables")
    with pytest.raises(ValueError, match="no chain DOCKER-USER"):
        host("20.10", docker_user6=["-j DROP"])


# Helpers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "written", "printed"),
    [
        # As iptables-nft-save 1.8.9 prints them.
        (IPV4, "-p tcp --dport 80 -j DROP", "-p tcp -m tcp --dport 80 -j DROP"),
        (IPV4, "-p udp ! --dport 80 -s 192.0.2.1 -j X", "-s 192.0.2.1/32 -p udp -m udp ! --dport 80 -j X"),
        (IPV4, "-p tcp -d 10.0.0.1 ! -i eth0 -j X", "-d 10.0.0.1/32 ! -i eth0 -p tcp -j X"),
        (IPV4, "! -s 10.0.0.0/8 -o lo -j X", "! -s 10.0.0.0/8 -o lo -j X"),
        (IPV6, "-d fd00::1 -j REJECT", "-d fd00::1/128 -j REJECT --reject-with icmp6-port-unreachable"),
        (IPV4, "-j REJECT", "-j REJECT --reject-with icmp-port-unreachable"),
        (IPV4, "-p tcp --syn -j X", "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j X"),
        (IPV4, "-s 10.1.2.3/8 -d 0.0.0.0/0 -j DROP", "-s 10.0.0.0/8 -j DROP"),
        (IPV6, "-s fd00:0:0::1/64 -j X", "-s fd00::/64 -j X"),
        (
            IPV4,
            "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ),
        (
            IPV4,
            "-i eth0 -p tcp -m conntrack --ctstate DNAT --ctorigdstport 80 --ctdir ORIGINAL -j DROP",
            "-i eth0 -p tcp -m conntrack --ctstate DNAT --ctorigdstport 80 --ctdir ORIGINAL -j DROP",
        ),
        (
            IPV4,
            "-p tcp -m multiport --dports 80,443 -j DROP",
            "-p tcp -m multiport --dports 80,443 -j DROP",
        ),
        (IPV4, '-m comment --comment "-p tcp  -s 1" -j X', '-m comment --comment "-p tcp  -s 1" -j X'),
        (IPV4, "", ""),
    ],
)
def test_rules_as_iptables_prints_them(family: str, written: str, printed: str) -> None:
    assert spelled(written, family) == printed
    assert spelled(printed, family) == printed


def test_lines_as_iptables_restore_carries_them_out() -> None:
    start = host()
    kept = copy.deepcopy(start)
    document = with_rules(
        start,
        IPV4,
        "filter",
        [
            ":X - [0:0]",
            "-A X -j RETURN",
            "-I X -s 192.0.2.1 -j DROP",
            '-I X 2 -m comment --comment "a\nb" -j DROP',
            "-A DOCKER-USER -j X",
            "-I DOCKER-USER 1 -j LOG",
            "-P INPUT DROP",
            ":OUTPUT DROP [0:0]",
            "-N Y",
            "-A Y",
            "-R Y 1 -j X",
            "-D FORWARD -j DOCKER-FORWARD",
            "-D FORWARD 1",
            ":Z - [0:0]",
            "-X Z",
        ],
    )
    assert start == kept
    assert rules_of(document, IPV4, "filter", "X") == [
        "-s 192.0.2.1/32 -j DROP",
        '-m comment --comment "a\nb" -j DROP',
        "-j RETURN",
    ]
    assert rules_of(document, IPV4, "filter", "DOCKER-USER") == ["-j LOG", "-j X"]
    assert rules_of(document, IPV4, "filter", "Y") == ["-j X"]
    assert rules_of(document, IPV4, "filter", "FORWARD") == []
    dump = document["iptables"][IPV4]["nft"]
    assert ":INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT DROP [0:0]\n" in dump
    assert ":Z" not in dump
    # Nothing else changed, and flushing what is flushed gives the old text.
    back = with_rules(
        document,
        IPV4,
        "filter",
        [
            *("-F DOCKER-USER", "-F Y", "-F X", "-X X", "-X Y", "-P INPUT ACCEPT", "-P OUTPUT ACCEPT"),
            *("-A FORWARD -j DOCKER-USER", "-A FORWARD -j DOCKER-FORWARD"),
        ],
    )
    assert back["iptables"] == start["iptables"]
    for wrong in ("-A NONE -j X", "-I INPUT 2 -j X", "-D INPUT 1", "-D INPUT -j X", "-Z INPUT", "-X DOCKER-FORWARD"):
        with pytest.raises(ValueError, match=r"has no chain|has \d+ rules|not in list|cannot do"):
            with_rules(start, IPV4, "filter", [wrong])


def test_a_table_or_a_dump_that_is_not_there_is_made() -> None:
    document = with_rules(host("20.10"), IPV6, "mangle", ["-A FORWARD -j DROP"], variant="legacy")
    dump = document["iptables"][IPV6]["legacy"]
    assert dump.startswith("*mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n")
    assert dump.endswith("-A FORWARD -j DROP\nCOMMIT\n")
    assert document["iptables"][IPV6]["nft"] is None
    read(document)


def test_rules_are_taken_out_of_one_table_or_all() -> None:
    document = host("28.5", [Box("a", "9000:80")])
    assert "-j DNAT" in document["iptables"][IPV4]["nft"]
    gone = without_rules(document, IPV4, lambda line: line.startswith("-A DOCKER "))
    assert rules_of(gone, IPV4, "nat", "DOCKER") == rules_of(gone, IPV4, "filter", "DOCKER") == []
    half = without_rules(document, IPV4, lambda line: line.startswith("-A DOCKER "), table="nat")
    assert rules_of(half, IPV4, "nat", "DOCKER") == []
    assert rules_of(half, IPV4, "filter", "DOCKER") == rules_of(document, IPV4, "filter", "DOCKER") != []


def test_edits_are_merged() -> None:
    document = host()
    changed = edited(document, docker={"daemon": {"iptables": False}}, nft=None, routes=[])
    assert changed["docker"]["daemon"] == {"iptables": False}
    assert changed["docker"]["networks"] == document["docker"]["networks"]
    assert changed["nft"] is None
    assert changed["routes"] == []
    assert document["docker"]["daemon"] == {}


# Big hosts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("containers", "rules"), [(0, 0), (1, 1), (3, 5), (40, 60), (300, 1000)])
def test_a_big_host(containers: int, rules: int) -> None:
    document = large(containers, rules)
    assert document == large(containers, rules)
    snapshot = read(document)
    assert snapshot.inventory is not None
    assert len(snapshot.inventory.containers) == containers
    chains = ("DOCKER-USER", "BANNED", "APPS")
    found = [rule for chain in chains for rule in rules_of(document, IPV4, "filter", chain)]
    assert len(found) == rules
    assert len([item for item in snapshot.interfaces if item.kind == "bridge"]) <= 30
    if rules >= 1000:
        assert document != large(containers, rules, seed=1)
        kinds = {
            "by address": r"-d \S+/32 ! -i",
            "by host port": r"--ctorigdstport \d+ --ctdir ORIGINAL",
            "by host port, careless": r"--ctorigdstport \d+ -j",
            "by port alone": r"^-i eth0 -p tcp -m tcp --dport \d+ -j DROP$",
            "several ports": r"-m multiport --dports",
            "banned": r"^-s \S+/32 -j DROP$",
        }
        counts = {name: len([rule for rule in found if re.search(kind, rule)]) for name, kind in kinds.items()}
        assert all(counts.values()), counts
        assert counts["by port alone"] < 20
        assert all(spelled(rule) == rule for rule in found)
