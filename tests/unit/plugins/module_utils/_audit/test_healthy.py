# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts that are as they should be: nothing is said of them above info, or only what is true and named here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._checks import audit
from ansible_collections.quaywall.docker.plugins.module_utils._baseline import (
    Settings,
    compile_chain,
    parse_policies,
    plan_chain,
)
from ansible_collections.quaywall.docker.plugins.module_utils._chain import Table, docker_manages
from ansible_collections.quaywall.docker.plugins.module_utils._plan import plan, with_policy
from ansible_collections.quaywall.docker.plugins.module_utils._policy import Policy, compile_policy
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import STORED_POLICIES, from_json
from ansible_collections.quaywall.docker.tests.unit.foreign import (
    UFW_DOCKER,
    crowdsec,
    crowdsec_nftables,
    fail2ban,
    firewalld,
    firewalld_nftables,
    libvirt,
    tailscale,
    ufw,
    ufw_docker,
)
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
    host,
    with_rules,
)
from ansible_collections.quaywall.docker.tests.unit.support import SHARED, absent, shared_files, shared_text
from ansible_collections.quaywall.docker.tests.unit.test__snapshots import DOCUMENTED

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Binding, Container

#: Engines that take the jump to DOCKER-USER away for moments, and that let neighbours reach container addresses.
OLD = ("20.10", "26.1")


def said(document: Document) -> t.Set[str]:
    """The names of the checks that have something to say above info."""
    return {finding.check for finding in audit(from_json(document)) if finding.severity != "info"}


def messages(document: Document) -> t.List[str]:
    """The same, to be read by a person."""
    return [
        "%s %s (%s): %s" % (finding.severity, finding.check, finding.place, finding.message)
        for finding in audit(from_json(document))
        if finding.severity != "info"
    ]


def assert_only(document: Document, *allowed: str) -> None:
    """Nothing above info, but what is allowed."""
    assert said(document) <= set(allowed), "\n".join(messages(document))


def assert_says(document: Document, *checks: str) -> None:
    """Exactly these checks, above info."""
    assert said(document) == set(checks), "\n".join(messages(document))


# Docker alone ----------------------------------------------------------------------------------------------------


def fleet(ipv6: bool = False) -> t.Dict[str, t.Any]:
    """Containers and networks of all kinds, and no port that is for the host alone."""
    boxes = [
        Box("web", "80:80", "443:443"),
        Box("admin", "9000:8080"),
        Box("shop", "8080:8080"),
        Box("dns", "53:53", "53:53/udp", network="app"),
        Box("range", "7000-7002:7000-7002", "5000/udp", network="app"),
        Box("two", "8091:8080", network="app", also=["other"]),
        Box("near", "5432:5432", network="inner"),
        Box("gone", "81:80", running=False),
        Box("beside", network="container:web"),
        Box("alone", network="none"),
        Box("direct", network="host", listens=[9100]),
        Box("unpublished"),
    ]
    networks = [
        Net("app", "172.30.0.0/24", "fd00:30::/64" if ipv6 else ""),
        Net("other", "172.31.0.0/24", icc=False),
        Net("inner", "172.29.0.0/24", internal=True),
    ]
    return {"containers": boxes, "networks": networks, "ipv6": ipv6}


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("engine", ENGINES)
def test_fresh(engine: str, ipv6: bool) -> None:
    # Engines before 27 write no rules for IPv6: who is routed to a container there reaches every port of it.
    assert_only(host(engine, **fleet(ipv6)), *(["direct_routing"] if ipv6 and engine in OLD else []))


@pytest.mark.parametrize("engine", ENGINES)
def test_fresh_without_containers(engine: str) -> None:
    assert_only(host(engine))
    assert_only(host(engine, ipv6=True))


