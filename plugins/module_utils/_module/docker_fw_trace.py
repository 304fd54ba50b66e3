# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What the module docker_fw_trace does, from its options to its results."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._module._edge import printable
from ansible_collections.quaywall.docker.plugins.module_utils._module._given import (
    Collector,
    collect_here,
    document_of,
    leave_reading,
)
from ansible_collections.quaywall.docker.plugins.module_utils._reach import (
    Answer,
    Judge,
    Question,
    TraceError,
    rows,
)
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import SnapshotError, from_json

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from ansible_collections.quaywall.docker.plugins.module_utils._trace import Decided

_PROTOCOLS = ("tcp", "udp", "sctp", "icmp")
_MOST_TOLD = 20


def argument_spec() -> t.Dict[str, t.Any]:
    """The module's options."""
    return {
        "source": {"type": "str"},
        "destination": {"type": "str"},
        "port": {"type": "int"},
        "protocol": {"type": "str", "choices": list(_PROTOCOLS), "default": "tcp"},
        "in_interface": {"type": "str"},
        "source_port": {"type": "int"},
        "sources": {"type": "list", "elements": "str"},
        "ports": {"type": "list", "elements": "str"},
        "expect": {"type": "str", "choices": ["delivered", "blocked"]},
        "snapshot": {"type": "raw"},
    }


#: For AnsibleModule.
CONSTRAINTS: t.Dict[str, t.Any] = {
    "mutually_exclusive": [("source", "sources"), ("port", "ports"), ("source_port", "sources")],
    "required_one_of": [("source", "sources")],
    "required_by": {"ports": ("sources",)},
}


def run_module(module: AnsibleModule, collector: Collector = collect_here) -> None:
    """Trace connections on this host or over the snapshot given, and leave the module. Nothing is ever changed."""
    leave_reading(module, "docker_fw_trace", lambda: _run(module, collector), (TraceError, SnapshotError))


def _run(module: AnsibleModule, collector: Collector) -> t.Dict[str, t.Any]:
    options = module.params
    several = options["sources"] is not None
    ports = _ports(options) if several else ()
    if several and not options["sources"]:
        raise TraceError("sources is an empty list: name at least one address, network or container.")
    if not several and options["port"] is None and options["protocol"] != "icmp":
        raise TraceError("port is required with protocol %s." % options["protocol"])
    source_port = options["source_port"]
    if source_port is not None and not 1 <= source_port <= 65535:
        raise TraceError("source_port: %d is none; give one between 1 and 65535." % source_port)
    given = options["snapshot"]
    judge = Judge(from_json(collector(module) if given is None else document_of(given)))
    where, interface = options["destination"] or "", options["in_interface"] or ""
    if several:
        return _table(judge.table(options["sources"], ports, where, interface), options["expect"])
    question = Question(
        options["source"], where, options["port"] or 0, options["protocol"], interface, source_port or 0
    )
    return _one(judge.answer(question), options["expect"])


def _ports(options: t.Mapping[str, t.Any]) -> t.List[t.Tuple[str, int]]:
    """Protocol and port of each of O(ports), of O(port) alone, or nothing for all that are published."""
    if options["port"] is not None:
        return [(options["protocol"], options["port"])]
    if options["ports"] is None:
        return [("icmp", 0)] if options["protocol"] == "icmp" else []
    found = []
    for index, text in enumerate(options["ports"]):
        match = re.match(r"([0-9]{1,5})(?:/(tcp|udp|sctp))?\Z", text.strip())
        if match is None or not 1 <= int(match.group(1)) <= 65535:
            raise TraceError("ports[%d]: %r is no port; write it as 8080 or 53/udp." % (index, text))
        protocol = match.group(2) or options["protocol"]
        if protocol == "icmp":
            raise TraceError("ports[%d]: icmp has no ports; choose protocol tcp, udp or sctp." % index)
        found.append((protocol, int(match.group(1))))
    if not found:
        raise TraceError("ports is an empty list: leave it out for every published port, or name some.")
    return found


# Results -------------------------------------------------------------------------------------------------------------


def _one(answer: Answer, expect: t.Optional[str]) -> t.Dict[str, t.Any]:
    """The result of one trace."""
    failed = expect is not None and answer.verdict != expect
    return {
        "failed": failed,
        "changed": False,
        "msg": printable(answer.sentence),
        "verdict": answer.verdict,
        "reasons": [printable(reason) for reason in answer.reasons],
        "container": _container(answer),
        "decided_by": _decided(answer.decided),
        "walk": [
            {
                "hook": step.hook,
                "text": printable(step.text),
                **({"rule": _decided(step.decided)} if step.decided else {}),
            }
            for step in answer.steps
        ],
        "report": [
            printable(step.text if step.decided is not None else "%s: %s" % (step.hook, step.text))
            for step in answer.steps
        ],
        "advice": printable(answer.advice),
    }


def _table(answers: t.Sequence[Answer], expect: t.Optional[str]) -> t.Dict[str, t.Any]:
    """The result of many."""
    others = [answer for answer in answers if expect is not None and answer.verdict != expect]
    counts = ", ".join(
        "%d %s" % (count, verdict)
        for verdict in ("delivered", "blocked", "possible")
        for count in [sum(answer.verdict == verdict for answer in answers)]
        if count
    )
    text = "%d connections: %s." % (len(answers), counts) if answers else "There is nothing to ask for."
    if others:
        told = [
            "%s to port %d/%s: %s"
            % (answer.question.source, answer.question.port, answer.question.protocol, answer.sentence)
            for answer in others[:_MOST_TOLD]
        ]
        more = len(others) - len(told)
        text = "%d of %d connections are not %s.\n%s" % (len(others), len(answers), expect, "\n".join(told))
        text += "\nand %d more" % more if more else ""
    return {
        "failed": bool(others),
        "changed": False,
        "msg": text if not others else "\n".join(printable(text.split("\n"))),
        "report": printable(rows(answers)),
        "reachability": [
            {
                "source": answer.question.source,
                "destination": answer.destination,
                "port": answer.question.port,
                "protocol": answer.question.protocol,
                "verdict": answer.verdict,
                "container": answer.container.container.name if answer.container is not None else None,
                "decided_by": _decided(answer.decided),
                "text": printable(answer.sentence),
            }
            for answer in answers
        ],
    }


def _container(answer: Answer) -> t.Optional[t.Dict[str, t.Any]]:
    if answer.container is None:
        return None
    return {
        "name": answer.container.container.name,
        "address": answer.container.address,
        "port": answer.container_port or None,
        "network": answer.container.network,
        "bridge": answer.container.bridge,
    }


def _decided(decided: t.Optional[Decided]) -> t.Optional[t.Dict[str, t.Any]]:
    if decided is None:
        return None
    return {
        "family": decided.family,
        "variant": decided.variant,
        "table": decided.table,
        "chain": decided.chain,
        "position": decided.position or None,
        "rule": printable(decided.rule) if decided.position else None,
    }
