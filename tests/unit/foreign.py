# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules that other tools write, put into a snapshot's dumps as those tools would: below Docker's own in FORWARD.

ufw 0.36.2 and firewalld 1.3.3 (both backends) were run in a network namespace, and these are iptables-save's lines.
fail2ban: action.d/iptables.conf of 1.0.2; CrowdSec: what its bouncer's documentation shows; libvirt, tailscale: what
hosts print that run them. ufw-docker: the blocks for /etc/ufw/after.rules that its README asks for, as printed.
"""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.tests.unit.snapshots import (
    FAMILIES,
    IPV4,
    IPV6,
    Document,
    Lines,
    edited,
    with_rules,
)


def text_lines(text: str) -> t.List[str]:
    """The lines of a rule file that say something."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


# ufw -------------------------------------------------------------------------------------------------------------

#: {6} is "6" in the names of IPv6's chains; what differs more is added below.
_UFW = """
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:ufw{6}-after-forward - [0:0]
:ufw{6}-after-input - [0:0]
:ufw{6}-after-logging-forward - [0:0]
:ufw{6}-after-logging-input - [0:0]
:ufw{6}-after-logging-output - [0:0]
:ufw{6}-after-output - [0:0]
:ufw{6}-before-forward - [0:0]
:ufw{6}-before-input - [0:0]
:ufw{6}-before-logging-forward - [0:0]
:ufw{6}-before-logging-input - [0:0]
:ufw{6}-before-logging-output - [0:0]
:ufw{6}-before-output - [0:0]
:ufw{6}-logging-allow - [0:0]
:ufw{6}-logging-deny - [0:0]
:ufw{6}-reject-forward - [0:0]
:ufw{6}-reject-input - [0:0]
:ufw{6}-reject-output - [0:0]
:ufw{6}-skip-to-policy-forward - [0:0]
:ufw{6}-skip-to-policy-input - [0:0]
:ufw{6}-skip-to-policy-output - [0:0]
:ufw{6}-track-forward - [0:0]
:ufw{6}-track-input - [0:0]
:ufw{6}-track-output - [0:0]
:ufw{6}-user-forward - [0:0]
:ufw{6}-user-input - [0:0]
:ufw{6}-user-limit - [0:0]
:ufw{6}-user-limit-accept - [0:0]
:ufw{6}-user-logging-forward - [0:0]
:ufw{6}-user-logging-input - [0:0]
:ufw{6}-user-logging-output - [0:0]
:ufw{6}-user-output - [0:0]
-A INPUT -j ufw{6}-before-logging-input
-A INPUT -j ufw{6}-before-input
-A INPUT -j ufw{6}-after-input
-A INPUT -j ufw{6}-after-logging-input
-A INPUT -j ufw{6}-reject-input
-A INPUT -j ufw{6}-track-input
-A FORWARD -j ufw{6}-before-logging-forward
-A FORWARD -j ufw{6}-before-forward
-A FORWARD -j ufw{6}-after-forward
-A FORWARD -j ufw{6}-after-logging-forward
-A FORWARD -j ufw{6}-reject-forward
-A FORWARD -j ufw{6}-track-forward
-A OUTPUT -j ufw{6}-before-logging-output
-A OUTPUT -j ufw{6}-before-output
-A OUTPUT -j ufw{6}-after-output
-A OUTPUT -j ufw{6}-after-logging-output
-A OUTPUT -j ufw{6}-reject-output
-A OUTPUT -j ufw{6}-track-output
-A ufw{6}-after-input -p udp -m udp --dport 137 -j ufw{6}-skip-to-policy-input
-A ufw{6}-after-input -p udp -m udp --dport 138 -j ufw{6}-skip-to-policy-input
-A ufw{6}-after-input -p tcp -m tcp --dport 139 -j ufw{6}-skip-to-policy-input
-A ufw{6}-after-input -p tcp -m tcp --dport 445 -j ufw{6}-skip-to-policy-input
-A ufw{6}-after-logging-forward -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
-A ufw{6}-after-logging-input -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
-A ufw{6}-logging-allow -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW ALLOW] "
-A ufw{6}-logging-deny -m conntrack --ctstate INVALID -m limit --limit 3/min --limit-burst 10 -j RETURN
-A ufw{6}-logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
-A ufw{6}-skip-to-policy-forward -j DROP
-A ufw{6}-skip-to-policy-input -j DROP
-A ufw{6}-skip-to-policy-output -j ACCEPT
-A ufw{6}-track-output -p tcp -m conntrack --ctstate NEW -j ACCEPT
-A ufw{6}-track-output -p udp -m conntrack --ctstate NEW -j ACCEPT
-A ufw{6}-user-input -p tcp -m tcp --dport 22 -j ACCEPT
-A ufw{6}-user-limit -m limit --limit 3/min -j LOG --log-prefix "[UFW LIMIT BLOCK] "
-A ufw{6}-user-limit-accept -j ACCEPT
"""

