# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the audit says of real people's cases: each case is a snapshot, and a table says what is found there.

Where a kernel fixture exists it is the snapshot, in all its variants. Else the host is made from the case's text: ufw
and firewalld write what they really write (see foreign.py), listings without a chain's rules get the rules that the
text is about, marked "made up". What is said is compared exactly, above info.
"""

from __future__ import annotations

import functools
import json
import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._checks import CHECKS, audit
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.tests.unit.foreign import (
    base_chains,
    firewalld,
    firewalld_nftables,
    interface,
    tailscale,
    text_lines,
    ufw,
    ufw_docker,
)
from ansible_collections.quaywall.docker.tests.unit.snapshots import (
    IPV4,
    IPV6,
    Box,
    Document,
    Net,
    edited,
    fixture,
    host,
    rules_of,
    with_rules,
    without_rules,
)
from ansible_collections.quaywall.docker.tests.unit.support import SHARED, absent

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import Finding

CASES = SHARED / "cases" / "cases.jsonl"

#: The cases' own names of what is wrong, and the checks of ours that say it. Empty: none does, and each case with that
#: name says why in ``differs``.
MEANS: t.Dict[str, t.Tuple[str, ...]] = {
    "br_netfilter": ("never_read",),
    "broad_drop": ("broad_deny",),
    "ctorig_without_ctdir": ("replies_or_egress_hit",),
    "direct_routing": ("direct_routing",),
    "docker_proxy_bypass": ("proxy_bypass",),
    "docker_user_unhooked": ("jump_missing",),
    "dport_is_container_port": ("port_only_allow", "port_only_deny", "host_port_never_matches"),
    "forward_policy_drop": ("backend_nftables", "outside_this_firewall"),
    "forward_rule_after_docker": ("never_read",),
    "input_no_effect": ("never_read",),
    "ipv6_bypass": ("ipv6_gap", "proxy_bypass"),
    "legacy_nft_mix": ("backend_mixed", "backend_nftables", "snapshot_incomplete"),
    "legacy_nft_mix_benign": (),
    "localhost_publish_exposed": ("direct_routing",),
    "missing_established": ("established_missing", "established_late", "replies_or_egress_hit"),
    "none": (),
    "output_blocks_host_to_container": ("outside_this_firewall",),
    "parse_error": (),
    "port_only_accept": ("port_only_allow",),
    "redundant_rule": ("unreachable_rule",),
    "return_is_not_accept": ("unreachable_rule",),
    "rules_not_loaded": ("exposed",),
    "rules_wiped": ("docker_iptables_off", "not_persistent"),
    "shadowed_rule": ("unreachable_rule",),
    "stale_container_ip": ("stale_address",),
    "stateless_gap": ("exposed",),
    "unreachable_rule": ("unreachable_rule", "jump_missing"),
    "wrong_interface": ("never_read",),
}


class Says(t.NamedTuple):
    """A finding that must be there. What is empty may be anything; ``meant`` is about the container."""

    check: str
    family: str = ""
    container: str = ""
    published: str = ""
    meant: t.Optional[bool] = None


class Made(t.NamedTuple):
    """A snapshot of a case, what is said of it, and what else is true of it and beside the case's point.

    ``info``: what is said of the case as info, because nobody outside is stopped or let in by it.
    """

    name: str
    make: t.Callable[[], Document]
    says: t.Tuple[Says, ...] = ()
    besides: t.Tuple[str, ...] = ()
    info: t.Tuple[Says, ...] = ()


class Case(t.NamedTuple):
    """A case in the table: why this is said, and by the case's name of a finding, why we say it otherwise."""

    why: str
    made: t.Tuple[Made, ...] = ()
    differs: t.Mapping[str, str] = {}


def fixtures(
    case: str,
    *variants: str,
    says: t.Sequence[Says] = (),
    besides: t.Sequence[str] = (),
    info: t.Sequence[Says] = (),
) -> t.Iterator[Made]:
    """Kernel fixtures of a case; what is besides on the old layout only is in :data:`OLD`."""
    for variant in variants:
        make = functools.partial(fixture, case, variant)
        more = tuple(name for name in besides if name not in OLD or not variant.startswith("new"))
        yield Made("%s-%s" % (case, variant), make, tuple(says), more, tuple(info))


#: True of Engines before 28 only.
OLD = ("jump_window", "direct_routing")

# Hosts from the cases' texts -------------------------------------------------------------------------------------


