# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What tests of single checks share: one check's findings of a snapshot, and the snapshot after a fix's commands."""

from __future__ import annotations

import shlex
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Survey
from ansible_collections.quaywall.docker.plugins.module_utils._rule import quote
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.tests.unit.snapshots import IPV4, IPV6, Document, with_rules

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import Finding

Check = t.Callable[[Survey], t.Iterator["Finding"]]
#: A container, its published port, and whether the rule was meant for it.
Hit = t.Tuple[str, str, t.Optional[bool]]


def found(check: Check, document: Document) -> t.List[Finding]:
    """What one check says of a host."""
    return list(check(Survey(from_json(document))))


def only(check: Check, document: Document) -> Finding:
    """The one finding of a check."""
    (finding,) = found(check, document)
    return finding


def hits(finding: Finding) -> t.List[Hit]:
    """Whose published ports a finding names for connections from outside."""
    return [
        (item.container, item.published, item.meant) for item in finding.affected if item.traffic == "published port"
    ]


def names(finding: Finding, traffic: str) -> t.List[str]:
    """The containers that a finding names for some kind of traffic."""
    return [item.container for item in finding.affected if item.traffic == traffic]


def fixed(document: Document, finding: Finding) -> Document:
    """The host after the commands of a finding's fix; a rule that is to be deleted must be there."""
    assert finding.fix is not None
    assert len(finding.fix.tasks) > 0
    for line in finding.fix.commands:
        program, wait, seconds, *words = shlex.split(line)
        assert (wait, seconds) == ("-w", "10")
        family = IPV6 if program == "ip6tables" else IPV4
        # Back to the spelling of iptables-save: a comment is quoted there.
        text = " ".join(
            quote(word) if index and words[index - 1] in ("--comment", "--log-prefix") else word
            for index, word in enumerate(words)
        )
        document = with_rules(document, family, "filter", [text])
    return document
