#!/usr/bin/python

# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_fw_trace
short_description: Say why a connection to a container gets through, or not
version_added: 1.0.0
author:
  - The quaywall.docker authors (@quaywall)
description:
  - Walks the first packet of a connection, and its answer, through all hooks and tables of iptables and ip6tables as
    the kernel would, and says in one sentence what decides about it.
  - Follows DNAT, redirection and masquerading, the routing decision, docker-proxy, packets between containers of one
    bridge, both variants of iptables, and Docker's own tables of nftables.
  - What cannot be known (a rate limit, an unread ipset, a match that is not understood) makes a verdict possible
    instead of definite, and it is named.
  - Only reads, in check mode and outside, and sends no packet. Whether a program in the container listens is not asked.
extends_documentation_fragment:
  - quaywall.docker._attributes
  - quaywall.docker._attributes.info_module
attributes:
  platform:
    support: full
    platforms: linux
options:
  source:
    description:
      - Who connects, as an address, a network, the name of a container, or V(host) for the host itself.
    type: str
  destination:
    description:
      - What is connected to, as an address, the name of a container, or V(host). By default an address of the host
        that leads outside.
      - For a container by name, O(port) is a port of the host that it publishes, or the container's own port. Somebody
        outside then takes the published port, and another container the address.
    type: str
  port:
    description:
      - The port that is connected to. Required for one connection, but for V(icmp).
    type: int
  protocol:
    description:
      - The protocol. V(icmp) is an echo request, in IPv6 too.
    type: str
    choices: [tcp, udp, sctp, icmp]
    default: tcp
  in_interface:
    description:
      - The interface by which it comes in. By default the one that the host's routes name for O(source).
    type: str
  source_port:
    description:
      - The port that it comes from. By default it is one of 32768 to 65535, from which clients choose.
    type: int
  sources:
    description:
      - Make a table of who reaches what, with these in place of O(source).
    type: list
    elements: str
  ports:
    description:
      - The ports of the table, such as V(8080) or V(53/udp). By default every port that a container publishes to
        others than the host itself.
    type: list
    elements: str
  expect:
    description:
      - Fail the task if the verdict is another, with the sentence that says why. V(possible) is never what is expected.
    type: str
    choices: [delivered, blocked]
  snapshot:
    description:
      - Trace over this snapshot in place of the host, as M(quaywall.docker.docker_fw_snapshot) returned it, or
        M(quaywall.docker.docker_fw_audit) with C(return_snapshot=true), as data or as JSON text. Needs neither Docker
        nor iptables nor root.
    type: raw
requirements:
  - iptables 1.8 or newer, for the rules of this host
  - Docker SDK for Python 5.0.3 or newer, for its containers
notes:
  - Reading iptables and Docker needs root. Without O(snapshot), add C(become) to the task or the play.
seealso:
  - module: quaywall.docker.docker_fw_audit
  - module: quaywall.docker.docker_user_rule
"""

EXAMPLES = r"""
- name: Say why nobody gets to port 9000
  quaywall.docker.docker_fw_trace:
    source: 203.0.113.10
    port: 9000
  register: trace

- name: Show the answer, and the way there
  ansible.builtin.debug:
    msg: "{{ [trace.msg] + trace.report }}"

- name: Fail unless the office reaches the admin UI
  quaywall.docker.docker_fw_trace:
    source: 203.0.113.10
    destination: admin
    port: 8080
    expect: delivered

- name: Show who reaches which published port
  quaywall.docker.docker_fw_trace:
    sources:
      - 203.0.113.10
      - 198.51.100.0/24
      - web
      - host
  register: table

- name: Show the table
  ansible.builtin.debug:
    var: table.report

- name: Let a CI job fail if the database is open to the world, on a host that it cannot reach
  quaywall.docker.docker_fw_trace:
    snapshot: "{{ lookup('ansible.builtin.file', 'host7.json') | from_json }}"
    sources: [198.51.100.7, "2001:db8::7"]
    ports: ["5432"]
    expect: blocked
  delegate_to: localhost