def _ufw_denies(port: int, *boxes: Box) -> Document:
    """C(ufw deny PORT), which is about TCP and UDP of both families."""
    rules = ["-p %s -m %s --dport %d -j DROP" % (protocol, protocol, port) for protocol in ("tcp", "udp")]
    return ufw(host("28.5", boxes), rules)


def _legacy(document: Document, family: str = IPV4) -> Document:
    """The same rules in the legacy variant, which is the host's default."""
    texts = document["iptables"][family]
    return edited(
        document,
        iptables={
            "version": "1.8.5",
            "default": {IPV4: "legacy", IPV6: "legacy"},
            family: {"nft": texts["legacy"], "legacy": texts["nft"]},
        },
    )


def _csf() -> Document:
    """iptables-nft holds csf's rules, iptables-legacy three empty chains (of filter)."""
    lines = [":INPUT DROP [0:0]", "-A INPUT -i lo -j ACCEPT", "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"]
    document = with_rules(host("28.5"), IPV4, "filter", lines)
    empty = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
    return edited(document, iptables={IPV4: {"legacy": empty}})


def _dfw(bridge_nf: bool) -> Document:
    """dfw's deny from one container to another on their own network (its text is made up)."""
    boxes = [Box("a", network="app", address="172.30.0.2"), Box("b", network="app", address="172.30.0.3")]
    net = Net("app", "172.30.0.0/24")
    rule = "-s 172.30.0.2/32 -d 172.30.0.3/32 -i %s -o %s -j DROP" % (net.bridge, net.bridge)
    return host("26.1", boxes, [rule], networks=[net], bridge_nf=bridge_nf)


def _dind() -> Document:
    """The host uses legacy; the container's nf_tables is in the container's own namespace, and empty."""
    document = with_rules(
        host("28.5", [Box("dind")]), IPV4, "filter", [":INPUT DROP [0:0]", "-A INPUT -i lo -j ACCEPT"]
    )
    return _legacy(_legacy(document), IPV6)


def _crowdsec() -> Document:
    """Its set is hooked on input only."""
    chain = {
        "family": "ip",
        "table": "crowdsec",
        "chain": "crowdsec-chain",
        "hook": "input",
        "priority": -10,
        "policy": "accept",
        "rules": 1,
        "stops": True,
    }
    return base_chains(host("28.5", [Box("homeassistant", "8123:8123")]), chain)


def _kube_router() -> Document:
    """Docker's and kubelet's rules by iptables-nft, kube-router's by iptables-legacy (these are made up)."""
    lines = [
        ":KUBE-FIREWALL - [0:0]",
        "-A INPUT -j KUBE-FIREWALL",
        "-A OUTPUT -j KUBE-FIREWALL",
        "-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP",
    ]
    document = with_rules(host("20.10", [Box("app", "8080:80")]), IPV4, "filter", lines)
    lines = [
        ":KUBE-POD-FW-2MQHXJ5K7GDWTPVB - [0:0]",
        "-A FORWARD -d 10.244.1.7/32 -j KUBE-POD-FW-2MQHXJ5K7GDWTPVB",
        "-A KUBE-POD-FW-2MQHXJ5K7GDWTPVB -m mark ! --mark 0x10000/0x10000 -j REJECT",
    ]
    return with_rules(document, IPV4, "filter", lines, variant="legacy")


def _kube_router_that_bites() -> Document:
    """The same, where the legacy FORWARD has the policy DROP too (made up): two tables must let a packet through."""
    return with_rules(_kube_router(), IPV4, "filter", [":FORWARD DROP [0:0]"], variant="legacy")


def _firewalld_docker_zone() -> Document:
    """The rich rule is in the zone of Docker's bridges; the client comes in through eth0 (ens33 there)."""
    boxes = [Box("nginx", "80:80", network="compose")]
    net = Net("compose", "172.18.0.0/16", identity="c6d4a486127d" + 52 * "0")
    rule = (
        "-A IN_docker_deny -s 192.168.222.1/32 -p tcp -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable"
    )
    bridge = "-I INPUT_ZONES 1 -i br-c6d4a486127d -g IN_docker"
    return firewalld(host("20.10", boxes, networks=[net]), rule, bridge, forwarding=False)


def _lxd() -> Document:
    """An LXD bridge whose guests may go out, and whose replies nothing accepts (the ACCEPT is made up)."""
    rules = ["-i lxdbr0 -j ACCEPT"]
    document = tailscale(host("26.1", [Box("grafana", "3000:3000", network="app")], rules), first=True)
    return interface(document, "lxdbr0", "10.117.0.1/24", kind="bridge")


