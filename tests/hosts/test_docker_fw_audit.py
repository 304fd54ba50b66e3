# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""docker_fw_audit on real Docker hosts: what it says is what packets do, and its fixes do what they say.

With ``QUAYWALL_EVERY_FIX=1`` also the fixes of findings that a situation has besides its own: most of them are another
situation's own.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import typing as t

import pytest
import yaml
from demo.playbook import ansible_playbook
from hosts import modules, situations
from hosts.situations import (
    CONTAINERS,
    DIRECT,
    SITUATIONS,
    Finding,
    Situation,
    Stage,
    above_info,
    foretold,
    in_short,
    matches,
)

from ansible_collections.quaywall.docker.plugins.module_utils._audit._checks import CHECKS
from testbed import OFFICE, STRANGER, SUITES, Bed

PORT_ONLY: t.Final = "iptables -I DOCKER-USER -p tcp --dport 8080 -j DROP"
EVERY_FIX: t.Final = os.environ.get("QUAYWALL_EVERY_FIX") == "1"
T = t.TypeVar("T")
Way = t.Callable[[Stage, dict[str, t.Any]], None]
"""How a fix is applied."""


@pytest.fixture(scope="module")
def stages(bed: Bed) -> t.Iterator[dict[str, Stage]]:
    """A healthy host of each suite. Every test leaves it as it found it."""
    found = {suite: Stage(suite, bed.host(suite), bed.client) for suite in SUITES}
    together(found.values(), Stage.prepare)
    yield found
    together(found.values(), leave)


def leave(stage: Stage) -> None:
    stage.close()
    # Legacy tables stay until the network namespace is another one.
    if stage.host.run("cat /proc/net/ip_tables_names", check=False).stdout:
        stage.host.power_cut()


def together(stages: t.Iterable[Stage], do: t.Callable[[Stage], T]) -> list[T]:
    """Do it on all hosts at the same time."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(do, stages))


def apply_tasks(stage: Stage, fix: dict[str, t.Any]) -> None:
    """Run the tasks of a fix, without Ansible's round trip for those kinds that fixes are made of."""
    for task in fix["tasks"]:
        (action,) = set(task) - {"name", "changed_when"}
        if action == "ansible.builtin.command":
            stage.host.run(task[action]["argv"], stdin=task[action].get("stdin", "") + "\n")
        else:
            run = {
                "quaywall.docker.docker_user_rule": modules.docker_user_rule,
                "ansible.builtin.iptables": modules.iptables,
            }
            done = run[action](stage.host, **task[action])
            assert not done.failed, (task, done.message)


def apply_commands(stage: Stage, fix: dict[str, t.Any]) -> None:
    stage.host.run("set -e\n" + "\n".join(fix["commands"]))


# The story ------------------------------------------------------------------------------------------------------------


def who(stage: Stage) -> dict[str, list[str]]:
    """Who is reached: by the office and a stranger, by a neighbour, and the world by the containers."""
    host = stage.host
    found = {}
    for version, address in stage.addresses.items():
        for name, source in (("office", OFFICE), ("stranger", STRANGER)):
            probes = stage.client.connect_all([(address, port, source) for port in (9000, 8080)], timeout=0.4)
            found[f"{name} IPv{version}"] = [probe.who for probe in probes]
    inside = [host.workload(name) for name in ("admin", "shop")]
    targets = [(workload.address(), 8080, None) for workload in inside]
    found["neighbour"] = [probe.who for probe in host.workload("neighbour").connect_all(targets)]
    found["outgoing"] = [workload.connect(stage.client_address, 8080).who for workload in inside]
    return found


BOTH: t.Final = ["admin", "shop"]
HEALTHY: t.Final = {
    "office IPv4": BOTH,
    "stranger IPv4": BOTH,
    # By docker-proxy, which no rule of DOCKER-USER is about.
    "office IPv6": BOTH,
    "stranger IPv6": BOTH,
    "neighbour": BOTH,
    "outgoing": ["client", "client"],
}
HIT: t.Final = {name: reached if "IPv6" in name else ["", ""] for name, reached in HEALTHY.items()}
AS_MEANT: t.Final = {**HEALTHY, "office IPv4": ["admin", ""], "stranger IPv4": ["admin", ""]}


