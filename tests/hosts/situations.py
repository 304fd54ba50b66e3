# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The situations of ``situations.yml`` on hosts of the bed, and what packets say of them."""

from __future__ import annotations

import difflib
import ipaddress
import json
import pathlib
import re
import threading
import typing as t

import yaml
from hosts import modules

from testbed import OFFICE, STRANGER, SUITES, Client, Host

_DATA: t.Final = yaml.safe_load(pathlib.Path(__file__).with_suffix(".yml").read_text(encoding="utf-8"))

HEALTHY: t.Final[str] = _DATA["healthy"]
CONTAINERS: t.Final = ("admin", "shop", "neighbour", "dual")

Finding = dict[str, t.Any]

_READY = f"""
for pid in $(docker inspect -f '{{{{.State.Pid}}}}' {" ".join(CONTAINERS)}); do
    until grep -qi ':1F90 0*:0000 0A' /proc/$pid/net/tcp /proc/$pid/net/tcp6; do sleep 0.02; done
done
"""

# Docker's chains are as they were before the situation, so that all of a table can be put back.
_KEEP = """
iptables-save >/run/healthy.v4
ip6tables-save >/run/healthy.v6
nft list tables >/run/healthy.tables
"""
_RESTORE = """
iptables-restore </run/healthy.v4
ip6tables-restore </run/healthy.v6
nft list tables | grep -vxFf /run/healthy.tables | while read -r table; do nft delete $table; done
"""


_ONE_ROUTE: t.Final = threading.Lock()


class Situation(t.NamedTuple):
    """One of the file's situations; its fields are explained there."""

    name: str
    suites: list[str]
    policy: dict[str, t.Any] | None
    provoke: str
    expect: list[dict[str, t.Any]]
    also: list[str]
    undo: str

    def expected(self, suite: str) -> list[dict[str, t.Any]]:
        """What must be said on this suite's engine."""
        return [wanted for wanted in self.expect if suite in wanted.get("suites", SUITES)]


def _situation(item: dict[str, t.Any]) -> Situation:
    return Situation(
        item["name"],
        item.get("suites", list(SUITES)),
        item.get("policy"),
        item["provoke"],
        item["expect"],
        item.get("also", []),
        item["undo"],
    )


SITUATIONS: t.Final = [_situation(item) for item in _DATA["situations"]]


class Way(t.NamedTuple):
    """A way in as somebody outside tries it, or out: the published port, C(direct) or C(answers)."""

    container: str
    published: str
    family: str
    source: str = ""


class Stage:
    """A healthy host, and the way back to it."""

    def __init__(self, suite: str, host: Host, client: Client) -> None:
        self.suite = suite
        self.host = host
        # A client object of our own: one does a thing at a time, and the hosts are tried at the same time.
        self.client = Client(client.bed, client.container)
        self.addresses = {4: host.address(4), 6: host.address(6)}
        self.client_address = client.address(4)
        self._healthy: list[str] = []

    def prepare(self) -> None:
        """Make the host healthy, whatever it was."""
        self.host.reset()
        self.host.run(f"set -e\n{HEALTHY}\n{_READY}")
        self._healthy = self._rules_after(_KEEP)
        modules.install(self.host)
        for module, given in (
            ("docker_fw_audit", modules.arguments()),
            ("docker_user_rule", modules.arguments(name="compiled", state="absent")),
        ):
            # Keeps the compiled modules, which are run a hundred times.
            words = [word for word in modules.command(module) if word != "-B"]
            self.host.run(words, stdin=given)

    def close(self) -> None:
        self.client.close()

    def _rules_after(self, script: str) -> list[str]:
        """All rules, after a script that may fail."""
        return self.host.run(f"{{ {script}\n}} >/dev/null 2>&1\n{_DATA['rules']}").stdout.splitlines()

    def audit(self, check: bool = False, **options: t.Any) -> modules.ModuleResult:
        result = modules.docker_fw_audit(self.host, check=check, **options)
        assert not result.failed, result.message
        assert not result.changed
        return result

    def findings(self, **options: t.Any) -> list[Finding]:
        found: list[Finding] = self.audit(**options).data["findings"]
        return found

    def provoke(self, situation: Situation) -> None:
        if situation.policy:
            done = modules.docker_user_rule(self.host, **situation.policy)
            assert not done.failed, done.message
        self.host.run(f"set -e\n{situation.provoke}")
        self._look_again(situation)

    def heal(self, situation: Situation) -> None:
        """Undo what was provoked, and what was done about it."""
        if self._rules_after(f"{situation.undo}\n{_READY}") != self._healthy:
            self.restore()
        self._look_again(situation)

    def _look_again(self, situation: Situation) -> None:
        if "docker" in situation.provoke:
            self.host.close()  # what workloads send may come from a network namespace that is gone

    def restore(self) -> None:
        """Put the rules back."""
        now = self._rules_after(_RESTORE)
        left = "\n".join(difflib.unified_diff(self._healthy, now, "healthy", "now", n=0, lineterm=""))
        assert not left, f"{self.suite}: {left}"

    # Packets

    def ways(self) -> dict[Way, bool]:
        """Each way from the client to a published port, and whether that container answers."""
        # While Docker does not run, it publishes nothing.
        inspected = self.host.run("docker inspect $(docker ps -q)", check=False)
        containers = json.loads(inspected.stdout) if inspected.returncode == 0 else []
        wanted: dict[Way, tuple[str, int, str | None]] = {}
        for container in containers:
            for inner, bindings in (container["NetworkSettings"]["Ports"] or {}).items():
                for binding in bindings or ():
                    family = 6 if ":" in binding["HostIp"] else 4
                    if binding["HostIp"] not in ("0.0.0.0", "::", ""):
                        continue
                    port = int(binding["HostPort"])
                    for name, source in (("office", OFFICE), ("stranger", STRANGER)):
                        way = Way(container["Name"].lstrip("/"), f"{port}->{inner}", f"IPv{family}", name)
                        address = self.addresses[family]
                        wanted[way] = (address, port, source.for_destination(address))
        probes = self.client.connect_all(wanted.values(), timeout=0.4)
        return {way: probe.who == way.container for way, probe in zip(wanted, probes, strict=True)}

    def outcome(self, direct: bool = False) -> dict[Way, bool]:
        """Each way to a published port, the answers to a container, and if asked for, containers' own addresses."""
        found = self.ways()
        if any(way.container == "admin" for way in found):
            # Nobody listens there: a refusal is the answer.
            probe = self.host.workload("admin").connect(self.client_address, 9, timeout=0.4)
            found[Way("admin", "answers", "IPv4")] = probe.outcome == "refused"
        if direct:
            # The client has one route to a subnet, and the hosts have the same subnets.
            with _ONE_ROUTE, self.client.route("172.17.0.0/16", via=self.host):
                for name, address in (("admin", "172.17.0.2"), ("shop", "172.17.0.3")):
                    probe = self.client.connect(address, 8080, timeout=0.4)
                    found[Way(name, "direct", "IPv4")] = probe.who == name
        return found