def _old_dnats() -> Document:
    """Rules of containers that are gone, in Docker's own nat table: with 9001 and 53 as in the listing."""
    document = host("20.10", [Box("now", "9001:8000", address="172.17.0.71")])
    gone = [(8301, 70, 8301), (8302, 70, 8302), (53, 70, 53), (514, 72, 514), (61100, 76, 8080)]
    rule = (
        "-A DOCKER -d 192.168.100.72/32 ! -i docker0 -p tcp -m tcp --dport %d -j DNAT --to-destination 172.17.0.%d:%d"
    )
    return with_rules(document, IPV4, "nat", [rule % entry for entry in gone])


def _input_source_filter() -> Document:
    """A source filter in INPUT for a published port (the rule is made up)."""
    rule = "-A INPUT ! -s 198.51.100.0/24 -p tcp -m tcp --dport 8080 -j DROP"
    return with_rules(host("20.10", [Box("web", "8080:80")]), IPV4, "filter", [rule])


def _behind_docker(*lines: str, engine: str = "20.10", net: str = "") -> Document:
    """Rules at the end of FORWARD, behind Docker's."""
    boxes = [Box("web", "8080:80", "53:53/udp", network=net or "bridge")]
    nets = [Net(net, "10.7.0.0/24", bridge=net)] if net else []
    return with_rules(host(engine, boxes, networks=nets), IPV4, "filter", lines)


def _salt() -> Document:
    """SALT is read twice, after docker0's rules and before those of another network (its own rules are made up)."""
    net = Net("br6", "172.19.0.0/16", identity="6ecda70e063c" + 52 * "0")
    document = host("20.10", [Box("web", "8080:80"), Box("api", "9090:9090", network="br6")], networks=[net])
    forward = rules_of(document, IPV4, "filter", "FORWARD")
    at = 1 + max(number for number, rule in enumerate(forward, 1) if "docker0" in rule)
    return with_rules(
        document,
        IPV4,
        "filter",
        [
            ":SALT - [0:0]",
            "-A SALT -p tcp -m tcp --dport 80 -j DROP",
            "-I FORWARD %d -i eth0 -j SALT" % at,
            "-I FORWARD %d -i eth0 -j SALT" % (at + 1),
        ],
    )


def _firewalld_public_zone() -> Document:
    rule = "-A IN_public_deny -p tcp -m tcp --dport 3306 -j DROP"
    return firewalld(host("20.10", [Box("database", "3306:3306")]), rule, forwarding=False)


def _native_docker_user() -> Document:
    """A native rule of nft in DOCKER-USER: iptables-save shows no filter table, and Docker did not add its jump."""
    document = host("28.5", [Box("web", "8080:80")])
    text = document["iptables"][IPV4]["nft"]
    others = text[: text.index("*filter")] + text[text.index("*nat") :]
    return edited(
        document,
        iptables={IPV4: {"nft": others + "# Table `filter' is incompatible, use 'nft' tool.\n"}},
        nft={"misprinted": {IPV4: ["filter DOCKER-USER"], IPV6: []}},
        holes=[
            {
                "part": "iptables_ipv4_nft_filter",
                "reason": "iptables cannot show the table filter: nft wrote rules in it.",
            }
        ],
    )


def _native_docker_user_that_is_shown() -> Document:
    """The same where iptables shows the table, with the rule as one that it is not: the jump is missing."""
    document = host("28.5", [Box("web", "8080:80")], ['-j LOG --log-prefix "bad"'])
    document = without_rules(document, IPV4, lambda line: line == "-A FORWARD -j DOCKER-USER")
    return edited(document, nft={"misprinted": {IPV4: ["filter DOCKER-USER"]}})


def _strict_input(*ports: str) -> Document:
    """ESTABLISHED, 80 and 443 are let in, DROP for all else; Docker publishes 58080, 443, 80 and 53306 (inner ports and
    names are made up: the targets are stripped).
    """
    boxes = [Box("web", "80:80", "443:443"), Box("app", "58080:8080"), Box("db", "53306:3306")]
    lines = [
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT",
        "-A INPUT -p tcp -m tcp --dport 443 -j ACCEPT",
        "-A INPUT -j DROP",
        *ports,
    ]
    return with_rules(host("20.10", boxes), IPV4, "filter", lines)


def _ufw_automated() -> Document:
    """ufw-docker-automated's rules for a container that is gone (by its labels' meaning), on ufw-docker's block."""
    rules = ["-s 172.17.0.2/32 -d 192.168.1.0/24 -j ACCEPT", "-s 172.17.0.2/32 -j DROP"]
    return ufw_docker(host("20.10", [Box("other", address="172.17.0.5")]), "old", route=rules)


