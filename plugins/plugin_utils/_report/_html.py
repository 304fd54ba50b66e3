# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The page: one HTML file that needs no network, with the findings of a whole fleet in it.

What is seen first (the summary and the list of hosts) is HTML. What a filter asks is one short JSON document. What a
finding says is packed, some hundred findings to a piece, and unpacked when it is looked at: that keeps the page of a
thousand hosts small, and quick to open.

Nothing that came from a host ever becomes HTML but through :func:`_escaped`; the page's script makes text nodes only.
The page's policy (CSP) runs this script and no other, and connects to nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import typing as t
import zlib

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import SEVERITIES
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._about import about
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._model import (
    FAILED,
    GONE,
    JUDGED,
    NEW,
    NOT_JUDGED,
    RANKED,
    STILL,
    UNREACHABLE,
    Finding,
    Host,
    Report,
)
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._path import STATIONS, station
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._time import stamp

#: How many findings are packed together: few, so that one is there at once; many, so that packing pays.
_PIECE = 200
#: What becomes of a finding, as the index has it.
_STATUSES = ("", NEW, STILL, GONE, NOT_JUDGED, "ignored")
_STATE_TEXTS = {JUDGED: "judged", FAILED: "audit failed", UNREACHABLE: "not reached"}
_STATUS_TEXTS = ((NEW, "new"), (STILL, "still there"), (GONE, "gone"), (NOT_JUDGED, "not judged now"))

#: Characters that are not seen, or change the order of what is.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)


class Assets(t.NamedTuple):
    """The parts of the page that are files: its frame, style and script."""

    frame: str
    style: str
    script: str


class _Strings:
    """Texts of the index, each there once."""

    def __init__(self) -> None:
        self.texts: t.List[str] = []
        self._numbers: t.Dict[str, int] = {}

    def number(self, text: str) -> int:
        found = self._numbers.get(text)
        if found is None:
            found = self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return found


def render(report: Report, assets: Assets) -> t.Iterator[str]:
    """The page, piece by piece."""
    strings = _Strings()
    checks: t.Dict[str, int] = {}
    hosts = []
    pieces: t.List[t.List[t.Any]] = [[]]
    weight = 0
    for host in report.hosts:
        shown = list(_shown(host))
        if weight and weight + len(shown) > _PIECE:
            pieces.append([])
            weight = 0
        rows = [_row(finding, status, strings, checks) for finding, status in shown]
        hosts.append([host.name, host.state, host.message, len(pieces) - 1, len(pieces[-1]), rows])
        pieces[-1].append([_detail(finding) for finding, _status in shown])
        weight += len(shown)
    index = {
        "strings": strings.texts,
        "checks": [[check, *about(check)] for check in checks],
        "severities": SEVERITIES,
        "statuses": _STATUSES,
        "stations": STATIONS,
        "compared": report.earlier_at is not None,
        "hosts": hosts,
    }
    values = {
        "policy": _policy(assets),
        "title": _escaped(report.title),
        "style": assets.style,
        "script": assets.script,
        "written": stamp(report.at).replace("T", " ").replace("Z", " UTC"),
        "datetime": stamp(report.at),
        "version": _escaped(report.version),
        "headline": _headline(report),
        "tiles": _tiles(report),
        "comparison": _comparison(report),
        "hosts": "".join(
            _host(number, host) for number, host in sorted(enumerate(report.hosts), key=lambda pair: _urgency(pair[1]))
        ),
        "index": _script_json(index),
        "pieces": "",
    }
    before, after = _filled(assets.frame, values, "pieces")
    yield before
    for number, piece in enumerate(pieces):
        yield '<script type="application/octet-stream" id="piece-%d">%s</script>\n' % (number, _packed(piece))
    yield after


def _filled(frame: str, values: t.Mapping[str, str], cut: str) -> t.Tuple[str, str]:
    """The frame with its places filled, as what is before one of them and after it."""
    parts = re.split(r"\{\{ ([a-z]+) \}\}", frame)
    where = parts.index(cut)
    texts = [values[part] if index % 2 else part for index, part in enumerate(parts)]
    return "".join(texts[:where]), "".join(texts[where:])


def _policy(assets: Assets) -> str:
    def sha256(text: str) -> str:
        return "'sha256-%s'" % base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")

    return "default-src 'none'; script-src %s; style-src %s; base-uri 'none'; form-action 'none'" % (
        sha256(assets.script),
        sha256(assets.style),
    )


# Data ----------------------------------------------------------------------------------------------------------------


def _shown(host: Host) -> t.Iterator[t.Tuple[Finding, str]]:
    for item in host.items:
        yield item.finding, item.status
    for status, findings in (("ignored", host.ignored), (GONE, host.gone), (NOT_JUDGED, host.carried)):
        for finding in findings:
            yield finding, status


def _row(finding: Finding, status: str, strings: _Strings, checks: t.Dict[str, int]) -> t.List[t.Any]:
    """What filters ask of a finding; the script's FIELD has the same order."""
    return [
        SEVERITIES.index(finding.severity),
        checks.setdefault(finding.check, len(checks)),
        _STATUSES.index(status),
        STATIONS.index(station(finding)),
        strings.number(finding.chain),
        list(dict.fromkeys(strings.number(hit.container) for hit in finding.affected)),
        len({hit.container for hit in finding.affected if hit.meant is False}),
    ]


