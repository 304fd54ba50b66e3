# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The result C(access_changes) of the modules that write: who reaches what no more, or does now.

Only imported where somebody asks for it: Ansible compiles a module anew each time, and this needs all that judges.
"""

from __future__ import annotations

import time
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._changes import AccessChange, access_changes
from ansible_collections.quaywall.docker.plugins.module_utils._module._edge import printable
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import Snapshot, SnapshotError, from_json

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from ansible_collections.quaywall.docker.plugins.module_utils._ipset import AddressSet
    from ansible_collections.quaywall.docker.plugins.module_utils._iptables import Change
    from ansible_collections.quaywall.docker.plugins.module_utils._module._given import Collector

#: A host with hundreds of containers has more ways into them than anybody waits for.
_MOST_SECONDS = 5
_NOT_FOUND = "Who gains and who loses access was not found out: %s."


class Access:
    """Who gains and who loses access by what a module writes. What cannot be found out is a warning, never a failure.

    :param collector: how the host is looked at.
    """

    def __init__(self, module: AnsibleModule, collector: Collector) -> None:
        self._module = module
        self._collector = collector
        self._looked = False
        self._snapshot: t.Optional[Snapshot] = None
        if not module.check_mode:
            # As long as nothing is written. In check mode there is time until it is known what would be.
            self._look()

    def result(
        self, changes: t.Mapping[str, Change], sets: t.Mapping[str, AddressSet]
    ) -> t.Optional[t.List[t.Dict[str, t.Any]]]:
        """The result; None where the host could not be looked at.

        :param sets: the sets of ours as they are after.
        """
        plans = {family: (change.variant, change.plan) for family, change in changes.items()}
        if all(plan.empty for _variant, plan in plans.values()):
            return []
        self._look()
        if self._snapshot is None:
            return None
        made = [(item.name, item.family, item.networks) for item in sets.values()]
        try:
            end = time.process_time() + _MOST_SECONDS
            found, whole = access_changes(self._snapshot, plans, made, lambda: time.process_time() < end)
        except Exception as error:  # noqa: BLE001 -- what is only said beside a change must not stop it
            self._module.warn(_NOT_FOUND % printable("%s: %s" % (type(error).__name__, error)))
            return None
        if not whole:
            self._module.warn(
                "Who gains and who loses access was found out for some of the ways into containers only, as there are "
                "too many to trace in %d seconds: docker_fw_trace answers for those that you name." % _MOST_SECONDS
            )
        return [_entry(item) for item in found]

    def _look(self) -> None:
        if self._looked:
            return
        self._looked = True
        try:
            snapshot = from_json(self._collector(self._module))
        except SnapshotError as error:
            self._module.warn(_NOT_FOUND % printable(str(error)).rstrip("."))
            return
        except Exception as error:  # noqa: BLE001 -- as above
            self._module.warn(_NOT_FOUND % printable("%s: %s" % (type(error).__name__, error)))
            return
        if snapshot.inventory is None:
            reasons = [hole.reason.rstrip(".") for hole in snapshot.holes if hole.part == "docker"]
            self._module.warn(_NOT_FOUND % printable((reasons or ["the host's containers are not known"])[0]))
            return
        self._snapshot = snapshot


def _entry(item: AccessChange) -> t.Dict[str, t.Any]:
    return {
        "becomes": item.becomes,
        "source": printable(item.source),
        "in_interface": item.in_interface or None,
        "container": item.container,
        "address": item.address,
        "port": item.port or None,
        "protocol": item.protocol,
        "published": item.published or None,
        "family": item.family,
        "certainty": item.certainty,
        "reasons": [printable(reason) for reason in item.reasons],
        "text": printable(item.text),
    }