_UFW4 = """
:ufw-not-local - [0:0]
-A ufw-after-input -p udp -m udp --dport 67 -j ufw-skip-to-policy-input
-A ufw-after-input -p udp -m udp --dport 68 -j ufw-skip-to-policy-input
-A ufw-after-input -m addrtype --dst-type BROADCAST -j ufw-skip-to-policy-input
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 3 -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 11 -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 12 -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j ufw-logging-deny
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p icmp -m icmp --icmp-type 3 -j ACCEPT
-A ufw-before-input -p icmp -m icmp --icmp-type 11 -j ACCEPT
-A ufw-before-input -p icmp -m icmp --icmp-type 12 -j ACCEPT
-A ufw-before-input -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-input -p udp -m udp --sport 67 --dport 68 -j ACCEPT
-A ufw-before-input -j ufw-not-local
-A ufw-before-input -d 224.0.0.251/32 -p udp -m udp --dport 5353 -j ACCEPT
-A ufw-before-input -d 239.255.255.250/32 -p udp -m udp --dport 1900 -j ACCEPT
-A ufw-before-input -j ufw-user-input
-A ufw-before-output -o lo -j ACCEPT
-A ufw-before-output -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-output -j ufw-user-output
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
-A ufw-not-local -m addrtype --dst-type BROADCAST -j RETURN
-A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j ufw-logging-deny
-A ufw-not-local -j DROP
-A ufw-user-limit -j REJECT --reject-with icmp-port-unreachable
"""

#: The messages of ICMPv6 about neighbours and multicast are left out: they are of one link.
_UFW6 = """
-A ufw6-after-input -p udp -m udp --dport 546 -j ufw6-skip-to-policy-input
-A ufw6-after-input -p udp -m udp --dport 547 -j ufw6-skip-to-policy-input
-A ufw6-before-forward -m rt --rt-type 0 -j DROP
-A ufw6-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw6-before-forward -p ipv6-icmp -m icmp6 --icmpv6-type 1 -j ACCEPT
-A ufw6-before-forward -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT
-A ufw6-before-forward -j ufw6-user-forward
-A ufw6-before-input -i lo -j ACCEPT
-A ufw6-before-input -m rt --rt-type 0 -j DROP
-A ufw6-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw6-before-input -p ipv6-icmp -m icmp6 --icmpv6-type 129 -j ACCEPT
-A ufw6-before-input -m conntrack --ctstate INVALID -j ufw6-logging-deny
-A ufw6-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw6-before-input -p ipv6-icmp -m icmp6 --icmpv6-type 133 -m hl --hl-eq 255 -j ACCEPT
-A ufw6-before-input -s fe80::/10 -p ipv6-icmp -m icmp6 --icmpv6-type 130 -j ACCEPT
-A ufw6-before-input -s fe80::/10 -d fe80::/10 -p udp -m udp --sport 547 --dport 546 -j ACCEPT
-A ufw6-before-input -d ff02::fb/128 -p udp -m udp --dport 5353 -j ACCEPT
-A ufw6-before-input -d ff02::f/128 -p udp -m udp --dport 1900 -j ACCEPT
-A ufw6-before-input -j ufw6-user-input
-A ufw6-before-output -o lo -j ACCEPT
-A ufw6-before-output -m rt --rt-type 0 -j DROP
-A ufw6-before-output -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw6-before-output -p ipv6-icmp -m icmp6 --icmpv6-type 135 -m hl --hl-eq 255 -j ACCEPT
-A ufw6-before-output -j ufw6-user-output
-A ufw6-user-limit -j REJECT --reject-with icmp6-port-unreachable
"""