def run_playbook(
    place: pathlib.Path, stages: t.Collection[Stage], tasks: t.Mapping[str, list[t.Any]], *options: str
) -> dict[str, t.Any]:
    """Run tasks on each host, by suite, with the real ansible-playbook; the result of each host's last task."""
    groups: dict[str, list[Stage]] = {}
    for stage in stages:
        groups.setdefault(json.dumps(tasks[stage.suite]), []).append(stage)
    plays = [
        {
            "name": "As the audit says",
            "hosts": [stage.host.container for stage in same],
            "gather_facts": False,
            "tasks": json.loads(text),
        }
        for text, same in groups.items()
    ]
    path = place / "play.yml"
    path.write_text(yaml.safe_dump(plays, sort_keys=False), encoding="utf-8")
    report = ansible_playbook([stage.host for stage in stages], str(path), "dockers", *options)
    return {
        stage.suite: play["tasks"][-1]["hosts"][stage.host.container]
        for same, play in zip(groups.values(), report["plays"], strict=True)
        for stage in same
    }


def test_a_port_only_drop_is_critical_and_its_fix_does_what_was_meant(
    stages: dict[str, Stage], tmp_path: pathlib.Path
) -> None:
    """The design's chapter "Why it exists", with the real ansible-playbook, check mode and outside."""
    before = {}

    def begin(stage: Stage) -> None:
        stage.host.docker("stop", "dual")
        before[stage.suite] = stage.findings()
        assert who(stage) == HEALTHY
        stage.host.run(PORT_ONLY)
        assert who(stage) == HIT

    def fixed(stage: Stage) -> None:
        assert who(stage) == AS_MEANT
        left = stage.findings()
        assert said[stage.suite]["id"] not in {one["id"] for one in left}
        assert not in_short(new_among(left, before[stage.suite] + results[stage.suite]["findings"]))

    def by_commands(stage: Stage) -> None:
        stage.host.run("iptables-save | grep -v -e quaywall -e '-A DOCKER-USER -p tcp' | iptables-restore")
        stage.host.run(PORT_ONLY)
        assert who(stage) == HIT
        apply_commands(stage, said[stage.suite]["fix"])
        fixed(stage)

    def end(stage: Stage) -> None:
        stage.host.docker("start", "dual")
        stage.restore()

    try:
        with stages["bookworm"].client.listen(8080):
            together(stages.values(), begin)
            audit = {suite: [{"name": "Judge the host", "quaywall.docker.docker_fw_audit": {}}] for suite in stages}
            results = run_playbook(tmp_path, stages.values(), audit)
            foretold_results = run_playbook(tmp_path, stages.values(), audit, "--check")
            said = {suite: port_only(result) for suite, result in results.items()}
            for suite, result in results.items():
                assert not result["changed"]
                assert result["findings"] == foretold_results[suite]["findings"]
            run_playbook(tmp_path, stages.values(), {suite: said[suite]["fix"]["tasks"] for suite in said})
            together(stages.values(), fixed)
            together(stages.values(), by_commands)
    finally:
        together(stages.values(), end)


def port_only(result: dict[str, t.Any]) -> Finding:
    """The finding about the rule, which names both containers and calls one of them not meant."""
    (finding,) = [one for one in result["findings"] if one["check"] == "port_only_deny"]
    assert (finding["severity"], finding["certainty"]) == ("critical", "definite")
    marked = {(one["container"], one["meant"]) for one in finding["affected"] if one["traffic"] == "published port"}
    assert marked == {("admin", False), ("shop", True)}
    assert "admin" in finding["message"] and "shop" in finding["message"]
    assert result["report"][0].startswith("CRITICAL: port_only_deny (IPv4 DOCKER-USER rule 1)")
    return t.cast("Finding", finding)