def above_info(findings: t.Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding["severity"] != "info"]


def in_short(findings: t.Iterable[Finding]) -> list[str]:
    """Findings as a failed assertion shows them."""
    return [
        f"{finding['severity']} {finding['check']} {finding['family']} {finding['chain']} {finding['position']}: "
        f"{finding['message']} {finding['reasons'] or ''}"
        for finding in findings
    ]


_SAME: t.Final = ("check", "severity", "certainty", "family", "chain", "position")


def matches(finding: Finding, wanted: t.Mapping[str, t.Any]) -> bool:
    """Whether a finding is an expected one."""
    affected = finding["affected"]
    named = {
        "containers": {item["container"] for item in affected},
        "meant": {item["container"] for item in affected if item["meant"]},
        "not_meant": {item["container"] for item in affected if item["meant"] is False},
        "traffic": {item["traffic"] for item in affected},
    }
    same = all(finding[key] == wanted[key] for key in _SAME if key in wanted)
    return same and all(set(wanted.get(key, ())) <= names for key, names in named.items())


# Who gains, who loses -------------------------------------------------------------------------------------------------

_EFFECT = re.compile(r"(?P<peers>.+): (?P<container>\S+) \((?P<published>.+)\) over (?P<family>IPv[46])")
_ANSWERS = re.compile(r"(?P<containers>.+): (answers|other machines) over IPv4")
DIRECT: t.Final = "who routes packets to this host: containers of network bridge at their own addresses"
_LOOPBACK: t.Final = "who sends packets for 127.0.0.1 to this host from outside: what is published there"


def foretold(lines: t.Iterable[str], ways: t.Iterable[Way]) -> set[Way]:
    """The ways that lines of ``gains`` or ``loses`` are about."""
    found = set()
    ways = list(ways)
    for line in lines:
        if match := _EFFECT.fullmatch(line):
            named = match.group("container", "published", "family")
            found |= {way for way in ways if way[:3] == named and _is_among(way, match["peers"])}
        elif match := _ANSWERS.fullmatch(line):
            names = match["containers"].replace(" and ", ", ").split(", ")
            found |= {way for way in ways if way.published == "answers" and {way.container, "containers"} & {*names}}
        else:
            assert line in (DIRECT, _LOOPBACK), line
            found |= {way for way in ways if way.published == "direct" and line == DIRECT}
    return found


def _is_among(way: Way, peers: str) -> bool:
    """Whether a source is one of C(anyone), C(anyone but 192.0.2.0/24), C(192.0.2.1, 192.0.2.7 and 198.51.100.0/24)."""
    source = {"office": OFFICE, "stranger": STRANGER}[way.source]
    address = ipaddress.ip_address(source.v4 if way.family == "IPv4" else source.v6)
    if peers == "anyone":
        return True
    networks = peers.removeprefix("anyone but ").replace(" and ", ", ").split(", ")
    assert "others" not in networks, peers
    inside = any(address in ipaddress.ip_network(network) for network in networks)
    return inside != peers.startswith("anyone but ")
