# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""All checks by name, and the audit that runs them over one snapshot."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import (
    SEVERITIES,
    Finding,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Survey
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import Snapshot

Check = t.Callable[[Survey], t.Iterator[Finding]]

CHECKS: t.Mapping[str, Check] = {}


def audit(snapshot: Snapshot, names: t.Optional[t.Collection[str]] = None) -> t.List[Finding]:
    """The findings of the checks named (default: all), the most severe first, then by check and place."""
    survey = Survey(snapshot)
    found = [
        finding for name, check in CHECKS.items() if names is None or name in names for finding in check(survey)
    ]
    return sorted(found, key=_order)


def _order(finding: Finding) -> t.Tuple[t.Any, ...]:
    place = finding.place
    return (
        -SEVERITIES.index(finding.severity),
        finding.check,
        ("", "", 0) if place is None else (place.family, place.chain, place.position),
        finding.subject,
    )
