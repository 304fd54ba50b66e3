# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Whether a module that writes is asked for C(access_changes). Of what that needs nothing is imported where it is not:
Ansible compiles a module anew each time.
"""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from ansible_collections.quaywall.docker.plugins.module_utils._module._access import Access
    from ansible_collections.quaywall.docker.plugins.module_utils._module._given import Collector


def collect_late(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    """The snapshot of this host."""
    from ansible_collections.quaywall.docker.plugins.module_utils._module._given import collect_here

    return collect_here(module)


def access_of(module: AnsibleModule, collector: t.Optional[Collector]) -> t.Optional[Access]:
    """What finds it out, before anything is written; None where nobody asks. In check mode it is asked for."""
    asked = module.params["show_access_changes"]
    if collector is None or not (module.check_mode if asked is None else asked):
        return None
    from ansible_collections.quaywall.docker.plugins.module_utils._module._access import Access

    return Access(module, collector)
