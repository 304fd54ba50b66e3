#!/usr/bin/python

# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_fw_snapshot
short_description: Read what the audit and the trace of a Docker host judge, and judge nothing
version_added: 1.0.0
author:
  - The quaywall.docker authors (@quaywall)
description:
  - Returns the rules, ipsets, containers, networks, routes and settings of a host as one document, which
    M(quaywall.docker.docker_fw_audit) and M(quaywall.docker.docker_fw_trace) take as their O(ignore:snapshot), today or
    next year, and on any machine.
  - M(quaywall.docker.docker_fw_audit) has this module read each host, and judges on the controller. By itself it is for
    those who keep snapshots, or hand one to somebody else.
  - Only reads, in check mode and outside. Nothing is loaded into the kernel to be read, and no container is inspected.
  - Whatever cannot be read (Docker is down, the SDK is missing, the task has no root) is named in RV(msg) and in the
    snapshot, and is no failure of the task.
extends_documentation_fragment:
  - quaywall.docker._attributes
  - quaywall.docker._attributes.info_module
attributes:
  platform:
    support: full
    platforms: linux
options: {}
requirements:
  - iptables 1.8 or newer
  - Docker SDK for Python 5.0.3 or newer
notes:
  - Reading iptables and Docker needs root, so add C(become) to the task or the play.
seealso:
  - module: quaywall.docker.docker_fw_audit
  - module: quaywall.docker.docker_fw_trace
"""

EXAMPLES = r"""
- name: Read the host
  quaywall.docker.docker_fw_snapshot:
  register: reading

- name: Keep the snapshot on the controller
  ansible.builtin.copy:
    content: "{{ reading.snapshot | to_json }}"
    dest: "{{ inventory_hostname }}.json"
    mode: "0600"
  delegate_to: localhost

- name: Judge it, however long ago it was taken
  quaywall.docker.docker_fw_audit:
    snapshot: "{{ lookup('ansible.builtin.file', inventory_hostname ~ '.json') }}"
"""

RETURN = r"""
msg:
  description: Whether everything could be read, or what could not, and why.
  type: str
  returned: success
  sample: Everything could be read.
snapshot:
  description:
    - Everything that was read, as one document. Its C(quaywall_snapshot) is the version of the format, and its C(holes)
      are what could not be read.
    - It holds the rules, names, images, addresses and ports of containers, and of their labels those that begin with
      C(com.docker.) only. It holds no environment and no command lines.
  type: dict
  returned: success
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
    from ansible_collections.quaywall.docker.plugins.module_utils._module.docker_fw_snapshot import run_module

    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    run_module(module)


if __name__ == "__main__":
    main()