def _ufw_docker_115() -> Document:
    """The issue's six rules, in a chain that has nothing else, and a container that asks a server outside."""
    rules = ["-d %s -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP" % net for net in PRIVATE]
    rules += ["-d %s -p udp -m udp --dport 0:32767 -j DROP" % net for net in PRIVATE]
    return host("20.10", [Box("web", "8080:80"), Box("voip", "40000:40000/udp")], rules)


PRIVATE = ("192.168.0.0/16", "10.0.0.0/8", "172.16.0.0/12")

_SAVED_DROPS = """
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A DOCKER-USER -s 198.51.100.9/32 -j DROP
-A DOCKER-USER -s 198.51.100.77/32 -j DROP
-A DOCKER-USER -j RETURN
COMMIT
"""


def _drops_that_vanished() -> Document:
    """Drops by address are in the saved file and not in DOCKER-USER any more (the addresses are made up)."""
    boxes = [Box("mailcow", "443:443", network="mail", address="172.22.1.114")]
    saved = {"/etc/iptables/rules.v4": "".join(line + "\n" for line in text_lines(_SAVED_DROPS))}
    return host("20.10", boxes, saved=saved)


def _two_projects() -> Document:
    """The second project's database is there and was not started: its port was taken."""
    return host(
        "28.5", [Box("projA-db", "5432:5432", network="a"), Box("projB-db", "5432:5432", network="b", running=False)]
    )


def _ufw_web() -> Document:
    """ufw allows 22, 80 and 443; the database is published."""
    rules = ["-p tcp -m multiport --dports 80,443 -j ACCEPT"]
    return ufw(host("28.5", [Box("db", "5432:5432")]), rules)


def _two_webs(engine: str = "28.5", age: str = "old") -> Document:
    """C(ufw route allow proto tcp from any to any port 80) with ufw-docker's block."""
    boxes = [Box("web1", "8080:80"), Box("web2", "8081:80"), Box("db", "5432:5432")]
    return ufw_docker(host(engine, boxes), age, route=["-p tcp -m tcp --dport 80 -j ACCEPT"])


def _by_docker_proxy(engine: str, *rules: str) -> Document:
    """Containers with IPv6, and an Engine that writes no rules for it: docker-proxy serves the port."""
    return host(engine, [Box("nginx-text", "8080:80")], rules, ipv6=True)


# The table -------------------------------------------------------------------------------------------------------

_OUTPUT = (Says("outside_this_firewall", "", "c1", "8090->80/tcp"),)

