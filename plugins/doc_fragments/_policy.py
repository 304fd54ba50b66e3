# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this doc fragment is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

from __future__ import annotations


class ModuleDocFragment:
    # What a policy is made of, apart from its name and state
    DOCUMENTATION = r"""
options:
  container:
    description:
      - Protect the container of this name or ID. A unique beginning of an ID will do if it has 12 digits or more.
      - A container that uses the network of another one (C(network_mode=container:...)) is protected where that one is.
      - For a container that is not running, what the policy denies is guarded on its fixed host ports. What the policy
        allows needs the container's address, so run the task again once the container runs. The module warns about it.
      - Exactly one of O(container), O(labels), O(network), O(destination) and O(published_port) is needed.
    type: str
  labels:
    description:
      - Protect all containers that carry all of these labels, such as those of a Compose service
        (C(com.docker.compose.project) and C(com.docker.compose.service)).
    type: dict
  network:
    description:
      - Protect whatever is on the Docker network of this name. The rules name the network's bridge,
        so containers that join later are protected too.
    type: str
  destination:
    description:
      - Protect this IP address or network (CIDR). It is not looked up in Docker.
      - V(0.0.0.0/0) and V(::/0) are refused, as they mean every container and every forwarded connection.
    type: str
  published_port:
    description:
      - Protect what is published on this host port, or on a range of host ports such as V(8000:8010), whichever
        container that is. It is not looked up in Docker, so the policy may be there before the container is.
      - Quote ranges, as YAML takes C(20:25) for a number.
      - Traffic that reaches a container by its own address, and not through the host port, is not affected.
    type: str
  published_address:
    description:
      - Only the O(published_port) on this address of the host. If omitted, on all of its addresses.
    type: str
  container_network:
    description:
      - Of the O(container) (or those with the O(labels)), protect only the address on the Docker network of this name.
        If omitted, all of its addresses.
      - A host port belongs to no network, so the policy then denies by the address on that network alone.
    type: str
  protocol:
    description:
      - The protocol. V(all) means every protocol; V(icmp) stands for ICMPv6 where the address is IPv6.
    type: str
    choices: [tcp, udp, sctp, icmp, all]
    default: tcp
  destination_port:
    description:
      - Ports and ranges of ports B(inside the container), each such as V(8080) or V(8000:8010). Quote ranges.
        The kernel reads C(DOCKER-USER) after it has translated the host's port to the container's.
      - If omitted, every port.
    type: list
    elements: str
  source:
    description:
      - Whom O(action) is for. IP addresses and networks (CIDR), IPv4 and IPv6 mixed. Names are not looked up.
      - If omitted, anyone. An empty list is refused, as a template that came out empty must not open a container to
        everybody.
    type: list
    elements: str
  in_interface:
    description:
      - O(action) is only for what came in through this interface, such as V(eth0), V(eth+), or V(!wg0) for any other.
      - O(otherwise) is then for what came from other sources or through other interfaces.
    type: str
  action:
    description:
      - What happens to connections from O(source) through O(in_interface). Required if O(state=present).
      - V(accept) lets them in, past Docker's own isolation rules and its drops of ports that are not published too.
      - V(return) lets Docker's own rules decide, which is what they would do without any policy.
      - V(drop) and V(reject) stop them, without and with an answer.
    type: str
    choices: [accept, return, drop, reject]
  otherwise:
    description:
      - What happens to everybody else, with the same meanings as in O(action). V(none) makes no rule.
      - If omitted, V(drop) where O(source) is given and O(action) is V(accept) or V(return), else V(none).
      - Two policies with a different O(otherwise) for the same endpoint and port are refused.
    type: str
    choices: [drop, reject, return, none]
  same_network:
    description:
      - V(allow) exempts the traffic between containers on the same Docker network, which passes C(DOCKER-USER) where
        C(net.bridge.bridge-nf-call-iptables) is 1.
      - V(filter) applies the policy to it as well.
    type: str
    choices: [allow, filter]
    default: allow
  match:
    description:
      - By what the rules recognise a container.
      - V(both) denies by the container's address and by its fixed host ports, so that a container that comes back with
        another address is not open in the meantime. It allows by address and host port together, so that
        no other container is opened that gets the address later. Host ports that Docker chooses anew at each start
        are allowed as they are now.
      - Where a container publishes ports, V(both) allows those only, and ports that are named in O(destination_port).
      - V(address) uses the address only. Choose it for containers that are reached by routing to their address.
      - V(published_port) uses the host ports only.
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
      - Order among policies from V(0) to V(999); equal ones are ordered by name. Every O(action) of all policies comes
        before every O(otherwise), so that two policies for one container add up.
    type: int
    default: 500
  ip_version:
    description:
      - V(auto) takes the families that the target has. For a O(published_port) without O(published_address) these are
        IPv4, and IPv6 where Docker manages C(ip6tables). The same goes for the host ports of a container.
      - V(ipv4), V(ipv6) and V(both) are errors where the target has no such address.
      - Engines up to 26 keep no IPv6 C(DOCKER-USER) chain by default. Where a policy needs one it is made,
        with its jump in C(FORWARD).
    type: str
    choices: [auto, ipv4, ipv6, both]
    default: auto
"""