@pytest.mark.parametrize(
    "options",
    [
        {"bridge_nf": False},
        {"options": {"userland-proxy": False}},
        {"options": {"live-restore": True}},
        {"services": [("web", "8000:80")]},
    ],
    ids=["bridge-nf", "userland-proxy", "live-restore", "swarm"],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_fresh_with_options(engine: str, options: t.Dict[str, t.Any]) -> None:
    assert_only(host(engine, **{**fleet(), **options}))


@pytest.mark.parametrize("engine", ["28.5", "29.7"])
def test_forwarding_was_on_before_docker(engine: str) -> None:
    """Docker leaves the policy of FORWARD alone; since Engine 28 its own rules drop what is not published."""
    assert_only(host(engine, **fleet(), forward_policy="ACCEPT"))


def test_docker_with_nftables() -> None:
    containers = [box for box in fleet()["containers"] if box.name != "near"]
    networks = [net for net in fleet()["networks"] if not net.internal]
    assert_only(host("29.7", containers, networks=networks, backend="nftables"))


@pytest.mark.parametrize("name", CAPTURES)
def test_captures(name: str) -> None:
    """Before Engine 28 a neighbour reaches what is published on 127.0.0.1, and every IPv6 address."""
    assert_only(captured(name), *(["direct_routing"] if name.split("-")[1] in OLD else []))


# Docker's own tests and documentation ----------------------------------------------------------------------------


def _golden(path: Path) -> Document:
    """The host of TestIptabler (Engine 29) with one file's rules, and those of the other family beside it."""
    options = dict(re.findall(r"(\w+)=([a-z-]+)", path.name))
    net = Net(
        "bridge",
        "192.168.0.0/24",
        "fd49:efd7:54aa::/64",
        bridge="br-dummy",
        internal=options.get("internal") == "true",
        icc=options.get("icc", "true") == "true",
        masquerade=options.get("masq") != "false",
        gateway_mode=options.get("gwm", "nat"),
    )
    ports = ("127.0.0.1:8080:80", "[::1]:8080:80") if options.get("bindlh") == "true" else ("8080:80",)
    cleaned = path.name.startswith(("cleaned", "no__"))
    document = host(
        "29.7",
        [] if cleaned else [Box("x", *ports, address="192.168.0.2", address6="fd49:efd7:54aa::1")],
        networks=[net],
        options={"userland-proxy": options.get("hairpin") != "true"},
        forward_policy="ACCEPT",
    )
    if options.get("gwm") == "routed":
        # That test maps a port of the host's on a routed network, too, which Docker does not.
        for port in [port for item in document["docker"]["containers"] for port in item["Ports"]]:
            local = {"0.0.0.0": "127.0.0.1", "::": "::1"} if options.get("bindlh") == "true" else {}
            port.update({"PublicPort": 8080, "IP": local.get(port["IP"], port["IP"])})
    six = path.with_name(re.sub(r"(,wsl2mirrored=true)?__ip6?tables\.golden\Z", "__ip6tables.golden", path.name))
    four = path if path.name.endswith("__iptables.golden") else path.with_name(six.name.replace("ip6", "ip"))
    return edited(document, iptables={IPV4: {"nft": shared_text(four)}, IPV6: {"nft": shared_text(six)}})


@pytest.mark.parametrize("path", shared_files("rulesets/moby-iptabler/*.golden"))
def test_moby_s_golden_files(path: Path) -> None:
    assert_only(_golden(path))


def _documented(name: str, **more: t.Any) -> Document:
    return host(
        **{
            "engine": "29.7",
            "containers": (Box("c", "8080:80", network="bridge1"),),
            "networks": (Net("bridge1", "192.0.2.0/24", bridge="bridge1"),),
            "forward_policy": "ACCEPT",
            **DOCUMENTED[name],
            **more,
        }
    )


@pytest.mark.parametrize("path", shared_files("rulesets/moby-docs/*.iptables-save"))
def test_moby_s_documentation(path: Path) -> None:
    """Most of its layouts leave the raw table out, and with it what keeps neighbours away."""
    text = shared_text(path)
    whole = "*raw\n" in text or not DOCUMENTED[path.stem].get("containers", "c")
    document = edited(_documented(path.stem), iptables={IPV4: {"nft": text}})
    assert_only(document, *([] if whole else ["direct_routing"]))


#: Only such hosts were captured: networks with NAT, docker-proxy, no Swarm.
WITH_NFTABLES = ("new-daemon", "usernet-portmap", "usernet-portmap-lo", "usernet-portmap-noicc")


@pytest.mark.parametrize("name", WITH_NFTABLES)
def test_moby_s_documentation_with_nftables(name: str) -> None:
    assert_only(_documented(name, backend="nftables"))


# Policies of ours ------------------------------------------------------------------------------------------------


def _bindings(container: Container) -> t.Tuple[Binding, ...]:
    return tuple(binding._replace(fixed=True) for binding in container.current_ports)


def with_policies(document: Document, *policies: t.Mapping[str, t.Any]) -> Document:
    """The host after tasks of docker_user_rule, one after the other."""
    for options in policies:
        snapshot = from_json(document)
        policy = Policy.from_options({"name": "policy", **options})
        tables = {
            family: snapshot.dumps[family, "nft"].tables["filter"]
            for family in FAMILIES
            if (family, "nft") in snapshot.dumps
        }
        ip6_dnat = IPV6 in tables and docker_manages(tables[IPV6])
        compiled = compile_policy(policy, snapshot.inventory, _bindings, ip6_dnat=ip6_dnat)
        for family, table in tables.items():
            rules = compiled.rules.get(family, ())
            if rules:
                block = with_policy(table.chains.get("DOCKER-USER"), policy.name, rules)
                made = plan(table, block, established=True, add_return=True, family=family)
                lines = [":DOCKER-USER - [0:0]"] + ["-A DOCKER-USER " + rule for rule in made.after]
                document = with_rules(document, family, "filter", lines)
    return document


def with_chain(document: Document, settings: t.Mapping[str, t.Any], *options: t.Mapping[str, t.Any]) -> Document:
    """The host after the role: the whole chain, its guard, and the policies stored."""
    snapshot = from_json(document)
    made = Settings.from_options(settings)
    policies = parse_policies([{"name": "p%d" % index, **item} for index, item in enumerate(options)], 0)
    dumps = {family: snapshot.dumps[family, "nft"] for family in FAMILIES if (family, "nft") in snapshot.dumps}
    ip6_dnat = IPV6 in dumps and docker_manages(dumps[IPV6].tables["filter"])
    wanted = compile_chain(policies, snapshot.inventory, _bindings, (), ip6_dnat, wait=True)
    for family, dump in dumps.items():
        mangle = dump.tables.get("mangle") or Table("mangle", {})
        planned = plan_chain(dump.tables["filter"], mangle, wanted, made, family, unknown=False)
        for own in planned.own:
            lines = [":%s - [0:0]" % own.name, *("-A %s %s" % (own.name, rule) for rule in own.after or ())]
            lines += ["-A %s %s" % hook for hook in own.inserts]
            document = with_rules(document, family, own.table, lines)
        if planned.after:
            lines = [":DOCKER-USER - [0:0]"] + ["-A DOCKER-USER " + rule for rule in planned.after]
            document = with_rules(document, family, "filter", lines)
    return edited(document, saved={STORED_POLICIES: ""})


@pytest.mark.parametrize("settings", [{}, {"default": "drop"}, {"established": "return"}], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_host_with_the_role(engine: str, settings: t.Dict[str, t.Any]) -> None:
    """Nothing above info, and no word of windows or reboots: the guard is there, and the policies are stored."""
    document = host(engine, [Box("admin", "0.0.0.0:9000:8080"), Box("shop", "0.0.0.0:8080:8080")])
    policies = [
        {"container": "admin", "destination_port": ["8080"], "source": OFFICE[:1], "action": "accept"},
        {"published_port": "8080", "action": "return"},
    ]
    findings = audit(from_json(with_chain(document, settings, *policies)))
    told = {finding.check for finding in findings} - ({"direct_routing"} if engine in OLD else set())
    assert told <= {"exposed"}, [finding.message for finding in findings]
    # Without the guard the window is there.
    if engine in OLD:
        bare = audit(from_json(with_chain(document, {**settings, "guard": False}, *policies)))
        assert "jump_window" in {finding.check for finding in bare}


OFFICE = ["203.0.113.0/28", "2001:db8:113:1::/64"]

POLICIES: t.Dict[str, t.List[t.Dict[str, t.Any]]] = {
    "container, accept": [{"container": "admin", "destination_port": ["8080"], "source": OFFICE, "action": "accept"}],
    "container, return": [
        {"container": "shop", "destination_port": ["8080"], "source": OFFICE, "action": "return", "otherwise": "reject"}
    ],
    "container, drop": [{"container": "admin", "destination_port": ["8080"], "action": "drop"}],
    "container, reject": [{"container": "admin", "action": "reject"}],
    "container, some are dropped": [{"container": "shop", "source": ["198.51.100.0/24"], "action": "drop"}],
    "container, all protocols": [{"container": "dns", "protocol": "all", "source": OFFICE, "action": "accept"}],
    "container, udp": [
        {"container": "dns", "protocol": "udp", "destination_port": ["53"], "source": OFFICE, "action": "accept"}
    ],
    "container, range": [
        {"container": "range", "destination_port": ["7000:7002"], "source": OFFICE, "action": "accept"}
    ],
    "container, several ports": [
        {"container": "range", "destination_port": ["7000", "7002"], "source": OFFICE, "action": "return"}
    ],
    "container, interface": [
        {"container": "web", "in_interface": "eth0", "source": OFFICE, "action": "accept", "destination_port": ["80"]}
    ],
    "container, by address": [
        {"container": "admin", "destination_port": ["8080"], "source": OFFICE, "action": "accept", "match": "address"}
    ],
    "container, by published port": [
        {"container": "admin", "source": OFFICE, "action": "accept", "match": "published_port"}
    ],
    "container, its neighbours too": [
        {"container": "dns", "destination_port": ["53"], "source": OFFICE, "action": "accept", "same_network": "filter"}
    ],
    "container, logged": [
        {"container": "admin", "destination_port": ["8080"], "source": OFFICE, "action": "accept", "log": {}}
    ],
    "container on two networks": [
        {"container": "two", "container_network": "app", "source": OFFICE, "action": "return"}
    ],
    "labels": [{"labels": {"com.docker.compose.project": "shop"}, "source": OFFICE, "action": "accept"}],
    "network": [{"network": "app", "source": OFFICE, "action": "accept"}],
    "network, closed": [{"network": "app", "action": "drop"}],
    "published_port": [{"published_port": "9000", "source": OFFICE, "action": "accept"}],
    "published_port, range": [{"published_port": "7000:7002", "source": OFFICE, "action": "return"}],
    "published_port, closed": [{"published_port": "8080", "action": "drop"}],
    "destination": [
        {"name": "app-4", "destination": "172.30.0.0/24", "source": OFFICE[:1], "action": "accept"},
        {"name": "app-6", "destination": "fd00:30::/64", "source": OFFICE[1:], "action": "accept"},
    ],
    "many": [
        {"name": "admin", "container": "admin", "source": OFFICE, "action": "accept"},
        {"name": "shop", "container": "shop", "destination_port": ["8080"], "source": OFFICE, "action": "accept"},
        {"name": "shop-2", "container": "shop", "source": ["198.51.100.7"], "action": "accept"},
        {"name": "dns", "network": "app", "source": OFFICE, "action": "return", "priority": 10},
        {"name": "web", "published_port": "443", "source": OFFICE, "action": "return", "log": {"limit": "1/second"}},
    ],
}


def guarded(engine: str, ipv6: bool) -> Document:
    """A host whose ports are not served past DOCKER-USER: docker-proxy has no address of IPv6."""
    found = fleet(ipv6)
    boxes = []
    for box in found["containers"]:
        ports = [port if ipv6 and box.network != "other" else "0.0.0.0:" + port for port in box.ports if ":" in port]
        if ipv6 and box.network == "app":
            ports = list(box.ports)
        labels = {"com.docker.compose.project": "shop"} if box.name == "shop" else {}
        also = [name for name, *_addresses in box.attached[1:]]
        boxes.append(
            Box(
                box.name,
                *ports,
                network=box.network,
                also=also,
                running=box.running,
                labels=labels,
                listens=box.listens,
            )
        )
    return host(engine, **{**found, "containers": boxes})


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("engine", ["28.5", "29.7"])
def test_policies(engine: str, name: str, ipv6: bool) -> None:
    assert_only(with_policies(guarded(engine, ipv6), *POLICIES[name]))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("engine", OLD)
def test_policies_on_old_engines(engine: str, name: str) -> None:
    """They take the jump away while a network is created, and nothing guards the containers meanwhile.

    A policy that knows a host port only stops nobody who is routed to the container's own address.
    """
    policies = [policy for policy in POLICIES[name] if ":" not in policy.get("destination", "")]
    by_port = any("published_port" in (*policy, policy.get("match")) for policy in policies)
    document = with_policies(guarded(engine, False), *policies)
    assert_only(document, "jump_window", *(["direct_routing"] if by_port else []))


def test_policies_past_which_docker_proxy_serves() -> None:
    """A port published on every address is served on IPv6 too, by docker-proxy: no policy can stop that."""
    boxes = [Box("admin", "9000:8080"), Box("shop", "8080:8080")]
    assert_says(with_policies(host("28.5", boxes), *POLICIES["container, accept"]), "proxy_bypass")


# A person's rules ------------------------------------------------------------------------------------------------

ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
SYN = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN"
RECENT = "--name D --mask 255.255.255.255 --rsource"

IDIOMS: t.Dict[str, t.List[str]] = {
    "Docker's documentation, with what it says about replies": [ESTABLISHED, "-i eth0 ! -s 192.0.2.0/24 -j DROP"],
    "the same by range": [ESTABLISHED, "-i eth0 -m iprange ! --src-range 192.0.2.1-192.0.2.9 -j DROP"],
    "by what was asked for": [
        ESTABLISHED,
        "-p tcp -m conntrack --ctorigdst 203.0.113.1 --ctorigdstport 8080 --ctdir ORIGINAL -j ACCEPT",
        "-i eth0 -j DROP",
    ],
    "all but one port, new connections": [
        "-i eth0 -p tcp -m conntrack --ctstate DNAT --ctorigdstport 8080 --ctdir ORIGINAL -j RETURN",
        "-i eth0 -m conntrack --ctstate NEW -j DROP",
    ],
    "other networks of the host": ["-i eth1 -o eth0 -j ACCEPT"],
    "a few at a time": ["-i eth0 %s -m connlimit --connlimit-above 20 --connlimit-mask 32 -j REJECT" % SYN],
    "not too often": [
        "-i eth0 -p tcp -m conntrack --ctstate NEW -m recent --set " + RECENT,
        "-i eth0 -p tcp -m conntrack --ctstate NEW -m recent --update --seconds 60 --hitcount 20 %s -j DROP" % RECENT,
    ],
    "some countries": [ESTABLISHED, "-i eth0 -m set ! --match-set allowed src -j DROP"],
    "no nonsense": ["-m conntrack --ctstate INVALID -j DROP"],
    "a log": ["-i eth0 -m limit --limit 5/min -j LOG --log-prefix in "],
    "bans": ["-s 198.51.100.7/32 -j DROP", "-s 198.51.100.128/25 -j REJECT"],
    "no metadata of the cloud": ["-d 169.254.169.254/32 -j DROP"],
    "no mail from here": ["-i docker0 ! -o docker0 -p tcp -m tcp --dport 25 -j REJECT"],
    "no private networks from here": [ESTABLISHED, "-i docker0 ! -o docker0 -d 10.0.0.0/8 -j REJECT"],
}


@pytest.mark.parametrize("name", IDIOMS)
def test_rules_that_do_what_they_say(name: str) -> None:
    boxes = [Box("httpd", "0.0.0.0:8080:80"), Box("admin", "0.0.0.0:9000:8080")]
    sets = "create allowed hash:net family inet hashsize 1024 maxelem 65536\nadd allowed 203.0.113.0/24\n"
    assert_only(edited(host("28.5", boxes, IDIOMS[name]), ipsets=sets))


# Other tools -----------------------------------------------------------------------------------------------------

#: Private addresses inside, and nothing that is for the office alone.
BOXES = [
    Box("httpd", "8080:80"),
    Box("mail", "25:25", "993:993", network="mail"),
    Box("dns", "53:53/udp", "53:53", network="mail"),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("age", UFW_DOCKER)
def test_ufw_docker(age: str, engine: str) -> None:
    """Its README's rules; those for IPv6 are an option of it. Until Engine 27 the jump is not always there."""
    document = ufw_docker(host(engine, BOXES), age, ["-p tcp -m tcp --dport 443 -j ACCEPT"])
    assert_only(document, *(["jump_window"] if engine in OLD else []))


@pytest.mark.parametrize("age", UFW_DOCKER)
def test_ufw_docker_lets_in_what_it_is_told_to(age: str) -> None:
    """C(ufw-docker allow httpd 80): by the container's address."""
    rule = "-d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j ACCEPT"
    assert_only(ufw_docker(host("28.5", BOXES), age, route=[rule]))


def test_ufw_and_docker_without_published_ports() -> None:
    document = ufw(host("28.5", [Box("app", "80/tcp"), Box("db", network="back")]))
    assert_only(document)


def test_fail2ban_s_jails() -> None:
    document = host("28.5", [Box("web", "80:80", "443:443")])
    document = fail2ban(document, "sshd", "INPUT", "22", "192.0.2.7/32")
    assert_only(document)
    assert_only(fail2ban(document, "traefik-auth", "DOCKER-USER", "80,443", "192.0.2.66/32", "198.51.100.9/32"))


def test_crowdsec_s_bouncer() -> None:
    document = host("28.5", BOXES, ipv6=True)
    assert_only(crowdsec(document, "INPUT", "FORWARD", "DOCKER-USER"))
    assert_only(crowdsec_nftables(document, "input", "forward"))


def test_libvirt() -> None:
    assert_only(libvirt(host("28.5", BOXES)))


def test_tailscale() -> None:
    assert_only(tailscale(host("28.5", BOXES)))


def test_tailscale_above_docker() -> None:
    """What comes in from the tailnet is accepted before DOCKER-USER is read: true, once there are rules in it."""
    rules = ["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"]
    rules.append("! -i docker0 -p tcp -m conntrack --ctstate DNAT --ctorigdstport 8080 --ctdir ORIGINAL -j DROP")
    assert_says(tailscale(host("28.5", [Box("httpd", "0.0.0.0:8080:80")], rules), first=True), "jump_not_first")


@pytest.mark.parametrize("engine", ENGINES)
def test_firewalld(engine: str) -> None:
    """What its zones deny is denied to the host's own services only, and it is said that Docker's ports are open.

    On old engines its policy docker-forwarding lets in who is routed to a container.
    """
    assert_says(firewalld(host(engine, BOXES)), "never_read", *(["direct_routing"] if engine in OLD else []))
    assert_only(firewalld_nftables(host(engine, BOXES)))


@pytest.mark.parametrize("path", shared_files("rulesets/calico/felix/fv/*iptables-dump.txt"))
def test_a_kubernetes_node(path: Path) -> None:
    """An Engine that was there before Kubernetes; nothing was published."""
    document = host("20.10", networks=[Net("bridge", "172.17.0.0/16", bridge="docker0")])
    document = edited(document, iptables={IPV4: {"nft": shared_text(path)}})
    assert_only(document)


#: Prints what of the collection was loaded to judge a host.
LOADED = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
document = json.loads(sys.stdin.read())
from ansible_collections.quaywall.docker.plugins.module_utils._audit._checks import audit
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
found = [finding.severity for finding in audit(from_json(document))]
loaded = [name.rpartition(".")[2] for name in sys.modules if name.startswith("ansible_collections.quaywall.")]
print(json.dumps([found, loaded]))
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_what_only_fixes_need_is_not_compiled(engine: str) -> None:
    """Ansible sends no bytecode: what is imported is compiled at each audit, most of which find little."""
    rules = ["-s 198.51.100.%d/32 -j DROP" % number for number in range(50)]
    document = host(engine, BOXES, ["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", *rules])
    done = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(sys.path)],
        input=json.dumps(document).encode("utf-8"),
        stdout=subprocess.PIPE,
        check=True,
    )
    found, loaded = json.loads(done.stdout.decode("utf-8"))
    assert found
    assert "_walk" in loaded
    assert not {"_policy", "_targets", "_collect", "_docker"} & set(loaded)


def test_the_data_is_there() -> None:
    """Of the files of the tests above, at least so many as their origin has."""
    if not SHARED.is_dir():
        pytest.skip(absent("rulesets/moby-iptabler"))
    assert len(list((SHARED / "rulesets" / "moby-iptabler").glob("*.golden"))) == 284