"""

RETURN = r"""
msg:
  description:
    - The answer in one sentence, with what decides and what to do.
    - For a table how many connections there are of each verdict, or those that are not as O(expect) says.
  type: str
  returned: always
  sample: >-
    Blocked: rule 1 of DOCKER-USER drops it, because Docker forwards port 9000 to admin (172.17.0.2:8080) and
    DOCKER-USER sees the container's port 8080; rule 1 of INPUT, which accepts port 8080, is never read, because this is
    forwarded; to let it in, put a policy for the container in place of that rule: docker_user_rule with container:
    admin, destination_port: [8080], source: [203.0.113.10], action: accept.
verdict:
  description: >-
    V(delivered) if the first packet gets there and its answer back, V(blocked), or V(possible) where that hangs on what
    RV(reasons) say.
  type: str
  returned: for one connection
  sample: blocked
reasons:
  description: What a possible verdict hangs on.
  type: list
  elements: str
  returned: for one connection
  sample: []
container:
  description: The container that is reached, or would have been; null if it is none.
  type: dict
  returned: for one connection
  contains:
    name:
      description: Its name.
      type: str
      sample: admin
    address:
      description: Its address.
      type: str
      sample: 172.17.0.2
    port:
      description: Its port; null for a protocol without ports.
      type: int
      sample: 8080
    network:
      description: The Docker network of that address.
      type: str
      sample: bridge
    bridge:
      description: That network's interface.
      type: str
      sample: docker0
decided_by:
  description: >-
    The rule that blocks it, or that lets it pass the table filter; null where no rule decides, as for a port nobody
    listens on.
  type: dict
  returned: for one connection
  contains:
    family:
      description: V(ipv4) or V(ipv6).
      type: str
      sample: ipv4
    variant:
      description: V(nft) or V(legacy), the variant of iptables, or V(nftables) for Docker's own tables.
      type: str
      sample: nft
    table:
      description: The table.
      type: str
      sample: filter
    chain:
      description: The chain.
      type: str
      sample: DOCKER-USER
    position:
      description: The rule's number in the chain, from 1; null for the chain's policy.
      type: int
      sample: 1
    rule:
      description: The rule as C(iptables-save) prints it, without C(-A) and the chain; null for the chain's policy.
      type: str
      sample: -p tcp -m tcp --dport 8080 -j DROP
walk:
  description: The way, step by step. After the step C(answer) it is the answer's.
  type: list
  elements: dict
  returned: for one connection
  contains:
    hook:
      description: C(PREROUTING), C(FORWARD) and so on, or C(start), C(bridge), C(routing), C(delivery), C(answer).
      type: str
      sample: FORWARD
    text:
      description: What happens there.
      type: str
    rule:
      description: As RV(decided_by); absent where it is about no rule or policy.
      type: dict
report:
  description: The walk, or the table, for people, a line each.
  type: list
  elements: str
  returned: success, or failure because of O(expect)
advice:
  description: What to do, as RV(msg) says it; empty where there is nothing to say.
  type: str
  returned: for one connection
reachability:
  description: An entry for each source and port.
  type: list
  elements: dict
  returned: with O(sources)
  contains:
    source:
      description: As in O(sources).
      type: str
      sample: 203.0.113.10
    destination:
      description: The address that is connected to.
      type: str
      sample: 203.0.113.1
    port:
      description: The port that is connected to.
      type: int
      sample: 9000
    protocol:
      description: The protocol.
      type: str
      sample: tcp
    verdict:
      description: As RV(verdict).
      type: str
      sample: delivered
    container:
      description: The name of the container that is reached, or would have been, or null.
      type: str
      sample: admin
    decided_by:
      description: As RV(decided_by).
      type: dict
    text:
      description: As RV(msg), without what to do.
      type: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.quaywall.docker.plugins.module_utils._module._once import compile_once


def main() -> None:
    compile_once()
    # Only now, as this is most of what is compiled.
    from ansible_collections.quaywall.docker.plugins.module_utils._module.docker_fw_trace import (
        CONSTRAINTS,
        argument_spec,
        run_module,
    )

    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True, **CONSTRAINTS)
    run_module(module)


if __name__ == "__main__":
    main()
