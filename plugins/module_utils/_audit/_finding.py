# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What the audit says: findings, whom they touch, and the fix that goes with them."""

from __future__ import annotations

import hashlib
import typing as t

#: From the least to the most severe.
SEVERITIES = ("info", "low", "medium", "high", "critical")
INFO, LOW, MEDIUM, HIGH, CRITICAL = SEVERITIES

Json = t.Mapping[str, t.Any]

# Kinds of traffic that a rule may touch.
PUBLISHED_PORT = "published port"
NEIGHBOURS = "traffic between containers"
OUTGOING = "outgoing connections"
REPLIES = "replies"
DIRECT = "direct routing"
PROXIED = "docker-proxy"


class Place(t.NamedTuple):
    """Where a rule stands. ``position`` counts from 1; 0 and an empty ``rule`` where it is about a whole chain."""

    family: str
    variant: str
    table: str
    chain: str
    position: int = 0
    rule: str = ""


class Affected(t.NamedTuple):
    """A container that a finding touches.

    ``published`` is the published port such as C(9000->8080/tcp), ``traffic`` what of the container is touched,
    ``peers`` for whom (C(anyone but 203.0.113.0/24)), ``meant`` whether the rule was meant for it (None: no question).
    """

    container: str
    address: str = ""
    network: str = ""
    published: str = ""
    traffic: str = PUBLISHED_PORT
    peers: str = ""
    meant: t.Optional[bool] = None


class Fix(t.NamedTuple):
    """What to do instead.

    ``tasks`` are tasks for a playbook that run as they stand, ``commands`` the same for a shell; ``gains`` and
    ``loses`` say who reaches what by it and who does not any more.
    """

    description: str
    tasks: t.Tuple[Json, ...] = ()
    commands: t.Tuple[str, ...] = ()
    gains: t.Tuple[str, ...] = ()
    loses: t.Tuple[str, ...] = ()


class Finding(t.NamedTuple):
    """One thing that the audit has to say.

    ``subject`` tells findings of one check apart that have no rule (a container's port, a file). ``reasons`` are what
    it hangs on: with any, the finding is possible instead of definite.
    """

    check: str
    severity: str
    message: str
    place: t.Optional[Place] = None
    affected: t.Tuple[Affected, ...] = ()
    reasons: t.Tuple[str, ...] = ()
    fix: t.Optional[Fix] = None
    subject: str = ""

    @property
    def certainty(self) -> str:
        return "possible" if self.reasons else "definite"

    @property
    def identity(self) -> str:
        """12 hexadecimal digits that stay the same from run to run: no position, no counter, nobody else is in them."""
        place = self.place
        parts = [self.check, self.subject]
        if place is not None:
            parts += [place.family, place.table, place.chain, place.rule]
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:12]

    def to_result(self) -> t.Dict[str, t.Any]:
        """The finding as a module returns it."""
        place = self.place
        return {
            "id": self.identity,
            "check": self.check,
            "severity": self.severity,
            "certainty": self.certainty,
            "message": self.message,
            "family": place.family if place is not None else None,
            "variant": place.variant if place is not None else None,
            "table": place.table if place is not None else None,
            "chain": place.chain if place is not None else None,
            "position": (place.position or None) if place is not None else None,
            "rule": (place.rule or None) if place is not None else None,
            "affected": [dict(item._asdict()) for item in self.affected],
            "reasons": list(self.reasons),
            "fix": None if self.fix is None else _fix_result(self.fix),
        }


def _fix_result(fix: Fix) -> t.Dict[str, t.Any]:
    return {
        "description": fix.description,
        "tasks": [dict(task) for task in fix.tasks],
        "commands": list(fix.commands),
        "gains": list(fix.gains),
        "loses": list(fix.loses),
    }


def worst(findings: t.Iterable[Finding]) -> str:
    """The highest severity among findings; C(info) if there is none."""
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default=INFO)


def listed(words: t.Sequence[str], most: int = 5) -> str:
    """C(a, b and c) for people, cut where it is long."""
    words = list(words)
    if len(words) > most:
        return "%s and %d more" % (", ".join(words[:most]), len(words) - most)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
