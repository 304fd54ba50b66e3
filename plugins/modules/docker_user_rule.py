#!/usr/bin/python

# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_user_rule
short_description: Say who may reach a container, in Docker's DOCKER-USER chain
version_added: 1.0.0
author:
  - The quaywall.docker authors (@quaywall)
description:
  - Manages one policy for one container (or several with the same labels, a network, an address or a published port)
    in the C(DOCKER-USER) chain of iptables and ip6tables.
  - A published port is forwarded traffic. C(INPUT) never sees it, and C(DOCKER-USER) sees it with the container's port
    in place of the host's. Rules for a bare port therefore hit every container with that inner port. This module
    always makes rules for a target.
  - The rules of all policies stand together in the chain. Replies and established connections pass first. Rules of
    other tools keep their text, order and counters. Those at the top that can only deny stay in front of the policies,
    all others are read after them.
  - Each family is changed in one transaction, so the kernel has the old rules or the new ones at any moment.
extends_documentation_fragment:
  - quaywall.docker._attributes
  - quaywall.docker._policy
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
  name:
    description:
      - Name of the policy on this host, 1 to 64 letters, digits, dots, underscores and dashes.
      - It is kept in the comment of each of its rules as C(quaywall:<name>), for C(iptables -S DOCKER-USER) to show.
    type: str
    required: true
  state:
    description:
      - V(present) makes the policy's rules what the options say; other rules of that policy go.
      - V(absent) takes the policy's rules away. Only O(name) is needed then.
    type: str
    choices: [present, absent]
    default: present
  ipset_threshold:
    description:
      - If there are more O(source) entries of an IP version than this, they go to an ipset, which one rule asks,
        instead
        of a rule each. V(0) makes a rule each, however many they are.
    type: int
    default: 100
  baseline:
    description:
      - Keep C(ESTABLISHED) first and C(RETURN) last. An unconditional C(RETURN) that is there is taken over.
      - With V(false) neither is added; those that are there stay. The first rule goes when the last policy goes.
    type: bool
    default: true
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
  - Docker SDK for Python 5.0.3 or newer, for O(container), O(labels) and O(network)
notes:
  - Established connections pass before any policy is asked. A new policy cuts connections that are open only with
    O(drop_connections). With O(baseline=false) and no such rule in the chain, replies to a container's own connections
    meet them too.
  - Where the role P(quaywall.docker.firewall_baseline#role) keeps the policies of this host, the policy is stored
    there too, and its follower looks addresses up from then on. Where there is a guard, it repeats what the policy
    denies.
  - A container's address is looked up when the task runs. When a container was re-created, run the task again. Until
    then its fixed host ports stay closed to everybody that the policy does not name, and to those that it names too.
  - Ports of an IPv4-only container that are published on an IPv6 address of the host are served by docker-proxy. They
    enter through C(INPUT) of ip6tables, where no rule in C(DOCKER-USER) can stop them. A guard does; where there is
    none, the module warns about that.
  - Connections to a published port from the host itself, and (on engines up to 28, where docker-proxy serves them) from
    its own containers, do not pass C(DOCKER-USER). With C(userland-proxy) switched off they do, and a neighbour that
    connects to the host's port comes from outside.
seealso:
  - module: ansible.builtin.iptables
  - name: Packet filtering and firewalls
    description: Docker's documentation of the DOCKER-USER chain.
    link: https://docs.docker.com/engine/network/packet-filtering-firewalls/
"""

EXAMPLES = r"""
- name: Only the office reaches the admin UI
  quaywall.docker.docker_user_rule:
    name: admin-ui
    container: admin
    destination_port: ["8080"]
    source: [203.0.113.10/32]
    action: accept
    otherwise: drop

- name: The database answers to the application's network only, in both IP versions
  quaywall.docker.docker_user_rule:
    name: db
    container: db
    destination_port: ["5432"]
    source:
      - 198.51.100.0/24
      - 2001:db8:5::/64
    action: accept # everybody else is dropped, as sources are named

- name: Nobody from outside reaches any container of this Compose service
  quaywall.docker.docker_user_rule:
    name: worker-closed
    labels:
      com.docker.compose.project: shop
      com.docker.compose.service: worker
    protocol: all
    action: drop # the service's neighbours on its own network still do

- name: Host port 9000 is for the VPN, whichever container is behind it
  quaywall.docker.docker_user_rule:
    name: port-9000
    published_port: "9000"
    in_interface: wg0
    action: accept
    otherwise: reject
    log:
      prefix: "port-9000 denied "

- name: Whatever is on the network backend is not reached from outside
  quaywall.docker.docker_user_rule:
    name: backend-closed
    network: backend
    protocol: all
    action: drop

- name: That policy is not needed any more
  quaywall.docker.docker_user_rule:
    name: admin-ui
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
endpoints:
  description: The addresses that were found for the target in Docker. Empty for O(destination) and O(published_port).
  returned: success
  type: list
  elements: dict
  contains:
    container:
      description: The container's name.
      type: str
      sample: admin
    container_id:
      description: The container's ID.
      type: str
      sample: 0f8d3a1f2c4b5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6
    network:
      description: The Docker network.
      type: str
      sample: bridge
    bridge:
      description: The network's interface on the host.
      type: str
      sample: docker0
    address:
      description: The container's address on the network.
      type: str
      sample: 172.17.0.10
    family:
      description: V(ipv4) or V(ipv6).
      type: str
      sample: ipv4
dropped_connections:
  description: The connections that were cut, or would be in check mode, with O(drop_connections=true).
  returned: success
  type: list
  elements: str
  sample: ["tcp 192.0.2.7 port 40312 to 203.0.113.1 port 9000"]
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
        - >-
          -A DOCKER-USER -s 203.0.113.10/32 -d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080
          -m comment --comment "quaywall:admin-ui" -j ACCEPT
        - >-
          -A DOCKER-USER -d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080
          -m comment --comment "quaywall:admin-ui" -j DROP
        - "-A DOCKER-USER -j RETURN"
    guard:
      description:
        - The guard, which repeats the denies in C(mangle) where M(quaywall.docker.docker_user_chain) has made one.
          Lists V(before) and V(after) as above, empty where there is none.
      type: dict
      sample: {before: [], after: []}
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
    from ansible_collections.quaywall.docker.plugins.module_utils._module.docker_user_rule import (
        argument_spec,
        run_module,
    )

    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    run_module(module)


if __name__ == "__main__":
    main()
