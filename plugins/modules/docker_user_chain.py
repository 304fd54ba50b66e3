#!/usr/bin/python

# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_user_chain
short_description: The whole DOCKER-USER chain of a host, in one task
version_added: 1.0.0
author:
  - The quaywall.docker authors (@quaywall)
description:
  - Manages all policies of a host in the C(DOCKER-USER) chain of iptables and ip6tables. Policies that O(rules) does
    not
    name go. A policy says the same here as in M(quaywall.docker.docker_user_rule).
  - Replies and established connections pass first, then come the policies, and a C(RETURN) is last. Rules of other
    tools
    keep their text, order and counters.
  - However long the list is, each family is changed in one transaction, so the kernel has the old rules or the new ones
    at any moment.
  - Where C(DOCKER-USER) or its jump in C(FORWARD) is missing, it is made. So a host can be guarded before Docker is
    installed or started. Where the jump is not the first rule of C(FORWARD), it is moved there.
extends_documentation_fragment:
  - quaywall.docker._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    support: full
    platforms: linux
options:
  rules:
    description:
      - The policies. An empty list leaves the baseline alone in the chain. Required if O(state=present).
    type: list
    elements: dict
    suboptions:
      name:
        description:
          - Name of the policy on this host, 1 to 64 letters, digits, dots, underscores and dashes.
        type: str
        required: true
      container:
        description:
          - Protect the container of this name or ID.
          - Exactly one of O(rules[].container), O(rules[].labels), O(rules[].network), O(rules[].destination) and
            O(rules[].published_port) is needed.
        type: str
      labels:
        description:
          - Protect all containers that carry all of these labels, such as those of a Compose service.
        type: dict
      network:
        description:
          - Protect whatever is on the Docker network of this name.
        type: str
      destination:
        description:
          - Protect this IP address or network (CIDR). V(0.0.0.0/0) and V(::/0) are refused.
        type: str
      published_port:
        description:
          - Protect what is published on this host port, or on a range such as V(8000:8010), whichever container that
            is.
        type: str
      published_address:
        description:
          - Only the O(rules[].published_port) on this address of the host. If omitted, on all of its addresses.
        type: str
      container_network:
        description:
          - Of the containers, protect only the address on the Docker network of this name. If omitted, all addresses.
        type: str
      protocol:
        description:
          - The protocol. V(all) means every protocol; V(icmp) stands for ICMPv6 where the address is IPv6.
        type: str
        choices: [tcp, udp, sctp, icmp, all]
        default: tcp
      destination_port:
        description:
          - Ports and ranges of ports B(inside the container), such as V(8080) or V(8000:8010). If omitted, every port.
        type: list
        elements: str
      source:
        description:
          - Whom O(rules[].action) is for. IP addresses and networks (CIDR), IPv4 and IPv6 mixed. If omitted, anyone.
          - An empty list is refused.
        type: list
        elements: str
      in_interface:
        description:
          - O(rules[].action) is only for what came in through this interface, such as V(eth0), V(eth+), or V(!wg0).
        type: str
      action:
        description:
          - What happens to connections from O(rules[].source) through O(rules[].in_interface). Needed in each policy.
        type: str
        choices: [accept, return, drop, reject]
      otherwise:
        description:
          - What happens to everybody else. V(none) makes no rule.
          - If omitted, V(drop) where O(rules[].source) is given and O(rules[].action) is V(accept) or V(return), else
            V(none).
        type: str
        choices: [drop, reject, return, none]
      same_network:
        description:
          - V(allow) exempts the traffic between containers on the same Docker network, V(filter) does not.
        type: str
        choices: [allow, filter]
        default: allow
      match:
        description:
          - By what the rules recognise a container, its address, its host ports, or V(both).
        type: str
        choices: [both, address, published_port]
        default: both
      log:
        description:
          - Log what the denying rule stops to the kernel's log.
        type: dict
        suboptions:
          prefix:
            description:
              - What each line begins with, 29 bytes at most. If omitted, C(quaywall:) with the policy's name.
            type: str
          limit:
            description:
              - How many lines at most, such as V(10/minute) or V(2/second).
            type: str
            default: 10/minute
      priority:
        description:
          - Order among policies from V(0) to V(999); equal ones are ordered by name.
        type: int
        default: 500
      ip_version:
        description:
          - V(auto) takes the families that the target has.
        type: str
        choices: [auto, ipv4, ipv6, both]
        default: auto
  state:
    description:
      - V(present) makes the chain what the options say.
      - V(absent) takes out all that is of this collection, the policies, the first rule, the guard, the ipsets and the
        stored policies. What is of Docker or of other tools stays.
    type: str
    choices: [present, absent]
    default: present
  established:
    description:
      - What the first rule does with replies and established connections. V(accept) lets them in, V(return) lets
        Docker's
        own rules decide, V(omit) makes no such rule.
    type: str
    choices: [accept, return, omit]
    default: accept
  default:
    description:
      - What happens to connections that no policy decides.
      - V(return) lets Docker's own rules decide, so whatever is published can be reached.
      - V(drop) drops what comes from outside to any container. Traffic between containers, their outgoing connections
        and replies are not touched. Outside is every interface that is no bridge of a Docker network.
      - Networks that are made later are closed when this task (or the follower of the role) runs again.
    type: str
    choices: [return, drop]
    default: return
  outside_interfaces:
    description:
      - With O(default=drop), drop only what comes in through these interfaces, such as V(eth0) or V(eth+).
    type: list
    elements: str
  foreign_rules:
    description:
      - V(keep) leaves the rules of other tools in C(DOCKER-USER) as they are.
      - V(remove) takes them out, bans of fail2ban or CrowdSec included.
    type: str
    choices: [keep, remove]
    default: keep
  guard:
    description:
      - Repeat the denies in chains of our own in the table C(mangle), which no engine touches. Engines up to 27 take
        the jump to C(DOCKER-USER) away for a moment at each C(docker network create), and Engine 28 with live-restore
        stands in front of it at each start. Without the guard, forbidden connections get in at such moments.
      - What C(DOCKER-USER) reads is denied there, with its log, its answers and its counters. The guard marks a denied
        packet with 0x51574744 in C(FORWARD) of mangle and drops what still carries that mark in C(POSTROUTING).
      - In C(INPUT) of mangle it drops what the policies deny to a published port that docker-proxy serves. That is
        how a port published on IPv6 leads to a container without an IPv6 address, and how a connection gets in that
        conntrack remembers without DNAT, from a moment when nothing listened on the port. What comes from the host
        itself or from Docker's networks passes. A service of the host's own on the port of a container that exists,
        though it may not run, is guarded like the container.
      - For that the published ports are looked up. Where no policy needs a look-up and the policies are not stored,
        they are not. A container on several networks is judged there by its own policies (O(rules[].container),
        O(rules[].labels), O(rules[].published_port)) and not by those with O(rules[].network), O(rules[].destination)
        or O(rules[].container_network) for one of them, as nobody can tell to which network a host port leads.
    type: bool
    default: true
  ipset_threshold:
    description:
      - If a policy has more sources of an IP version than this, they go to an ipset, which one rule asks, instead of a
        rule each. V(0) makes a rule each, however many they are.
    type: int
    default: 100
  missing_targets:
    description:
      - What becomes of a policy whose container or network is not there, or cannot be looked up.
      - V(fail) fails the task, and nothing is changed.
      - V(wait) makes no rules for that policy. It is returned in RV(waiting), and the follower of the role makes its
        rules as soon as the container is created. Where Docker does not answer, rules that the policy has already stay.
    type: str
    choices: [fail, wait]
    default: fail
  store:
    description:
      - Keep the policies on the host in C(/etc/quaywall/policies.json), for the follower and for the next boot.
      - If omitted, they are kept where there is such a file already, as after the role
        P(quaywall.docker.firewall_baseline#role).
    type: bool
  drop_connections:
    description:
      - Cut the open connections into containers that the chain would not let in if they were made now. Connections that
        a container made, and those to the host itself, are left alone.
      - Without it they go on until an end closes them, as C(ESTABLISHED) passes before any policy is asked.
      - The kernel forgets such a connection, and neither end is told. Where the host's port is the container's too
        (8080:8080) and the container is the next to send, the kernel takes it for a connection of the container's own,
        and it goes on.
    type: bool
    default: false
  show_access_changes:
    description:
      - Return RV(access_changes), that is who reaches which container no more, or does now, by this task.
      - It is found out by tracing connections, as M(quaywall.docker.docker_fw_trace) does, over the host's rules before
        and after. For that the host is looked at like in M(quaywall.docker.docker_fw_audit), which takes a second or
        so; outside of check mode also if there turns out to be nothing to change.
      - If omitted, it is returned in check mode, and not outside.
      - Where the host cannot be looked at there is a warning, and RV(access_changes) is null.
      - It takes five seconds of computing at most. On a host with more ways into its containers than that is enough
        for, those from outside come first, and a warning says that some were left out.
    type: bool
requirements:
  - iptables 1.8 or newer
  - conntrack, for O(drop_connections)
  - ipset, for more sources than O(ipset_threshold)
  - Docker SDK for Python 5.0.3 or newer, for O(rules[].container), O(rules[].labels), O(rules[].network) and
    O(default=drop)
notes:
  - Established connections pass before any policy is asked. A new policy cuts connections that are open only with
    O(drop_connections).
  - "Where nothing is known of Docker yet, and O(missing_targets=wait), the chain is made in both IP versions."
seealso:
  - module: quaywall.docker.docker_user_rule
  - module: quaywall.docker.docker_fw_audit
  - name: Packet filtering and firewalls
    description: Docker's documentation of the DOCKER-USER chain.
    link: https://docs.docker.com/engine/network/packet-filtering-firewalls/
"""

EXAMPLES = r"""
- name: These are the policies of this host, and there are no others
  quaywall.docker.docker_user_chain:
    rules:
      - name: admin-ui
        container: admin
        destination_port: ["8080"]
        source: [203.0.113.10/32]
        action: accept
      - name: metrics
        published_port: "9100"
        source: [198.51.100.0/24]
        action: accept

- name: Whatever is published is closed to the outside, but for the web server
  quaywall.docker.docker_user_chain:
    default: drop
    rules:
      - name: web
        published_port: "443"
        action: return

- name: Nothing of this collection is left in the kernel
  quaywall.docker.docker_user_chain:
    state: absent
"""

RETURN = r"""
access_changes:
  description:
    - Who reaches a container no more, or does now, by what this task changes or would change. Everybody else reaches
      what they reached before.
    - Looked at are the published ports and the containers' own addresses, from outside and from other containers, for
      new connections and their answers. Connections of the host itself pass no rule of this module's.
    - Null where the host could not be looked at.
  returned: in check mode, or with O(show_access_changes=true)
  type: list
  elements: dict
  contains:
    becomes:
      description: V(blocked) or V(reachable).
      type: str
      sample: blocked
    source:
      description: For whom, as addresses and networks, or the names of containers.
      type: str
      sample: anyone but 203.0.113.10
    in_interface:
      description: The interface by which they come in; null where it is the same for all that lead outside.
      type: str
    container:
      description: The container's name.
      type: str
      sample: admin
    address:
      description: The container's address.
      type: str
      sample: 172.17.0.10
    port:
      description: >-
        The port that is connected to, the host's for a published port and else the container's. Null for all ports of
        the container's own address together that nobody publishes and no rule names.
      type: int
      sample: 9000
    protocol:
      description: The protocol.
      type: str
      sample: tcp
    published:
      description: The published port; null where the container's own address is connected to.
      type: str
      sample: 9000->8080/tcp
    family:
      description: V(ipv4) or V(ipv6).
      type: str
      sample: ipv4
    certainty:
      description: V(definite), or V(possible) where it hangs on RV(access_changes[].reasons).
      type: str
      sample: definite
    reasons:
      description: What it hangs on, such as a rate limit or a match that is not understood.
      type: list
      elements: str
      sample: []
    text:
      description: All of it in one line.
      type: str
      sample: "Blocked for anyone but 203.0.113.10: admin (9000->8080/tcp) over IPv4"
chains:
  description:
    - The chain C(DOCKER-USER) of each family, by V(ipv4) and V(ipv6). Where ip6tables is missing there is no V(ipv6).
  returned: success
  type: dict
  contains:
    variant:
      description: The variant of iptables that holds Docker's chains, V(nft) or V(legacy).
      type: str
      sample: nft
    before:
      description: The rules as they were, as C(iptables -S) prints them.
      type: list
      elements: str
      sample: ["-A DOCKER-USER -j RETURN"]
    after:
      description: The rules as they are now, or would be in check mode.
      type: list
      elements: str
      sample:
        - >-
          -A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "quaywall: established"
          -j ACCEPT
        - "-A DOCKER-USER -j RETURN"
    guard:
      description:
        - The guard in the table C(mangle), its chain in C(FORWARD) and then the one in C(INPUT). Lists V(before) and
          V(after) as above, empty where there is none.
      type: dict
      sample: {before: [], after: []}
endpoints:
  description: The addresses that were found for the policies' targets in Docker.
  returned: success
  type: list
  elements: dict
  sample:
    - container: admin
      container_id: 0f8d3a1f2c4b5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6
      network: bridge
      bridge: docker0
      address: 172.17.0.10
      family: ipv4
dropped_connections:
  description: The connections that were cut, or would be in check mode, with O(drop_connections=true).
  returned: success
  type: list
  elements: str
  sample: ["tcp 192.0.2.7 port 40312 to 203.0.113.1 port 9000"]
sets:
  description: The ipsets of this collection, with the number of networks in each.
  returned: success
  type: dict
  sample: {quaywall-0123456789abcdef-4: 100000}
waiting:
  description: The policies that made no rules, and why.
  returned: success
  type: dict
  sample: {admin-ui: "There is no container 'admin' on this host; there is none at all."}
"""

import atexit
import gc

# Collecting garbage is a tenth of what this short process does, most of it at its end; a playbook pays that per task.
gc.disable()
atexit.register(gc.freeze)

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.quaywall.docker.plugins.module_utils._module._once import compile_once


def main() -> None:
    compile_once()
    # Only now, as this is most of what is compiled.
    from ansible_collections.quaywall.docker.plugins.module_utils._module.docker_user_chain import (
        argument_spec,
        run_module,
    )

    module = AnsibleModule(
        argument_spec=argument_spec(), supports_check_mode=True, required_if=[("state", "present", ["rules"])]
    )
    run_module(module)


if __name__ == "__main__":
    main()
