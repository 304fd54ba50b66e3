# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What each check is about, for people who meet its name in a report: a title, what it means, and what to do.

The checks themselves say it of a rule and its containers; this is the help beside them. What is true of Docker and
iptables in it is what Docker's documentation of the DOCKER-USER chain says, or was measured on Engines 20.10 to 29.7.
"""

from __future__ import annotations

import typing as t


class About(t.NamedTuple):
    """The help of one check."""

    title: str
    what: str
    advice: str


ABOUT: t.Mapping[str, About] = {
    "port_only_deny": About(
        "A rule stops a port of every container",
        "DOCKER-USER is read after DNAT, so a port in a rule is the container's inner port. A rule that names a port "
        "and no container stops every container with that inner port, whatever its published port is.",
        "Name the container: one policy of docker_user_rule for each container that is to be closed.",
    ),
    "broad_deny": About(
        "A rule stops containers that nobody listed",
        "The rule denies by interface, source or network, and so stops containers that it was hardly written for.",
        "Say for each container who may reach it, and take the broad rule out.",
    ),
    "port_only_allow": About(
        "A rule opens a port of every container",
        "The port in the rule is the container's inner port, so the rule opens every container that has it.",
        "Name the container that is to be reached, with docker_user_rule.",
    ),
    "host_port_never_matches": About(
        "A rule names a host's port and never matches",
        "The rule was written for a published port, but DOCKER-USER sees the container's port. It does nothing.",
        "Name the container, or match the published port with conntrack's original destination port.",
    ),
    "neighbours_cut_off": About(
        "A rule cuts a container off from its own network",
        "Where br_netfilter is on, packets between containers of one bridge pass these rules too.",
        "Leave the container's own bridge out (! -i BRIDGE), as docker_user_rule does.",
    ),
    "replies_or_egress_hit": About(
        "A rule stops replies, or connections that containers make",
        "The rule matches more than connections that come in: answers, or what containers ask of others.",
        "Match new connections that were translated by Docker only (--ctstate DNAT --ctdir ORIGINAL).",
    ),
    "established_missing": About(
        "No rule lets replies through before the denies",
        "Nothing accepts ESTABLISHED and RELATED ahead of the rules that deny, so replies run into them.",
        "Put the baseline there: ESTABLISHED,RELATED first, RETURN last.",
    ),
    "established_late": About(
        "The rule for replies stands below a deny",
        "The rule that accepts ESTABLISHED and RELATED is read only after rules that already stop replies.",
        "Move it to the top of DOCKER-USER.",
    ),
    "address_only": About(
        "A deny holds only until the container's address moves",
        "Docker gives addresses anew when a container is created again and at each boot. A rule by address alone then "
        "guards another container, or none.",
        "Declare it as a policy, which also guards the published port.",
    ),
    "jump_window": About(
        "There are moments without the jump to DOCKER-USER",
        "The engine takes the jump out of FORWARD and puts it back when networks are created or it restarts. What "
        "comes in at that moment is not filtered, and stays connected.",
        "Use policies of this collection: their guard stands in a table that Docker does not touch.",
    ),
    "unreachable_rule": About(
        "No packet is left for a rule",
        "Rules above it decide about everything that it could match.",
        "Move the rule up, or take it out.",
    ),
    "stale_address": About(
        "A rule names an address that no container has",
        "The container has gone or has moved. The next container with that address inherits the rule.",
        "Declare a policy for the container in place of its address, and take the rule out.",
    ),
    "wrong_owner": About(
        "A policy's address belongs to another container now",
        "A rule of a policy guards, or opens, a container that it was not declared for.",
        "Run the role or docker_user_rule again, and let the follower keep addresses current.",
    ),
    "covers_no_container": About(
        "A rule is about a network without containers",
        "No container's address is in the network that the rule names.",
        "Correct the network, or take the rule out.",
    ),
    "jump_missing": About(
        "Nothing reads DOCKER-USER",
        "FORWARD does not jump to DOCKER-USER, so none of its rules is ever asked.",
        "Restart Docker, which puts the jump back, and find what took it away.",
    ),
    "jump_not_first": About(
        "Another rule decides before DOCKER-USER",
        "FORWARD lets connections to containers through before it comes to the jump to DOCKER-USER.",
        "Put the jump first, or take out the rule that stands before it.",
    ),
    "never_read": About(
        "A rule stands where Docker's traffic does not pass",
        "A published port is forwarded to its container. A rule in INPUT, or in another chain off that way, never sees "
        "it.",
        "Say it in DOCKER-USER, for the container.",
    ),
    "docker_chain_edited": About(
        "Own rules stand in Docker's chains",
        "Docker writes its chains anew when it starts, and such rules are lost.",
        "Move them to DOCKER-USER.",
    ),
    "ipv6_gap": About(
        "A port is guarded on IPv4 and open on IPv6",
        "ip6tables has rules of its own; a rule of iptables says nothing about IPv6.",
        "Declare the policy for both families.",
    ),
    "proxy_bypass": About(
        "docker-proxy serves a port past the rules",
        "Where Docker forwards nothing in a family, docker-proxy takes the connection on the host, and DOCKER-USER "
        "never sees it.",
        "Publish on 0.0.0.0 only, close the port in INPUT, or switch the userland proxy off.",
    ),
    "direct_routing": About(
        "A container is reached at its own address",
        "Whoever can route to the container's network reaches its ports without the published port.",
        "Drop what comes in from outside for container networks, or use Engine 28 or newer, which does.",
    ),
    "backend_mixed": About(
        "Rules are in the variant of iptables that Docker does not use",
        "The kernel keeps rules of iptables-nft and iptables-legacy apart. Rules in the other one are read elsewhere, "
        "and may overrule each other.",
        "Choose one variant for the whole host.",
    ),
    "backend_nftables": About(
        "Docker uses nftables, and nothing reads DOCKER-USER",
        "With the nftables backend Docker makes no DOCKER-USER chain, and rules there are without effect.",
        "Switch Docker's firewall backend to iptables, or write the rules for nftables.",
    ),
    "docker_iptables_off": About(
        "Docker does not manage the firewall",
        "The daemon runs with iptables switched off, so nothing isolates its networks.",
        "Switch it on, unless somebody else does all of it.",
    ),
    "not_persistent": About(
        "Rules are gone after a reboot, or others come back",
        "What is saved is not what is there now.",
        "Let the role firewall_baseline keep the policies, or save the rules of DOCKER-USER.",
    ),
    "saved_docker_rules": About(
        "Docker's own rules are saved",
        "Restored at boot, they stand beside those that Docker writes, with addresses of old containers.",
        "Save only your own rules.",
    ),
    "outside_this_firewall": About(
        "Containers pass no rule of Docker's",
        "Containers on the host's network, or on macvlan and ipvlan, are not behind DOCKER-USER.",
        "Guard them in INPUT, or where their network is.",
    ),
    "swarm_ingress": About(
        "Ports of Swarm's routing mesh",
        "Such a port is published on every node, and leads to tasks on other nodes too.",
        "Check that each of them is to be reached from outside.",
    ),
    "exposed": About(
        "Ports are published to everyone",
        "Nobody has said who may reach these ports, so everyone may.",
        "Declare who may reach each of them, or publish it on 127.0.0.1.",
    ),
    "snapshot_incomplete": About(
        "Something could not be judged",
        "A part of the host's state could not be read, so findings may be missing.",
        "Give the audit root, iptables and Docker's SDK for Python, and judge again.",
    ),
}


def about(check: str) -> About:
    """The help of a check; of one that is not known here, a newer version's, its name."""
    return ABOUT.get(check) or About(check, "A check that this version of the collection does not know.", "")
