#!/usr/bin/python

# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_fw_audit
short_description: Find the firewall rules that hurt containers, and whom they hurt
version_added: 1.0.0
author:
  - The quaywall.docker authors (@quaywall)
description:
  - Judges the iptables and ip6tables rules of a Docker host by what they do to its containers. Names the containers
    that a rule hits, says for which of them it was meant, and hands over what to write instead.
  - A verdict comes from walking packets through the rules as the kernel would, from outside, from neighbours, and
    back. What cannot be known (a rate limit, an unread ipset, a match that is not understood) makes a finding possible
    instead of definite, and it is named.
  - Only reads, in check mode and outside. Nothing is loaded into the kernel to be read, and no container is inspected.
  - The host is read by M(quaywall.docker.docker_fw_snapshot), and judged on the controller. With C(async), both is done
    on the host.
  - Whatever cannot be read on the host (Docker is down, the SDK is missing, the task has no root) is a finding of the
    check V(snapshot_incomplete) and no failure of the task.
extends_documentation_fragment:
  - quaywall.docker._attributes
  - quaywall.docker._attributes.info_module
attributes:
  platform:
    support: full
    platforms: linux
  action:
    description:
      - Indicates this has a corresponding action plugin so some parts of the options can be executed on the controller.
    support: full
  async:
    description: Supports being used with the C(async) keyword.
    support: full
options:
  snapshot:
    description:
      - Judge this snapshot in place of the host, as an earlier run with O(return_snapshot=true) returned it, as data or
        as JSON text, or M(quaywall.docker.docker_fw_snapshot). Needs neither Docker nor iptables nor root, and the host
        is not asked.
    type: raw
  return_snapshot:
    description:
      - Return everything that was read as RV(snapshot), to be kept, compared, or judged elsewhere.
      - It holds the rules, names, images, addresses and ports of containers, and of their labels those that begin with
        C(com.docker.) only. It holds no environment and no command lines.
    type: bool
    default: false
  fail_on:
    description:
      - Fail the task if there is a finding of this severity or a higher one. The message then is the whole report.
    type: str
    choices: [none, low, medium, high, critical]
    default: none
  checks:
    description:
      - Make these checks only.
      - >-
        About rules that deny. V(port_only_deny) drops a port of every container instead of one's; V(broad_deny) stops
        what nobody listed; V(host_port_never_matches) names a host's port where the container's is seen, and so does
        nothing; V(neighbours_cut_off) stops the container's own network too; V(replies_or_egress_hit) stops replies or
        containers' own connections; V(established_missing) and V(established_late) let replies run into a deny;
        V(address_only) holds only until the container's address moves.
      - >-
        About rules that allow. V(port_only_allow) opens every container with that inner port; V(exposed) lists the
        ports that are published to everyone and that no rule says anything about.
      - >-
        About order and place. V(jump_missing) and V(jump_not_first) say that C(FORWARD) does not read C(DOCKER-USER),
        or not first; V(jump_window) that there are moments without the jump; V(unreachable_rule) that no packet is left
        for a rule; V(never_read) that a rule stands where Docker's traffic does not pass, such as C(INPUT);
        V(docker_chain_edited) that own rules in Docker's chains will be lost.
      - >-
        About addresses. V(stale_address) is an address that no container has; V(wrong_owner) an address of a policy
        that another container has now; V(covers_no_container) a network without containers.
      - >-
        About other ways in. V(ipv6_gap) is a port that is guarded on IPv4 and open on IPv6; V(proxy_bypass) one that
        docker-proxy serves past the rules; V(direct_routing) one that is reached at the container's own address.
        V(outside_this_firewall) lists containers that pass no rule of Docker's at all, V(swarm_ingress) the ports of
        the routing mesh.
      - >-
        About the engine and what is saved. V(backend_mixed) are rules in the variant of iptables that Docker does not
        use; V(backend_nftables) rules that nothing reads, as Docker uses nftables; V(docker_iptables_off) says that
        Docker does not manage the firewall; V(not_persistent) and V(saved_docker_rules) are about C(/etc/iptables);
        V(snapshot_incomplete) says what could not be judged.
    type: list
    elements: str
  skip_checks:
    description:
      - Leave these checks out. The names are those of O(checks).
    type: list
    elements: str
    default: []
  ignore:
    description:
      - Findings that you live with. They are returned in RV(ignored), with your reason, and count neither for
        O(fail_on) nor in RV(summary).
    type: list
    elements: dict
    default: []
    suboptions:
      check:
        description: The name of the check.
        type: str
        required: true
      rule:
        description:
          - The text of the rule, as RV(findings[].rule) or C(iptables -S) shows it. How it is spelt does not matter.
          - Without it, all findings of the check are ignored.
        type: str
      reason:
        description: Why it is no problem here. It is shown in the result.
        type: str
        required: true
requirements:
  - iptables 1.8 or newer, for the rules of this host
  - Docker SDK for Python 5.0.3 or newer, for its containers
notes:
  - Reading iptables and Docker needs root. Without O(snapshot), add C(become) to the task or the play.
  - The RV(findings[].id) of a finding stays the same from run to run as long as its rule does, so two runs can be
    compared.
seealso:
  - module: quaywall.docker.docker_fw_snapshot
  - module: quaywall.docker.docker_user_rule
  - name: Packet filtering and firewalls
    description: Docker's documentation of the DOCKER-USER chain.
    link: https://docs.docker.com/engine/network/packet-filtering-firewalls/
"""

EXAMPLES = r"""
- name: Judge the host
  quaywall.docker.docker_fw_audit:
  register: audit

- name: Show what was found, a line each
  ansible.builtin.debug:
    var: audit.report