TABLE: t.Dict[str, Case] = {
    # INPUT, which forwarded packets do not pass
    "distribution-3246": Case(
        "A deny for 9000 in INPUT does not cover the container that publishes 9000.",
        (
            *fixtures(
                "distribution-3246",
                "old",
                "new",
                says=[Says("never_read", IPV4, "c1", "9000->9000/tcp")],
            ),
            Made(
                "as ufw writes it",
                functools.partial(_ufw_denies, 9000, Box("portainer", "9000:9000")),
                (Says("never_read", IPV4, "portainer", "9000->9000/tcp"),),
            ),
        ),
    ),
    "moby-14105": Case(
        "The source filter is read for the host's own sockets only; the port is forwarded.",
        (
            Made("as described", _input_source_filter, (Says("never_read", IPV4, "web", "8080->80/tcp"),)),
            *fixtures("distribution-3246", "old", says=[Says("never_read", IPV4, "c1")]),
        ),
    ),
    "moby-4737-a": Case(
        "ufw's rules for 8080 say nothing about the container that publishes 8080->80.",
        (
            Made(
                "deny",
                functools.partial(_ufw_denies, 8080, Box("httpd", "8080:80")),
                (Says("never_read", IPV4, "httpd", "8080->80/tcp"),),
            ),
        ),
    ),
    "plexx-blog": Case(
        "As moby-4737-a, where the host's port is the container's.",
        (
            Made(
                "deny",
                functools.partial(_ufw_denies, 8080, Box("nginx", "8080:8080")),
                (Says("never_read", IPV4, "nginx", "8080->8080/tcp"),),
            ),
        ),
    ),
    "rask-752": Case(
        "INPUT denies all but 22, 80 and 443, and the database is open.",
        (Made("ufw", _ufw_web, (Says("never_read", IPV4, "db", "5432->5432/tcp"),)),),
    ),
    "stroebitzer-blog": Case(
        "INPUT's last rule drops everything, and what is published is open whatever INPUT says.",
        (
            Made(
                "as listed",
                _strict_input,
                (
                    Says("never_read", IPV4, "app", "58080->8080/tcp"),
                    Says("never_read", IPV4, "db", "53306->3306/tcp"),
                ),
            ),
        ),
    ),
    "libnetwork-2651": Case(
        "firewalld's rich rules are read for the host's own sockets, and the client comes in elsewhere.",
        (Made("firewalld, iptables", _firewalld_docker_zone, (Says("never_read", IPV4, "nginx", "80->80/tcp"),)),),
    ),
    "moby-43207": Case(
        "The zone's drop is read for the host's own sockets.",
        (
            Made(
                "firewalld, iptables", _firewalld_public_zone, (Says("never_read", IPV4, "database", "3306->3306/tcp"),)
            ),
            Made(
                "firewalld, nftables",
                lambda: firewalld_nftables(host("28.5", [Box("database", "3306:3306")])),
            ),
        ),
    ),
    "ha-crowdsec-31": Case(
        "The ban is on the input hook only.",
        (Made("nftables", _crowdsec, (Says("never_read", "", "homeassistant", "8123->8123/tcp"),)),),
    ),
    # Rules behind Docker's
    "moby-15890": Case(
        "Rules at the end of FORWARD do not see what Docker's accept before (the rule itself is made up).",
        (
            Made(
                "made up",
                lambda: _behind_docker("-A FORWARD -i docker0 -d 10.0.0.0/8 -j DROP"),
                (Says("never_read", IPV4),),
            ),
        ),
    ),
    "moby-24848": Case(
        "SALT is read for traffic that docker0's rules did not accept, and the second jump for what came back from it.",
        (Made("as listed", _salt, (Says("never_read", IPV4, "web"), Says("unreachable_rule", IPV4))),),
    ),
    "moby-29184": Case(
        "FORWARD's own rules stand behind Docker's since its restart.",
        (
            Made(
                "as listed",
                lambda: _behind_docker(
                    "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
                    "-A FORWARD -d 10.0.0.0/8 -o br-do -p udp -j DROP",
                    "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                    net="br-do",
                ),
                (Says("never_read", IPV4),),
            ),
        ),
    ),
    # The jump
    "moby-48560": Case(
        "DOCKER-USER has rules and FORWARD does not jump to it: all rules in it are without effect.",
        (
            *fixtures(
                "moby-48560",
                "old-unhooked",
                "new-unhooked",
                says=[Says("jump_missing", IPV4)],
                besides=["direct_routing"],
            ),
            *fixtures("moby-48560", "old-hooked", "new-hooked", besides=["direct_routing"]),
        ),
    ),
    "moby-48568": Case(
        "The chain is not jumped to, as Docker cannot read it; nor can iptables-save, which is said too.",
        (
            Made("iptables-save shows no table", _native_docker_user, (Says("snapshot_incomplete"),)),
            Made(
                "iptables-save shows another rule",
                _native_docker_user_that_is_shown,
                (Says("jump_missing", IPV4), Says("snapshot_incomplete")),
            ),
        ),
    ),
    "moby-12294": Case(
        "Docker's rules were flushed: no chain of its own is left.",
        (*fixtures("moby-12294", "wiped", says=[Says("docker_iptables_off")]),),
    ),
    "ufw-docker-118": Case(
        "The drops of the saved file are not in the kernel any more.",
        (Made("made up", _drops_that_vanished, (Says("not_persistent", IPV4),)),),
        {
            "parse_error": "123.456.789.2 is no address and iptables took no such rule: there is none in a kernel "
            "or in a file that was saved from one."
        },
    ),
    "moby-22054-d": Case(
        "Ambiguous: by these rules nobody public reaches a container. If somebody does, they are not loaded.",
        (
            Made("loaded", lambda: ufw_docker(host("28.5", [Box("web", "8080:80")]), "old")),
            Made("not loaded", lambda: host("28.5", [Box("web", "8080:80")]), info=(Says("exposed", "", "web"),)),
        ),
    ),
    # Replies and outgoing connections
    "docs-21708": Case(
        "A DROP for all but one source, without ESTABLISHED before it: what answers the containers is dropped.",
        (
            *fixtures(
                "docs-21708",
                "old",
                "new",
                says=[Says("replies_or_egress_hit", IPV4, "c1"), Says("broad_deny", IPV4, "c1", "8080->80/tcp")],
                besides=["jump_window"],
            ),
            *fixtures(
                "docs-21708",
                "old-late",
                "new-late",
                says=[Says("established_late", IPV4), Says("broad_deny", IPV4, "c1", "8080->80/tcp")],
                besides=["jump_window"],
            ),
            *fixtures("docs-21708", "old-fixed", "new-fixed", besides=["jump_window"]),
            *fixtures("docs-21708", "old-control", "new-control"),
        ),
    ),
    "docs-8357-a": Case(
        "Both share port 6379: by host port they are told apart, by --dport both are hit. Without --ctdir ORIGINAL it "
        "also stops what answers an outgoing connection to a remote port 7777.",
        (
            *fixtures(
                "docs-8357-a",
                "old",
                "new",
                says=[Says("replies_or_egress_hit", IPV4, "c1"), Says("replies_or_egress_hit", IPV4, "c2")],
                besides=["jump_window", "direct_routing"],
            ),
            *fixtures(
                "docs-8357-a",
                "old-portonly",
                "new-portonly",
                says=[
                    Says("port_only_deny", IPV4, "c1", "7777->6379/tcp", False),
                    Says("port_only_deny", IPV4, "c2", "8888->6379/tcp", False),
                ],
                besides=["jump_window"],
            ),
            *fixtures("docs-8357-a", "old-control", "new-control"),
        ),
    ),
    "lxd-11140": Case(
        "Not about containers. What is said is true of them: who comes from the tailnet reaches every port.",
        (Made("as listed", _lxd, (), ("direct_routing",)),),
        {
            "missing_established": "What drops an LXD guest's replies is no rule, but the policy that Docker sets. "
            "They are not a container's, and docker_fw_trace says what drops them."
        },
    ),
    "ufw-docker-4": Case(
        "UDP to ports up to 32767 is dropped without regard to who asked: answers to a program that chose such a port.",
        (
            *fixtures("ufw-docker-4", "old", "new", says=[Says("established_missing", IPV4, "c1")]),
            *fixtures("ufw-docker-4", "old-control", "new-control"),
        ),
    ),
    "ufw-docker-115": Case(
        "As ufw-docker-4, without the RETURNs for private sources: nobody gets in by TCP, and UDP above 32767 is open.",
        (
            Made(
                "as listed",
                _ufw_docker_115,
                (Says("established_missing", IPV4), Says("broad_deny", IPV4, "web", "8080->80/tcp")),
                ("proxy_bypass", "jump_window"),
                (Says("exposed", "", "voip", "40000->40000/udp"),),
            ),
        ),
    ),
    "typeclaw-172": Case(
        "Out of scope: the rule is in the container's own network namespace, which no snapshot of a host shows.",
        (Made("the host", lambda: host("28.5", [Box("agent", "127.0.0.1:8000:8000")])),),
        {"missing_established": "A snapshot is of the host's network namespace."},
    ),
    # Port collisions
    "moby-4737-b": Case(
        "An ACCEPT for the host's own port 123 opens the container that has 123 inside and publishes 456.",
        (
            *fixtures(
                "moby-4737-b",
                "old",
                "new",
                says=[Says("port_only_allow", IPV4, "c1", "456->123/tcp", False)],
                besides=["jump_window"],
            ),
            *fixtures("moby-4737-b", "old-control", "new-control"),
        ),
    ),
    "ufw-docker-readme": Case(
        "The ACCEPT for port 80 opens every container with 80 inside; the README says so too.",
        (
            *(
                Made(
                    "%s block" % age,
                    functools.partial(_two_webs, age=age),
                    (
                        Says("port_only_allow", IPV4, "web1", "8080->80/tcp"),
                        Says("port_only_allow", IPV4, "web2", "8081->80/tcp"),
                    ),
                )
                for age in ("old", "new")
            ),
        ),
    ),
    "moby-22054-a": Case(
        "Not a firewall's fault: two containers want one port of the host, and only one of them runs.",
        (Made("two projects", _two_projects),),
    ),
    # Rules behind other rules
    "ufw-docker-12": Case(
        "The RETURN for 172.16.0.0/12 comes before the jump that leads to the deny, so the containers are not denied.",
        (*fixtures("ufw-docker-12", "old", "new", says=[Says("unreachable_rule", IPV4)], besides=["never_read"]),),
    ),
    "luci-dockerman-54": Case(
        "RETURN lets nobody in: it goes on to Docker's rules, and FORWARD's policy drops what these do not accept.",
        (
            *fixtures("luci-dockerman-54", "old-return", "new-return", says=[Says("unreachable_rule", IPV4)]),
            *fixtures("luci-dockerman-54", "old-accept", says=[Says("direct_routing", IPV4, "c1")]),
            *fixtures("luci-dockerman-54", "new-accept"),
        ),
    ),
    # Addresses of containers that are gone
    "moby-32048": Case(
        "Docker's own nat table leads to a container that is gone, before the one that is there.",
        (
            *fixtures("moby-32048", "old", "new", says=[Says("stale_address", IPV4)]),
            *fixtures("moby-32048", "old-control", "new-control"),
        ),
        {"shadowed_rule": "It is said with the stale address, as it is the same fault."},
    ),
    "moby-10354": Case(
        "Docker's own nat table leads to addresses that no container has.",
        (Made("as listed", _old_dnats, (Says("stale_address", IPV4),)),),
    ),
    "ufw-automated-7": Case(
        "Rules name an address that no container has, and that the next container may get.",
        (Made("made up", _ufw_automated, (Says("stale_address", IPV4),)),),
    ),
    # IPv6 and docker-proxy
    "mailu-2630": Case(
        "Closed on IPv4, and docker-proxy serves it on IPv6, where INPUT lets everybody in.",
        (
            *fixtures(
                "mailu-2630",
                "v6-proxy",
                says=[Says("proxy_bypass", "", "c1", "25->25/tcp")],
                besides=["broad_deny", "replies_or_egress_hit", "jump_window"],
            ),
        ),
    ),
    "ipv6nat-65": Case(
        "As mailu-2630; where no rule closes the port nobody is let in past one, so nothing is said above info.",
        (
            *fixtures(
                "mailu-2630",
                "v6-proxy",
                says=[Says("proxy_bypass", "", "c1", "25->25/tcp")],
                besides=["broad_deny", "replies_or_egress_hit", "jump_window"],
            ),
            Made("no rules", lambda: host("26.1", [Box("web", "80:80")], options={"ip6tables": False})),
        ),
    ),
    "moby-44408": Case(
        "The container has IPv6, and the Engine writes no rules for it: docker-proxy serves the port.",
        (
            Made(
                "closed on IPv4",
                functools.partial(
                    _by_docker_proxy,
                    "20.10",
                    "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                    "! -i docker0 -p tcp -m conntrack --ctstate DNAT --ctorigdstport 8080 --ctdir ORIGINAL -j DROP",
                ),
                (Says("proxy_bypass", "", "nginx-text", "8080->80/tcp"),),
                ("direct_routing", "jump_window"),
            ),
        ),
    ),
    # A container's own address
    "moby-45610": Case(
        "Published on 127.0.0.1, and reached at the container's own address (before Engine 28). The new fixture lacks "
        "the drop for 127.0.0.1 that Engine 28 writes, so a packet for that address gets in there.",
        (
            *fixtures("moby-45610", "old", says=[Says("direct_routing", IPV4, "c2", "127.0.0.1:8081->80/tcp")]),
            Made("moby-45610-new", functools.partial(fixture, "moby-45610", "new"), (), ("direct_routing",)),
        ),
    ),
    "moby-41872": Case(
        "The DNAT for 127.0.0.1 takes packets from any interface, and no raw rule drops them.",
        (
            Made(
                "20.10",
                lambda: host("20.10", [Box("nginx", "127.0.0.1:8080:80")]),
                (Says("direct_routing", IPV4, "nginx", "127.0.0.1:8080->80/tcp"),),
            ),
            Made("28.5", lambda: host("28.5", [Box("nginx", "127.0.0.1:8080:80")])),
        ),
    ),
    "moby-34164": Case(
        "A container's own address is not reached from outside, as it should be.",
        (*fixtures("moby-34164", "old-fwd-drop", "new-fwd-drop"),),
        {
            "forward_policy_drop": "The case itself calls it expected: nothing is wrong, and docker_fw_trace says "
            "who is stopped by what."
        },
    ),
    # The host's own paths and other bridges
    "moby-21167": Case(
        "OUTPUT cuts the host and docker-proxy off from the containers, and nobody else: info.",
        (*fixtures("moby-21167", "old", "new", info=_OUTPUT),),
    ),
    "moby-20243": Case("As moby-21167.", (*fixtures("moby-21167", "old", info=_OUTPUT),)),
    "compose-9131": Case("As moby-21167.", (*fixtures("moby-21167", "new", info=_OUTPUT),)),
    "moby-39439": Case(
        "Another bridge's guests are cut off, no container: info. With the policy ACCEPT c1 is open (before 28).",
        (
            *fixtures("moby-39439", "old", "new", info=[Says("outside_this_firewall", IPV4)]),
            *fixtures("moby-39439", "old-control", "new-control", besides=["direct_routing"]),
        ),
    ),
    "dfw-568": Case(
        "Packets between containers of one bridge do not pass iptables, as br_netfilter is off.",
        (
            Made("off", functools.partial(_dfw, False), (Says("never_read", IPV4),)),
            Made("on", functools.partial(_dfw, True)),
        ),
    ),
    # Backends
    "moby-50566": Case(
        "The policy of iptables' FORWARD drops what Docker's nftables accepted.",
        (
            *fixtures("moby-50566", "nft-plus-iptables-drop", says=[Says("backend_nftables", IPV4, "c3")]),
            *fixtures("moby-50566", "nft-only"),
        ),
    ),
    "csf-1": Case(
        "The legacy tables are empty and accept: a harmless mixture is no finding.",
        (Made("as listed", _csf),),
    ),
    "docker-library-467": Case(
        "The container's iptables is of its own network namespace; the host's are all of one variant.",
        (Made("the host", _dind),),
        {"legacy_nft_mix": "The listings are of two network namespaces: no packet meets both as one host's."},
    ),
    "kube-router-1069": Case(
        "Rules of two variants, and a packet passes both.",
        (
            Made("rules for pods", _kube_router),
            Made("a policy for all", _kube_router_that_bites, (Says("backend_mixed", IPV4),)),
        ),
    ),
}