def _detail(finding: Finding) -> t.Dict[str, t.Any]:
    """What is seen of a finding."""
    fix = finding.fix
    return {
        "id": finding.id,
        "certainty": finding.certainty,
        "message": finding.message,
        "place": finding.place,
        "variant": finding.variant,
        "rule": finding.rule,
        "affected": [list(hit) for hit in finding.affected],
        "reasons": list(finding.reasons),
        "ignored": finding.ignored_because,
        "fix": None
        if fix is None
        else {
            "description": fix.description,
            "tasks": fix.playbook,
            "commands": "".join(command + "\n" for command in fix.commands),
            "gains": list(fix.gains),
            "loses": list(fix.loses),
        },
    }


def _json(value: t.Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _script_json(value: t.Any) -> str:
    """JSON that no HTML parser takes for the end of its element, or the start of another."""
    return _json(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _packed(value: t.Any) -> str:
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = packer.compress(_json(value).encode("utf-8")) + packer.flush()
    return base64.b64encode(packed).decode("ascii")


# HTML ----------------------------------------------------------------------------------------------------------------


def _escaped(text: str) -> str:
    """Text as HTML, also within quotes; what would not be seen is spelt."""
    parts = []
    end = 0
    for match in _HIDDEN.finditer(text):
        parts.append(html.escape(text[end : match.start()]))
        parts.append("\\u%04x" % ord(match.group()))
        end = match.end()
    parts.append(html.escape(text[end:]))
    return "".join(parts)


def _plural(count: int, word: str) -> str:
    return "%s %s%s" % (format(count, ","), word, "" if count == 1 else "s")


def _headline(report: Report) -> str:
    """The fleet in one sentence."""
    states, summary = report.states, report.summary
    found = sum(summary.values())
    text = "%s found on %s" % (
        _plural(found, "finding") if found else "Nothing was",
        _plural(states[JUDGED], "host"),
    )
    if not states[JUDGED]:
        text = "No host was judged"
    left = [
        "%s %s" % (_plural(count, "host"), what)
        for count, what in (
            (states[FAILED], "could not be judged"),
            (states[UNREACHABLE], "could not be reached"),
        )
        if count
    ]
    return _escaped(text + ("; %s." % " and ".join(left) if left else "."))


def _tiles(report: Report) -> str:
    summary = report.summary
    with_it = {severity: sum(1 for host in report.hosts if host.summary[severity]) for severity in RANKED}
    return "".join(
        '<button type="button" class="tile" data-severity="%(severity)s" aria-pressed="false">'
        '<span class="dot s-%(severity)s" aria-hidden="true"></span><span class="what">%(severity)s</span>'
        '<span class="number">%(count)s</span><span class="note">on %(hosts)s</span></button>\n'
        % {
            "severity": severity,
            "count": format(summary[severity], ","),
            "hosts": _plural(with_it[severity], "host"),
        }
        for severity in RANKED
    )


def _comparison(report: Report) -> str:
    counts = report.comparison
    if counts is None:
        return ""
    buttons = "".join(
        '<button type="button" class="chip" data-status="%s" aria-pressed="false"><span class="glyph g-%s" '
        'aria-hidden="true"></span>%s <b>%s</b></button>\n' % (status, status, what, format(counts[status], ","))
        for status, what in _STATUS_TEXTS
    )
    left = ""
    if report.not_asked:
        left = '<p class="quiet">%s of the earlier run not asked in this one: %s.</p>' % (
            _plural(len(report.not_asked), "host"),
            _escaped(", ".join(report.not_asked[:20]) + (" …" if len(report.not_asked) > 20 else "")),
        )
    return (
        '<div class="compared"><h3 id="compared">Against the run of %s</h3>\n'
        '<div class="chips" role="group" aria-labelledby="compared">%s</div>%s</div>'
        % (_escaped((report.earlier_at or "").replace("T", " ").replace("Z", " UTC")), buttons, left)
    )


def _urgency(host: Host) -> int:
    """The order of hosts: the worst first, and those of which nothing is known before those that are well."""
    return -1 if host.state != JUDGED else 1 - host.worst if host.worst <= 1 else -host.worst


def _host(number: int, host: Host) -> str:
    """A line of the list of hosts. Without a script, and on paper, it says all that it can."""
    counts = [
        '<span class="n"><span class="dot s-%s" aria-hidden="true"></span>%d %s</span>' % (severity, count, severity)
        for severity, count in host.summary.items()
        if count
    ]
    if host.state == JUDGED:
        level = RANKED[5 - host.worst] if host.worst else "none"
        said = " ".join(counts) or "nothing found"
    else:
        level = host.state
        said = '<span class="n">%s</span> <span class="why">%s</span>' % (
            _STATE_TEXTS[host.state],
            _escaped(host.message),
        )
    return (
        '<li data-host="%d"><button type="button" class="host l-%s"><span class="name"><bdi>%s</bdi></span>'
        '<span class="counts">%s</span></button></li>\n' % (number, level, _escaped(host.name), said)
    )
