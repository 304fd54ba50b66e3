# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._checks import audit
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.tests.unit.snapshots import Box, host

BOXES = (Box("admin", "9000:8080"), Box("shop", "8080:8080"))
NOTE = "deletes the same rule"


@pytest.mark.parametrize("alone", [False, True])
def test_fixes_that_delete_the_same_rule_say_so(alone: bool) -> None:
    """The second command would fail, as the rule is gone."""
    document = host("28.5", BOXES, ["-d 172.17.0.2/32 -p tcp -m tcp --dport 8080 -j DROP"])
    found = audit(from_json(document), ("address_only",) if alone else None)
    noted = {
        finding.check: finding.fix.description.rpartition("The fix of ")[2].partition(" ")[0]
        for finding in found
        if finding.fix is not None and NOTE in finding.fix.description
    }
    both = {"address_only": "neighbours_cut_off", "neighbours_cut_off": "address_only"}
    assert noted == ({} if alone else both)


def test_other_fixes_do_not() -> None:
    document = host("28.5", BOXES, ["-p tcp -m tcp --dport 8080 -j DROP", "-p tcp -m tcp --dport 8080 -j REJECT"])
    found = audit(from_json(document))
    assert any(finding.fix is not None for finding in found)
    assert not [finding for finding in found if finding.fix is not None and NOTE in finding.fix.description]