# Tests -----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def cases() -> t.Mapping[str, t.Mapping[str, t.Any]]:
    if not CASES.is_file():
        pytest.skip(absent("cases/cases.jsonl"))
    found = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines() if line]
    return {item["id"]: item for item in found}


def is_said(says: Says, found: t.Iterable[Finding]) -> bool:
    for finding in found:
        if finding.check != says.check:
            continue
        family = finding.place.family if finding.place is not None else ""
        if says.family and family and family != says.family:
            continue
        if not (says.container or says.published) or any(
            says.container in ("", item.container)
            and says.published in ("", item.published)
            and says.meant in (None, item.meant)
            for item in finding.affected
        ):
            return True
    return False


PARAMETERS = [pytest.param(made, id="%s: %s" % (name, made.name)) for name, case in TABLE.items() for made in case.made]


@pytest.mark.parametrize("made", PARAMETERS)
def test_case(made: Made) -> None:
    cases()
    every = audit(from_json(made.make()))
    found = [finding for finding in every if finding.severity != "info"]
    shown = "\n".join("%s %s: %s" % (item.severity, item.check, item.message) for item in found)
    assert {item.check for item in found} == {says.check for says in made.says} | set(made.besides), shown
    for says in made.says:
        assert is_said(says, found), "%s\n%s" % (says, "\n".join(map(str, found)))
    for says in made.info:
        assert is_said(says, [finding for finding in every if finding.severity == "info"]), says


