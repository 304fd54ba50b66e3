# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What the module docker_fw_snapshot does."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._module._given import (
    Collector,
    collect_here,
    leave_reading,
)

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule


def run_module(module: AnsibleModule, collector: Collector = collect_here) -> None:
    """Take the snapshot, and leave the module. Nothing is ever changed."""

    def body() -> t.Dict[str, t.Any]:
        snapshot = collector(module)
        missing = ["%s (%s)" % (hole["part"], hole["reason"].rstrip(".")) for hole in snapshot["holes"]]
        msg = "This could not be read: %s." % "; ".join(missing) if missing else "Everything could be read."
        return {"failed": False, "changed": False, "msg": msg, "snapshot": snapshot}

    leave_reading(module, "docker_fw_snapshot", body, ())