def ufw(document: Document, inbound: Lines = (), route: Lines = ()) -> Document:
    """C(ufw enable) with its defaults (deny incoming, IPV6=yes) and C(ufw allow 22/tcp).

    :param inbound: rules that C(ufw allow ...) and C(ufw deny ...) write, in both families: C(-p tcp -m tcp --dport 80
        -j DROP).
    :param route: the same for C(ufw route ...).
    """
    inbound, route = list(inbound), list(route)
    for family, six, more in ((IPV4, "", _UFW4), (IPV6, "6", _UFW6)):
        lines = text_lines(_UFW.replace("{6}", six) + more)
        for chain, rules in (("input", inbound), ("forward", route)):
            kept = [rule for rule in rules if not _of_the_other(rule, family)]
            lines += ["-A ufw%s-user-%s %s" % (six, chain, rule) for rule in kept]
        document = with_rules(document, family, "filter", lines)
    return document


def _of_the_other(rule: str, family: str) -> bool:
    """True if the rule holds an address of the other family, for which ufw writes nothing."""
    words = rule.split(" ")
    values = [words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-s", "-d")]
    return any((":" in value) != (family == IPV6) for value in values)


# ufw-docker ------------------------------------------------------------------------------------------------------

_UFW_DOCKER_HEAD = """
:ufw-user-forward - [0:0]
:ufw-docker-logging-deny - [0:0]
:DOCKER-USER - [0:0]
-A DOCKER-USER -j ufw-user-forward
"""
_UFW_DOCKER_TAIL = """
-A DOCKER-USER -j RETURN
-A ufw-docker-logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW DOCKER BLOCK] "
-A ufw-docker-logging-deny -j DROP
"""

#: By the README's age: until 2025 it told connections by flags and ports, since then by conntrack.
UFW_DOCKER = {
    "old": _UFW_DOCKER_HEAD
    + """
-A DOCKER-USER -s 10.0.0.0/8 -j RETURN
-A DOCKER-USER -s 172.16.0.0/12 -j RETURN
-A DOCKER-USER -s 192.168.0.0/16 -j RETURN
-A DOCKER-USER -p udp -m udp --sport 53 --dport 1024:65535 -j RETURN
-A DOCKER-USER -d 192.168.0.0/16 -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j ufw-docker-logging-deny
-A DOCKER-USER -d 10.0.0.0/8 -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j ufw-docker-logging-deny
-A DOCKER-USER -d 172.16.0.0/12 -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j ufw-docker-logging-deny
-A DOCKER-USER -d 192.168.0.0/16 -p udp -m udp --dport 0:32767 -j ufw-docker-logging-deny
-A DOCKER-USER -d 10.0.0.0/8 -p udp -m udp --dport 0:32767 -j ufw-docker-logging-deny
-A DOCKER-USER -d 172.16.0.0/12 -p udp -m udp --dport 0:32767 -j ufw-docker-logging-deny
"""
    + _UFW_DOCKER_TAIL,
    "new": _UFW_DOCKER_HEAD
    + """
-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A DOCKER-USER -m conntrack --ctstate INVALID -j DROP
-A DOCKER-USER -i docker0 -o docker0 -j ACCEPT
-A DOCKER-USER -s 10.0.0.0/8 -j RETURN
-A DOCKER-USER -s 172.16.0.0/12 -j RETURN
-A DOCKER-USER -s 192.168.0.0/16 -j RETURN
-A DOCKER-USER -d 10.0.0.0/8 -m conntrack --ctstate NEW -j ufw-docker-logging-deny
-A DOCKER-USER -d 172.16.0.0/12 -m conntrack --ctstate NEW -j ufw-docker-logging-deny
-A DOCKER-USER -d 192.168.0.0/16 -m conntrack --ctstate NEW -j ufw-docker-logging-deny
"""
    + _UFW_DOCKER_TAIL,
}


def ufw_docker(document: Document, age: str = "new", inbound: Lines = (), route: Lines = ()) -> Document:
    """ufw with one of ufw-docker's blocks at the end of /etc/ufw/after.rules, which ufw reads before user.rules.

    :param age: a key of :data:`UFW_DOCKER`.
    """
    document = with_rules(ufw(document, inbound), IPV4, "filter", text_lines(UFW_DOCKER[age]))
    return with_rules(document, IPV4, "filter", ["-A ufw-user-forward " + rule for rule in route])


# firewalld -------------------------------------------------------------------------------------------------------

_FIREWALLD = """
:FORWARD_POLICIES_post - [0:0]
:FORWARD_POLICIES_pre - [0:0]
:FORWARD_ZONES - [0:0]
:FORWARD_direct - [0:0]
:FWD_docker - [0:0]
:FWD_docker-forwarding - [0:0]
:FWD_docker-forwarding_allow - [0:0]
:FWD_docker-forwarding_deny - [0:0]
:FWD_docker-forwarding_log - [0:0]
:FWD_docker-forwarding_post - [0:0]
:FWD_docker-forwarding_pre - [0:0]
:FWD_docker_allow - [0:0]
:FWD_docker_deny - [0:0]
:FWD_docker_log - [0:0]
:FWD_docker_post - [0:0]
:FWD_docker_pre - [0:0]
:FWD_public - [0:0]
:FWD_public_allow - [0:0]
:FWD_public_deny - [0:0]
:FWD_public_log - [0:0]
:FWD_public_post - [0:0]
:FWD_public_pre - [0:0]
:INPUT_POLICIES_post - [0:0]
:INPUT_POLICIES_pre - [0:0]
:INPUT_ZONES - [0:0]
:INPUT_direct - [0:0]
:IN_docker - [0:0]
:IN_docker_allow - [0:0]
:IN_docker_deny - [0:0]
:IN_docker_log - [0:0]
:IN_docker_post - [0:0]
:IN_docker_pre - [0:0]
:IN_public - [0:0]
:IN_public_allow - [0:0]
:IN_public_deny - [0:0]
:IN_public_log - [0:0]
:IN_public_post - [0:0]
:IN_public_pre - [0:0]
:OUTPUT_POLICIES_post - [0:0]
:OUTPUT_POLICIES_pre - [0:0]
:OUTPUT_direct - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -j INPUT_direct
-A INPUT -j INPUT_ZONES
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT
-A FORWARD -i lo -j ACCEPT
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -j FORWARD_direct
-A FORWARD -j FORWARD_ZONES
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
-A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
-A OUTPUT -j OUTPUT_direct
-A OUTPUT -j OUTPUT_POLICIES_pre
-A OUTPUT -j OUTPUT_POLICIES_post
-A FORWARD_POLICIES_pre -o docker0 -j FWD_docker-forwarding
-A FORWARD_ZONES -i docker0 -g FWD_docker
-A FORWARD_ZONES -g FWD_public
-A FWD_docker -j FORWARD_POLICIES_pre
-A FWD_docker -j FWD_docker_pre
-A FWD_docker -j FWD_docker_log
-A FWD_docker -j FWD_docker_deny
-A FWD_docker -j FWD_docker_allow
-A FWD_docker -j FWD_docker_post
-A FWD_docker -j FORWARD_POLICIES_post
-A FWD_docker -j ACCEPT
-A FWD_docker-forwarding -j FWD_docker-forwarding_pre
-A FWD_docker-forwarding -j FWD_docker-forwarding_log
-A FWD_docker-forwarding -j FWD_docker-forwarding_deny
-A FWD_docker-forwarding -j FWD_docker-forwarding_allow
-A FWD_docker-forwarding -j FWD_docker-forwarding_post
-A FWD_docker-forwarding -j ACCEPT
-A FWD_public -j FORWARD_POLICIES_pre
-A FWD_public -j FWD_public_pre
-A FWD_public -j FWD_public_log
-A FWD_public -j FWD_public_deny
-A FWD_public -j FWD_public_allow
-A FWD_public -j FWD_public_post
-A FWD_public -j FORWARD_POLICIES_post
-A FWD_public -j REJECT --reject-with icmp-port-unreachable
-A INPUT_ZONES -i docker0 -g IN_docker
-A INPUT_ZONES -g IN_public
-A IN_docker -j INPUT_POLICIES_pre
-A IN_docker -j IN_docker_pre
-A IN_docker -j IN_docker_log
-A IN_docker -j IN_docker_deny
-A IN_docker -j IN_docker_allow
-A IN_docker -j IN_docker_post
-A IN_docker -j INPUT_POLICIES_post
-A IN_docker -j ACCEPT
-A IN_public -j INPUT_POLICIES_pre
-A IN_public -j IN_public_pre
-A IN_public -j IN_public_log
-A IN_public -j IN_public_deny
-A IN_public -j IN_public_allow
-A IN_public -j IN_public_post
-A IN_public -j INPUT_POLICIES_post
-A IN_public -p icmp -j ACCEPT
-A IN_public -j REJECT --reject-with icmp-port-unreachable
-A IN_public_allow -p tcp -m tcp --dport 22 -j ACCEPT
"""


def firewalld(document: Document, *rules: str, forwarding: bool = True) -> Document:
    """firewalld with the iptables backend, on IPv4: eth0 in zone public, docker0 in zone docker.

    :param rules: what rich rules become: C(-A IN_public_deny -p tcp -m tcp --dport 3306 -j DROP).
    :param forwarding: Docker's policy docker-forwarding is there, which lets in from everywhere to zone docker.
    """
    lines = text_lines(_FIREWALLD)
    if not forwarding:
        lines = [line for line in lines if "FWD_docker-forwarding" not in line]
    return with_rules(document, IPV4, "filter", [*lines, *rules])


def firewalld_nftables(document: Document) -> Document:
    """firewalld with the nftables backend: of its table a snapshot has the base chains only."""
    chains = (
        ("filter_PREROUTING", "prerouting", 10, True),
        ("filter_INPUT", "input", 10, True),
        ("filter_FORWARD", "forward", 10, True),
        ("filter_OUTPUT", "output", 10, True),
        ("mangle_PREROUTING", "prerouting", -140, False),
        ("nat_PREROUTING", "prerouting", -90, False),
        ("nat_POSTROUTING", "postrouting", 110, False),
        ("nat_OUTPUT", "output", -90, False),
    )
    return base_chains(
        document,
        *(
            {
                "family": "inet",
                "table": "firewalld",
                "chain": name,
                "hook": hook,
                "priority": priority,
                "policy": "accept",
                "rules": 6 if stops else 1,
                "stops": stops,
            }
            for name, hook, priority, stops in chains
        ),
    )


def base_chains(document: Document, *chains: Document) -> Document:
    """Base chains of nftables outside of iptables' tables."""
    return edited(document, nft={"base_chains": [*document["nft"]["base_chains"], *chains]})


# Bans ------------------------------------------------------------------------------------------------------------


def fail2ban(document: Document, jail: str, chain: str, ports: str, *banned: str) -> Document:
    """A jail with action iptables-multiport.

    :param chain: the action's option C(chain).
    """
    name = "f2b-" + jail
    return with_rules(
        document,
        IPV4,
        "filter",
        [
            ":%s - [0:0]" % name,
            *("-A %s -s %s -j REJECT --reject-with icmp-port-unreachable" % (name, source) for source in banned),
            "-A %s -j RETURN" % name,
            "-I %s -p tcp -m multiport --dports %s -j %s" % (chain, ports, name),
        ],
    )


def crowdsec(document: Document, *chains: str) -> Document:
    """CrowdSec's bouncer in mode iptables, in both families, with its sets."""
    sets = []
    for family, name, kind, entry in (
        (IPV4, "crowdsec-blacklists-0", "inet", "192.0.2.66"),
        (IPV6, "crowdsec6-blacklists-0", "inet6", "2001:db8:66::1"),
    ):
        if document["iptables"][family]["nft"] is None:
            continue
        lines = [
            ":CROWDSEC_CHAIN - [0:0]",
            '-A CROWDSEC_CHAIN -m set --match-set %s src -m comment --comment "CrowdSec: CAPI" -j DROP' % name,
            *("-I %s -j CROWDSEC_CHAIN" % chain for chain in chains),
        ]
        document = with_rules(document, family, "filter", lines)
        sets.append(
            "create %s hash:net family %s hashsize 1024 maxelem 131072 timeout 300 bucketsize 12 initval 0x7d8a\n"
            "add %s %s timeout 12345\n" % (name, kind, name, entry)
        )
    return edited(document, ipsets="".join(sets))


def crowdsec_nftables(document: Document, *hooks: str) -> Document:
    """CrowdSec's bouncer in mode nftables: its table is its own."""
    found = []
    for family, table in (("ip", "crowdsec"), ("ip6", "crowdsec6")):
        for hook in hooks:
            found.append(
                {
                    "family": family,
                    "table": table,
                    "chain": "%s-chain-%s" % (table, hook),
                    "hook": hook,
                    "priority": -10,
                    "policy": "accept",
                    "rules": 1,
                    "stops": True,
                }
            )
    return base_chains(document, *found)


# Other networks of the host --------------------------------------------------------------------------------------

_LIBVIRT = """
:LIBVIRT_FWI - [0:0]
:LIBVIRT_FWO - [0:0]
:LIBVIRT_FWX - [0:0]
:LIBVIRT_INP - [0:0]
:LIBVIRT_OUT - [0:0]
-A INPUT -j LIBVIRT_INP
-A FORWARD -j LIBVIRT_FWX
-A FORWARD -j LIBVIRT_FWI
-A FORWARD -j LIBVIRT_FWO
-A OUTPUT -j LIBVIRT_OUT
-A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A LIBVIRT_FWI -o virbr0 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWO -s 192.168.122.0/24 -i virbr0 -j ACCEPT
-A LIBVIRT_FWO -i virbr0 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWX -i virbr0 -o virbr0 -j ACCEPT
-A LIBVIRT_INP -i virbr0 -p udp -m udp --dport 53 -j ACCEPT
-A LIBVIRT_INP -i virbr0 -p tcp -m tcp --dport 53 -j ACCEPT
-A LIBVIRT_INP -i virbr0 -p udp -m udp --dport 67 -j ACCEPT
-A LIBVIRT_INP -i virbr0 -p tcp -m tcp --dport 67 -j ACCEPT
-A LIBVIRT_OUT -o virbr0 -p udp -m udp --dport 53 -j ACCEPT
-A LIBVIRT_OUT -o virbr0 -p tcp -m tcp --dport 53 -j ACCEPT
-A LIBVIRT_OUT -o virbr0 -p udp -m udp --dport 68 -j ACCEPT
-A LIBVIRT_OUT -o virbr0 -p tcp -m tcp --dport 68 -j ACCEPT
"""

_TAILSCALE = """
:ts-forward - [0:0]
:ts-input - [0:0]
-A ts-forward -i tailscale0 -j MARK --set-xmark 0x40000/0xff0000
-A ts-forward -m mark --mark 0x40000/0xff0000 -j ACCEPT
-A ts-forward -s 100.64.0.0/10 -o tailscale0 -j DROP
-A ts-forward -o tailscale0 -j ACCEPT
-A ts-input -s 100.64.0.20/32 -i lo -j ACCEPT
-A ts-input -s 100.115.92.0/23 ! -i tailscale0 -j RETURN
-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP
-A ts-input -i tailscale0 -j ACCEPT
-A ts-input -p udp -m udp --dport 41641 -j ACCEPT
"""


def interface(document: Document, name: str, *addresses: str, kind: str = "") -> Document:
    """One more interface of the host, with its addresses."""
    more = {"name": name, "kind": kind, "up": True, "master": "", "addresses": list(addresses)}
    return edited(document, interfaces=[*document["interfaces"], more])


def libvirt(document: Document) -> Document:
    """libvirt's network "default"."""
    document = with_rules(document, IPV4, "filter", text_lines(_LIBVIRT))
    return interface(document, "virbr0", "192.168.122.1/24", kind="bridge")


def tailscale(document: Document, first: bool = False) -> Document:
    """tailscaled.

    :param first: it was started after Docker, which puts its chain above DOCKER-USER; the other way round Docker's
        are above.
    """
    jumps = ["-I INPUT -j ts-input", "-I FORWARD -j ts-forward" if first else "-A FORWARD -j ts-forward"]
    document = with_rules(document, IPV4, "filter", [*text_lines(_TAILSCALE), *jumps])
    return interface(document, "tailscale0", "100.64.0.20/32")


__all__ = [
    "FAMILIES",
    "UFW_DOCKER",
    "base_chains",
    "crowdsec",
    "crowdsec_nftables",
    "fail2ban",
    "firewalld",
    "firewalld_nftables",
    "interface",
    "libvirt",
    "tailscale",
    "text_lines",
    "ufw",
    "ufw_docker",
]