# Where it is judged ---------------------------------------------------------------------------------------------------

AUDIT: t.Final = "quaywall.docker.docker_fw_audit"
EVERY_WAY: t.Final = [
    {"name": "Read", "quaywall.docker.docker_fw_snapshot": {}, "register": "reading"},
    {"name": "Judge on the controller", AUDIT: {"return_snapshot": True}, "register": "controller"},
    {"name": "Judge on the host", AUDIT: {"return_snapshot": True}, "async": 120, "poll": 1, "register": "host"},
    {"name": "Judge what was read", AUDIT: {"snapshot": "{{ reading.snapshot }}"}, "register": "data"},
    {"name": "Judge its text", AUDIT: {"snapshot": "{{ reading.snapshot | to_json }}"}, "register": "text"},
    {
        "name": "Tell all of it",
        "ansible.builtin.debug": {"msg": "{{ [reading, controller, host, data, text] }}"},
    },
]


def without_chance(snapshot: dict[str, t.Any]) -> t.Any:
    """A snapshot without times and counters, in an order of its own, as Docker lists networks in any."""

    def settled(value: t.Any) -> t.Any:
        if isinstance(value, dict):
            return {key: settled(item) for key, item in value.items() if key != "collected"}
        if isinstance(value, list):
            return sorted((settled(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
        return re.sub(r"(?m)^# .* on .*$| \[\d+:\d+\]$", "", value) if isinstance(value, str) else value

    return settled(snapshot)


def test_wherever_it_is_judged(stages: dict[str, Stage], tmp_path: pathlib.Path) -> None:
    """On the controller, on the host (async), or from a snapshot, however it comes: one answer."""
    together(stages.values(), lambda stage: stage.host.run(PORT_ONLY))
    try:
        told = run_playbook(tmp_path, stages.values(), dict.fromkeys(stages, EVERY_WAY))
    finally:
        together(stages.values(), Stage.restore)
    for result in told.values():
        reading, *judged = result["msg"]
        assert not any(one["changed"] for one in result["msg"])
        assert reading["msg"] == "Everything could be read."
        assert judged[0]["summary"]["critical"] == 1
        for one in judged[1:]:
            assert [one[key] for key in ("findings", "report", "summary", "msg")] == [
                judged[0][key] for key in ("findings", "report", "summary", "msg")
            ]
        for one in judged[:2]:
            assert without_chance(one["snapshot"]) == without_chance(reading["snapshot"])


# Whom a rule hits -----------------------------------------------------------------------------------------------------


class Rule(t.NamedTuple):
    """Commands, and the ports that containers connect to, outside and on their own network."""

    commands: str
    outgoing: int = 8080
    near: int = 8080


RULES: t.Final = {
    "port": Rule("iptables -I DOCKER-USER -p tcp --dport 8080 -j DROP"),
    "range": Rule("iptables -I DOCKER-USER -p tcp --dport 8000:8100 -j DROP", 8050),
    "several ports": Rule("iptables -I DOCKER-USER -p tcp -m multiport --dports 80,8080 -j REJECT"),
    "every port but one": Rule("iptables -I DOCKER-USER -p tcp ! --dport 22 -j REJECT", 443),
    "in a chain": Rule(
        "iptables -N WEB; iptables -A WEB -s 203.0.113.10 -j RETURN;"
        "iptables -A WEB -p tcp --dport 8080 -j DROP; iptables -I DOCKER-USER -i eth0 -g WEB"
    ),
    "for a source": Rule("iptables -I DOCKER-USER -s 198.51.100.0/24 -p tcp --dport 8080 -j DROP"),
    "published port, both directions": Rule(
        "iptables -I DOCKER-USER -p tcp -m conntrack --ctorigdstport 9000 -j DROP", 9000, 9000
    ),
    "published port": Rule(
        "iptables -I DOCKER-USER -p tcp -m conntrack --ctstate DNAT --ctorigdstport 9000 --ctdir ORIGINAL -j DROP",
        9000,
        9000,
    ),
    "interface": Rule("iptables -I DOCKER-USER -i eth0 -j DROP"),
}


@pytest.mark.parametrize("numbers", [range(start, start + 3) for start in range(0, len(RULES), 3)], ids=str)
def test_blast_radius(stages: dict[str, Stage], numbers: range) -> None:
    """What a rule is said to hit is what nobody reaches any more, and nothing else."""
    rules = [list(RULES.items())[number] for number in numbers]
    client = stages["bookworm"].client
    with contextlib.ExitStack() as serving, concurrent.futures.ThreadPoolExecutor() as pool:
        for port in {rule.outgoing for _name, rule in rules}:
            serving.enter_context(client.listen(port))
        faults = [fault for each in pool.map(radius_faults, stages.values(), rules) for fault in each]
    assert not faults, "\n".join(faults)


def radius_faults(stage: Stage, named: tuple[str, Rule]) -> list[str]:
    name, rule = named
    before = hit(stage, rule)
    assert not any(before.values()), before
    stage.host.run(rule.commands)
    try:
        really = hit(stage, rule)
        findings = [one for one in stage.findings() if one["rule"]]
    finally:
        stage.restore()
    told: dict[str, set[str]] = {kind: set() for kind in really}
    for item in (item for finding in findings for item in finding["affected"]):
        # Answers to what a container asked other machines are its outgoing connections, seen from the other end.
        own = item["traffic"] == "replies" and not item["published"]
        told.setdefault("outgoing connections" if own else item["traffic"], set()).add(item["container"])
    return [
        f"{name} on {stage.suite}: {kind}: packets say {sorted(really[kind])}, findings {sorted(told[kind])} "
        f"{in_short(findings)}"
        for kind in really
        if told[kind] != really[kind]
    ]


def hit(stage: Stage, rule: Rule) -> dict[str, set[str]]:
    """The containers whose traffic does not get through, by kind."""
    inside = {name: stage.host.workload(name) for name in CONTAINERS}
    pairs = (("admin", "neighbour"), ("shop", "neighbour"), ("neighbour", "admin"))
    # Nobody listens on another port than 8080: there a refusal is an answer.
    answers = {8080: ("open",)}.get(rule.near, ("open", "refused"))
    return {
        "published port": {way.container for way, reached in stage.ways().items() if not reached},
        "traffic between containers": {
            name
            for name, other in pairs
            if inside[other].connect(inside[name].address(), rule.near, timeout=0.4).outcome not in answers
        },
        "outgoing connections": {
            name
            for name, workload in inside.items()
            if not workload.connect(stage.client_address, rule.outgoing, timeout=0.4).open
        },
    }


# Whatever is missing --------------------------------------------------------------------------------------------------


def judge_with(stage: Stage, *argv: str) -> dict[str, t.Any]:
    """What the module returns when it is run by another command than usual."""
    done = stage.host.run(argv, stdin=modules.arguments(), check=False)
    result: dict[str, t.Any] = json.loads(done.stdout)
    assert "Traceback" not in done.stdout + done.stderr
    assert not result.get("failed"), result
    return result


def incomplete(result: dict[str, t.Any], *words: str) -> None:
    """Assert that the findings say so."""
    found = [one["message"] for one in result["findings"] if one["check"] == "snapshot_incomplete"]
    assert all(any(word in message for message in found) for word in words), (words, found)


def test_without_the_sdk_or_root_or_programs(stages: dict[str, Stage]) -> None:
    usual = modules.command("docker_fw_audit")

    def no_sdk(stage: Stage) -> None:
        blocked = [*usual]
        blocked[blocked.index("-c") + 1] = "import sys; sys.modules['docker'] = None\n" + usual[usual.index("-c") + 1]
        incomplete(judge_with(stage, *blocked), "Docker SDK for Python")

    def no_root(stage: Stage) -> None:
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        incomplete(judge_with(stage, *nobody, *usual), "root")

    def nft_crashes(stage: Stage) -> None:
        """As nft 1.0.6 does with tables of a newer one."""
        stage.host.run(
            r"mv /usr/sbin/nft /run; printf '#!/bin/sh\nkill -SEGV $$\n' >/usr/sbin/nft; chmod 755 /usr/sbin/nft"
        )
        try:
            incomplete(judge_with(stage, *usual), "nft")
        finally:
            stage.host.run("mv /run/nft /usr/sbin")

    def no_ip6tables(stage: Stage) -> None:
        stage.host.run("mkdir /run/hidden; mv /usr/sbin/ip6tables* /run/hidden")
        try:
            result = judge_with(stage, *usual)
            # Engines up to 26 leave IPv6 alone: there are no tables to read.
            if stage.suite == "forky":
                incomplete(result, "ip6tables")
        finally:
            stage.host.run("mv /run/hidden/* /usr/sbin; rmdir /run/hidden")

    def native_rules(stage: Stage) -> None:
        native = "ip saddr != { 203.0.113.10, 203.0.113.11 } tcp dport { 80, 443 } log prefix native drop"
        stage.host.run(["nft", "insert", "rule", "ip", "filter", "DOCKER-USER", *native.split()])
        try:
            incomplete(judge_with(stage, *usual), "nft")
        finally:
            stage.host.run("nft flush chain ip filter DOCKER-USER")
            stage.restore()

    def everything(stage: Stage) -> None:
        for fault in (no_sdk, no_root, nft_crashes, no_ip6tables, native_rules):
            fault(stage)

    together(stages.values(), everything)


_STATE = """
nft -s list ruleset
cat /proc/net/ip_tables_names /proc/net/ip6_tables_names
ls /sys/module
ipset list -name
docker ps --all --no-trunc --format '{{.ID}} {{.Status}}' | cut -d' ' -f1,2
find /etc /run /var/lib/docker/containers -newer /run/started -type f
"""


def test_an_audit_changes_nothing(stages: dict[str, Stage]) -> None:
    """No rule, no table, no module, no file; and Docker has nothing to tell of it."""

    def watch(stage: Stage) -> None:
        stage.host.run("iptables -I DOCKER-USER -p tcp --dport 8080 -j DROP")
        try:
            stage.host.run("touch /run/started; sleep 0.01")
            since = stage.host.run("date +%s.%N").stdout.strip()
            before = stage.host.run(_STATE, check=False).stdout
            stage.audit(return_snapshot=True)
            stage.audit(check=True)
            assert stage.host.run(_STATE, check=False).stdout == before
            until = stage.host.run("date +%s.%N").stdout.strip()
            assert stage.host.docker("events", f"--since={since}", f"--until={until}").stdout == ""
        finally:
            stage.restore()

    together(stages.values(), watch)


# Every situation ------------------------------------------------------------------------------------------------------


def test_every_check_has_its_situation() -> None:
    """But `exposed`, which the healthy host has."""
    assert {wanted["check"] for situation in SITUATIONS for wanted in situation.expect} == set(CHECKS) - {"exposed"}


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name.replace(" ", "-"))
def test_situation(stages: dict[str, Stage], situation: Situation) -> None:
    """What must be said is said, nothing else is; each fix does away with its finding, as packets agree."""
    number = SITUATIONS.index(situation)
    ways: dict[str, list[Way]] = {}
    # One engine by tasks and another by commands. Molecule hears what is said on every engine.
    for turn, way in enumerate((apply_tasks, apply_commands)):
        ways.setdefault(situation.suites[(number + turn) % len(situation.suites)], []).append(way)
    together([stages[suite] for suite in ways], lambda stage: play(stage, situation, ways[stage.suite]))


def play(stage: Stage, situation: Situation, ways: list[Way]) -> None:
    stage.provoke(situation)
    faults: list[str] = []
    try:
        findings = stage.findings(check=True)
        for wanted in situation.expected(stage.suite):
            assert any(matches(finding, wanted) for finding in findings), (stage.suite, wanted, in_short(findings))
        said = {wanted["check"] for wanted in situation.expected(stage.suite)} | set(situation.also)
        surprises = [finding for finding in above_info(findings) if finding["check"] not in said]
        assert not surprises, (stage.suite, in_short(surprises))
        fixes = [
            (finding, way)
            for finding in findings
            if finding["fix"] and (EVERY_FIX or finding["check"] not in situation.also)
            for way in ways
        ]
        direct = any(DIRECT in finding["fix"]["loses"] for finding, _way in fixes)
        before = stage.outcome(direct) if fixes else {}
        for number, (finding, way) in enumerate(fixes):
            if number:
                stage.heal(situation)
                stage.provoke(situation)
            faults += fix_faults(stage, finding, findings, before, way)
    finally:
        stage.heal(situation)
    assert not faults, "\n".join(faults)


def new_among(left: list[Finding], before: list[Finding]) -> list[Finding]:
    """Findings above info that are of no check that had the same to say before, be it of another rule."""
    ids = {one["id"] for one in before}
    said = {(one["check"], *about) for one in before for about in abouts(one)}
    return [
        one
        for one in above_info(left)
        if one["id"] not in ids and not {(one["check"], *about) for about in abouts(one)} <= said
    ]


def abouts(finding: Finding) -> set[tuple[str, ...]]:
    """The containers that a finding is about, and how."""
    about: set[tuple[str, ...]] = {
        (item["container"], item["published"], item["traffic"]) for item in finding["affected"]
    }
    return about or {(finding["id"],)}


def revealed(finding: Finding, fix: dict[str, t.Any]) -> bool:
    """Whether a new finding only says what a port that the fix closes still lacks on this host."""
    if finding["check"] == "jump_window":
        return True  # of any deny, with the engines that have it
    closed = [line.rpartition(" over ")[0] for line in fix["loses"]]
    return finding["check"] in ("proxy_bypass", "ipv6_gap", "direct_routing") and all(
        any(line.endswith(f": {item['container']} ({item['published']})") for line in closed)
        for item in finding["affected"]
    )


def fix_faults(
    stage: Stage, finding: Finding, findings: list[Finding], before: dict[situations.Way, bool], way: Way
) -> t.Iterator[str]:
    """What is wrong with a finding's fix."""
    name = f"{stage.suite} {finding['check']} {way.__name__}:"
    fix = finding["fix"]
    text = json.dumps(fix, indent=1)
    try:
        way(stage, fix)
    except Exception as error:  # noqa: BLE001
        yield f"{name} {error} {text}"
        return
    after = stage.outcome(DIRECT in fix["loses"])
    left = stage.findings()
    if finding["id"] in {one["id"] for one in left}:
        yield f"{name} it is still there after {text}"
    new = [one for one in new_among(left, findings) if not revealed(one, fix)]
    if new:
        yield f"{name} new are {in_short(new)} after {text}"
    gained = {one for one in after if after[one] and not before.get(one, False)}
    lost = {one for one in after if not after[one] and before.get(one, False)}
    for word, real in (("gains", gained), ("loses", lost)):
        expected = foretold(fix[word], after)
        if real != expected:
            yield f"{name} {word}: packets say {sorted(real)}, the fix {sorted(expected)} {text}"


@pytest.mark.parametrize("check", [False, True])
def test_a_healthy_host(stages: dict[str, Stage], check: bool) -> None:
    """Also after every situation, and with legacy tables that are there and empty."""

    def judge(stage: Stage) -> None:
        data = stage.audit(check=check).data
        assert not above_info(data["findings"]), data["report"]
        exposed = [
            item["container"] for one in data["findings"] if one["check"] == "exposed" for item in one["affected"]
        ]
        assert set(exposed) == {"admin", "shop", "dual"}

    together(stages.values(), judge)