- name: Let a CI job fail on what stops or opens the wrong container
  quaywall.docker.docker_fw_audit:
    fail_on: high
    skip_checks: [exposed]
    ignore:
      - check: direct_routing
        reason: The switch lets nobody route to container addresses.
      - check: port_only_deny
        rule: -p tcp -m tcp --dport 25 -j DROP
        reason: No container may take mail from outside, whichever it is.

- name: Judge a host that cannot be reached, from a snapshot
  quaywall.docker.docker_fw_audit:
    snapshot: "{{ lookup('ansible.builtin.file', 'host7.json') | from_json }}"
    fail_on: critical
  delegate_to: localhost

- name: Keep a snapshot
  quaywall.docker.docker_fw_audit:
    return_snapshot: true
  register: kept

- name: Write it to a file
  ansible.builtin.copy:
    content: "{{ kept.snapshot | to_json }}"
    dest: "/tmp/{{ inventory_hostname }}.json"
    mode: "0600"
  delegate_to: localhost
"""

RETURN = r"""
msg:
  description: How many findings there are. When the task fails because of O(fail_on), the whole report.
  type: str
  returned: always
  sample: "2 findings: 1 critical, 1 info."
report:
  description: The findings for people, a line each, the most severe first.
  type: list
  elements: str
  returned: success, or failure because of O(fail_on)
  sample:
    - >-
      CRITICAL: port_only_deny (IPv4 DOCKER-USER rule 1): Rule 1 of DOCKER-USER drops port 8080 of every container, as
      DOCKER-USER is read after DNAT and sees the container's port. ...
findings:
  description: What was found, the most severe first.
  type: list
  elements: dict
  returned: success, or failure because of O(fail_on)
  contains:
    id:
      description: >-
        Stays the same from run to run. Two findings of one run have the same only if their rules are the same.
      type: str
      sample: 3f0c9a1b22d4
    check:
      description: The name of the check.
      type: str
      sample: port_only_deny
    severity:
      description: V(info), V(low), V(medium), V(high) or V(critical).
      type: str
      sample: critical
    certainty:
      description: V(definite), or V(possible) where it hangs on what RV(findings[].reasons) say.
      type: str
      sample: definite
    message:
      description: What it is, whom it hits, and how that was found, in plain words.
      type: str
    family:
      description: V(ipv4) or V(ipv6), null if it is about no rule or chain.
      type: str
      sample: ipv4
    variant:
      description: V(nft) or V(legacy), the variant of iptables that holds the rule, or null.
      type: str
      sample: nft
    table:
      description: The table, or null.
      type: str
      sample: filter
    chain:
      description: The chain, or null.
      type: str
      sample: DOCKER-USER
    position:
      description: The rule's number in the chain, from 1, or null.
      type: int
      sample: 1
    rule:
      description: The rule as C(iptables-save) prints it, without C(-A) and the chain, or null.
      type: str
      sample: -p tcp -m tcp --dport 8080 -j DROP
    affected:
      description: The containers that it touches.
      type: list
      elements: dict
      contains:
        container:
          description: The container's name.
          type: str
          sample: admin
        address:
          description: Its address that is touched, empty if it has none.
          type: str
          sample: 172.17.0.2
        network:
          description: The Docker network of that address.
          type: str
          sample: bridge
        published:
          description: The published port, host port first; empty if it is not about one.
          type: str
          sample: 9000->8080/tcp
        traffic:
          description: >-
            What of it is touched: V(published port), V(traffic between containers), V(outgoing connections),
            V(replies), V(direct routing) or V(docker-proxy).
          type: str
          sample: published port
        peers:
          description: For whom.
          type: str
          sample: anyone but 203.0.113.0/24
        meant:
          description: Whether the rule was meant for it; null where that is no question.
          type: bool
          sample: false
    reasons:
      description: What a possible finding hangs on.
      type: list
      elements: str
      sample: []
    fix:
      description: What to do instead, or null where only people can tell.
      type: dict
      contains:
        description:
          description: What it does, in a sentence.
          type: str
        tasks:
          description: Tasks for a playbook that run as they stand, in this order.
          type: list
          elements: dict
        commands:
          description: >-
            The same as commands for a root shell. A policy's rules are then as they are for today's addresses.
          type: list
          elements: str
        gains:
          description: Who gains access by it, and to what.
          type: list
          elements: str
          sample: ["anyone: admin (9000->8080/tcp) over IPv4"]
        loses:
          description: Who loses access by it, and to what.
          type: list
          elements: str
          sample: []
ignored:
  description: Findings that O(ignore) covers, as in RV(findings), each with RV(ignored[].ignored_because).
  type: list
  elements: dict
  returned: success, or failure because of O(fail_on)
  contains:
    ignored_because:
      description: The reason given.
      type: str
summary:
  description: How many findings there are of each severity.
  type: dict
  returned: success, or failure because of O(fail_on)
  sample: {"critical": 1, "high": 0, "medium": 0, "low": 0, "info": 1}
snapshot:
  description:
    - Everything that was read, as one document. It may be given to O(snapshot) later, by this version of the collection
      or a newer one.
    - Its C(quaywall_snapshot) is the version of the format.
  type: dict
  returned: O(return_snapshot=true)
"""

import atexit
import gc

# Collecting garbage costs more than it frees in a process that soon ends.
gc.disable()
atexit.register(gc.freeze)

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.quaywall.docker.plugins.module_utils._module._once import compile_once


def main() -> None:
    compile_once()
    # Only now, as this is most of what is compiled.
    from ansible_collections.quaywall.docker.plugins.module_utils._module.docker_fw_audit import (
        argument_spec,
        run_module,
    )

    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    run_module(module)


if __name__ == "__main__":
    main()