def test_every_case_is_in_the_table() -> None:
    assert set(cases()) == set(TABLE)
    assert len(TABLE) == 46


def test_every_fixture_is_in_the_table() -> None:
    folder = CASES.parent / "fixtures"
    cases()
    variants = {
        "%s-%s" % (path.parent.name, path.name[: -len(".probes.json")]) for path in folder.glob("*/*.probes.json")
    }
    assert variants <= {made.name for case in TABLE.values() for made in case.made}


def test_what_the_cases_call_a_finding_has_a_name_here() -> None:
    assert {name for item in cases().values() for name in item["findings_expected"]} == set(MEANS)
    assert {check for checks in MEANS.values() for check in checks} <= set(CHECKS)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_what_a_case_expects_is_said_or_has_its_reason(name: str) -> None:
    """Not both, and a reason for nothing is none."""
    case = TABLE[name]
    said = {says.check for made in case.made for says in (*made.says, *made.info)}
    expected = [
        item
        for item in cases()[name]["findings_expected"]
        if MEANS[item] or item not in ("none", "legacy_nft_mix_benign")
    ]
    assert set(case.differs) == {item for item in expected if not said & set(MEANS[item])}
    assert case.why
    assert all(case.differs.values())


@pytest.mark.parametrize("made", [made for made in PARAMETERS if "control" in str(made.id) or "fixed" in str(made.id)])
def test_controls_have_nothing(made: Made) -> None:
    assert made.says == ()
