# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""docker_fw_trace on real Docker hosts: what it says of a connection is what packets do.

Every container, by every way in, over both families: in several situations each way is tried and traced. The module
itself makes the table of published ports and answers the questions of the README; the many other ways are asked of the
snapshot that the host's own docker_fw_audit returned, by the code that the module runs.
"""

from __future__ import annotations

import concurrent.futures
import ipaddress
import json
import time
import typing as t

import pytest
from hosts import modules

from ansible_collections.quaywall.docker.plugins.module_utils._reach import Judge, Question
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from testbed import OFFICE, STRANGER, SUITES, Bed, Client, Host

if t.TYPE_CHECKING:
    from testbed.hosts import Sender

CONTAINERS: t.Final = ("admin", "shop", "neighbour", "dual", "inner", "plain")
#: The host's ports that are tried: those that are published, and one that nobody has.
PORTS: t.Final = (9000, 8080, 9100, 9200, 9300, 7000)
PATIENCE: t.Final = 0.45


#: Options with which a module can be run once to be compiled.
FIRST: t.Final[dict[str, dict[str, t.Any]]] = {
    "docker_fw_trace": {"source": "host", "port": 1},
    "docker_fw_audit": {"checks": ["exposed"]},
    "docker_user_rule": {"name": "compiled", "container": "admin", "action": "drop"},
    "docker_user_chain": {"rules": [], "default": "drop"},
}


def command(module: str) -> list[str]:
    found = modules.command("docker_fw_audit")
    return [*found[:-1], found[-1].replace("docker_fw_audit", module)]


class Way(t.NamedTuple):
    """A connection: who opens it, by its address if that is one of several, and to where."""

    place: str
    source: str
    address: str
    port: int


class Stage:
    """A host with containers, and who sends packets to it."""

    def __init__(self, number: int, host: Host, client: Client) -> None:
        self.host = host
        # A client object of our own: one does a thing at a time, and the hosts are tried at the same time.
        self.client = Client(client.bed, client.container)
        # The client has one route to a subnet.
        self.four, self.six = f"172.31.{16 * number}.0/20", f"fd00:31:{number}::/64"
        self.first, self.second = f"172.31.{16 * number}.0/24", f"172.31.{16 * number + 1}.0/24"
        self.own = [host.address(4), host.address(6)]
        self.addresses: dict[str, list[str]] = {}

    def __str__(self) -> str:
        return self.host.container

    def prepare(self) -> None:
        self.host.reset()
        modules.install(self.host)
        self.host.docker("network", "create", f"--subnet={self.first}", "one")
        self.host.docker("network", "create", "--ipv6", f"--subnet={self.second}", f"--subnet={self.six}", "two")
        run = self.host.run_workload
        run("admin", network="one", publish=["9000:8080"])
        run("shop", network="one", publish=["8080:8080"])
        run("neighbour", network="one")
        run("dual", network="two", publish=["9100:8080"])
        run("inner", network="two", publish=["127.0.0.1:9200:8080"])
        run("plain", publish=["9300:8080"])
        for module in ("docker_fw_trace", "docker_fw_audit", "docker_user_rule", "docker_user_chain"):
            # Keeps the compiled modules.
            words = [word for word in command(module) if word != "-B"]
            self.host.run(words, stdin=modules.arguments(check=True, **FIRST[module]), check=False)
        self.host.run("iptables-save >/run/before.v4; ip6tables-save >/run/before.v6")
        inspected = json.loads(self.host.docker("inspect", *CONTAINERS).stdout)
        for item in inspected:
            (network,) = item["NetworkSettings"]["Networks"].values()
            found = [network["IPAddress"], network["GlobalIPv6Address"]]
            self.addresses[item["Name"].lstrip("/")] = [address for address in found if address]

    def restore(self) -> None:
        # A table that was not there then is not among those that are put back.
        script = "iptables -t mangle -F; ip6tables -t mangle -F; ipset destroy;"
        script += "iptables-restore </run/before.v4; ip6tables-restore </run/before.v6"
        self.host.run(script, check=False)

    def close(self) -> None:
        self.client.close()
        self.host.close()

    def ways(self) -> list[Way]:
        """Every sender to every address and port that it can send to."""
        gateways = [subnet.replace(".0/24", ".1") for subnet in (self.first, self.second)]
        near = [(address, 8080) for name in CONTAINERS for address in self.addresses[name]]
        hosts = [(address, port) for address in (*self.own, gateways[0]) for port in PORTS]
        loop = [(address, port) for address in ("127.0.0.1", "::1") for port in PORTS]
        found = []
        # All hosts have the same subnet there, and the client one route to it.
        routed = [item for item in near if item[0] not in self.addresses["plain"]]
        for source in (OFFICE, STRANGER):
            found += [Way("client", source.for_destination(item[0]), *item) for item in (*routed, *hosts)]
        found += [Way("host", "", *item) for item in (*near, *hosts, *loop)]
        for name in ("neighbour", "admin", "dual", "plain"):
            own = {":" in address for address in self.addresses[name]}
            found += [Way(name, "", *item) for item in (*near, *hosts) if (":" in item[0]) in own]
        return found

    def seen(self, ways: t.Sequence[Way], patience: float = PATIENCE) -> dict[Way, str]:
        """Who answers by each way; empty for nobody."""
        senders: dict[str, Sender] = {"client": self.client, "host": self.host}
        for name in CONTAINERS:
            senders[name] = self.host.workload(name)

        def tried(place: str) -> list[tuple[Way, str]]:
            mine = [way for way in ways if way.place == place]
            probes = senders[place].connect_all(
                [(way.address, way.port, way.source or None) for way in mine], timeout=patience
            )
            return [(way, probe.who if probe.open else "") for way, probe in zip(mine, probes, strict=True)]

        with concurrent.futures.ThreadPoolExecutor() as pool:
            return dict(item for found in pool.map(tried, {way.place for way in ways}) for item in found)

    def heard(self, ways: t.Sequence[Way], expected: t.Mapping[Way, str]) -> dict[Way, str]:
        """The same; some hundred connections at once are a storm, and a workload takes nine.

        Who was to be heard and was not is asked again; where nothing is expected, all that were not.
        """
        seen = self.seen(ways)
        for _try in range(3 if expected else 1):
            unheard = [way for way in ways if not seen[way] and (not expected or expected.get(way))]
            if unheard:
                time.sleep(0.3)
                seen.update(self.seen(unheard, 0.95))
        return seen

    def module(self, check: bool = False, **options: t.Any) -> modules.ModuleResult:
        """docker_fw_trace on this host."""
        done = self.host.run(command("docker_fw_trace"), stdin=modules.arguments(check, **options), check=False)
        try:
            return modules.ModuleResult(json.loads(done.stdout))
        except ValueError as error:
            raise AssertionError(f"no JSON from the module: {done.stdout!r} {done.stderr!r}") from error

    def judge(self) -> Judge:
        return Judge(
            from_json(modules.docker_fw_audit(self.host, return_snapshot=True, checks=["exposed"]).data["snapshot"])
        )


@pytest.fixture(scope="module")
def stages(bed: Bed) -> t.Iterator[list[Stage]]:
    """A host of each suite with containers on two networks. Every test leaves its rules as it found them."""
    found = [Stage(number, bed.host(suite), bed.client) for number, suite in enumerate(SUITES, 1)]
    together(found, Stage.prepare)
    routes = [stage.client.route(subnet, via=stage.host) for stage in found for subnet in (stage.four, stage.six)]
    for route in routes:
        route.__enter__()
    yield found
    for route in routes:
        route.__exit__(None, None, None)
    together(found, Stage.close)


T = t.TypeVar("T")


def together(stages: t.Iterable[Stage], do: t.Callable[[Stage], T]) -> list[T]:
    """Do it on all hosts at the same time."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(do, stages))


# Every way in ---------------------------------------------------------------------------------------------------------


def nothing(stage: Stage) -> None:
    """As Docker makes it."""


def by_hand(stage: Stage) -> None:
    stage.host.run(
        "iptables -I DOCKER-USER -p tcp --dport 8080 -j DROP; iptables -I INPUT -p tcp --dport 8080 -j ACCEPT"
    )


def answers(stage: Stage) -> None:
    """A rule that stops answers, and one for the host's own connections."""
    stage.host.run(
        f"iptables -I DOCKER-USER -s {stage.addresses['admin'][0]} -p tcp --sport 8080 -j DROP;"
        f"iptables -I OUTPUT -d {stage.addresses['shop'][0]} -p tcp -j REJECT;"
        f"iptables -I DOCKER-USER -i br+ -m physdev --physdev-is-bridged -d {stage.addresses['shop'][0]} -j DROP"
    )


ONE_POLICY: t.Final = {
    "name": "admin",
    "container": "admin",
    "destination_port": ["8080"],
    "source": [OFFICE.v4],
    "action": "accept",
}
WHOLE_CHAIN: t.Final = {
    "rules": [
        {"name": "admin", "container": "admin", "source": [OFFICE.v4, OFFICE.v6], "action": "accept"},
        {"name": "dual", "container": "dual", "source": [OFFICE.v4, STRANGER.v6], "action": "return"},
    ],
    "default": "drop",
}


def policy(stage: Stage) -> None:
    done = modules.docker_user_rule(stage.host, **ONE_POLICY)
    assert not done.failed, done.message


def whole_chain(stage: Stage) -> None:
    done = modules.docker_user_chain(stage.host, **WHOLE_CHAIN)
    assert not done.failed, done.message


def with_sets(stage: Stage) -> None:
    done = modules.docker_user_rule(
        stage.host,
        name="dual",
        container="dual",
        source=[OFFICE.v4, "192.0.2.0/24", "198.51.100.0/26", OFFICE.v6, "2001:db8:7::/48", "2001:db8:8::/48"],
        action="return",
        otherwise="reject",
        ipset_threshold=2,
    )
    assert not done.failed, done.message


def the_host(stage: Stage) -> None:
    """Rules where docker-proxy and the host itself are reached."""
    stage.host.run(
        "ip6tables -I INPUT -p tcp --dport 9000 -j DROP; iptables -I INPUT -i br+ -p tcp --dport 9000:9100 -j DROP;"
        "ip6tables -I INPUT -p tcp -m tcp --dport 9100 -s 2001:db8:113::/48 -j REJECT;"
        "iptables -t mangle -I FORWARD -s 198.51.100.0/24 -p tcp -m multiport --dports 80,8080 -j DROP"
    )


@pytest.mark.parametrize("situation", [nothing, by_hand, answers, policy, whole_chain, with_sets, the_host])
def test_packets_do_as_the_trace_says(stages: list[Stage], situation: t.Callable[[Stage], None]) -> None:
    def one(stage: Stage) -> list[str]:
        try:
            situation(stage)
            return faults(stage)
        finally:
            # Takes the policies along, however they were made.
            assert not modules.docker_user_chain(stage.host, state="absent").failed
            stage.restore()

    found = [fault for several in together(stages, one) for fault in several]
    assert not found, f"{len(found)} faults\n" + "\n".join(found)


def faults(stage: Stage) -> t.Iterator[str]:
    judge = stage.judge()
    ways = stage.ways()
    told = {way: judge.answer(Question(way.source or way.place, way.address, way.port)) for way in ways}
    reached = {
        way: answer.container.container.name if answer.verdict == "delivered" and answer.container else ""
        for way, answer in told.items()
    }
    seen = stage.heard(ways, reached)
    for way, answer in told.items():
        if answer.verdict == "possible" or reached[way] != seen[way]:
            steps = "\n".join(f"    {step.hook}: {step.text}" for step in answer.steps)
            yield f"{stage} {way}: packets say {seen[way] or 'nobody'}, the trace {answer.sentence}\n{steps}"
    opened = sum(map(bool, seen.values()))
    if not 20 < opened < len(ways) - 20:
        yield f"{stage}: {opened} of {len(ways)} ways are open"
    # The module's own table of what is published, at the host's address that leads outside.
    table = stage.module(sources=[OFFICE.v4, STRANGER.v4, "neighbour", "dual", "host"]).data["reachability"]
    by_question = {(way.source or way.place, way.address, way.port): who for way, who in seen.items()}
    for row in table:
        who = by_question[row["source"], row["destination"], row["port"]]
        if (row["verdict"] == "delivered") != bool(who) or (who and row["container"] != who):
            yield f"{stage} {row}: packets say {who or 'nobody'}"
    if len(table) != 5 * 4:
        yield f"{stage}: {len(table)} rows"


# What a task changes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "options"),
    [(modules.docker_user_rule, ONE_POLICY), (modules.docker_user_chain, WHOLE_CHAIN)],
    ids=["policy", "whole chain"],
)
def test_access_changes_are_what_packets_say(
    stages: list[Stage], run: t.Callable[..., modules.ModuleResult], options: dict[str, t.Any]
) -> None:
    """Check mode, apply, and both again: what is foretold is what is done, and then there is nothing to do."""

    def one(stage: Stage) -> list[str]:
        try:
            ways = [way for way in stage.ways() if way.place != "host"]
            before = stage.heard(ways, {})
            foretold = run(stage.host, check=True, **options)
            done = run(stage.host, show_access_changes=True, **options)
            for result in (foretold, done):
                assert not result.failed, result.message
                assert result.changed
            assert not any("found out" in warning for warning in foretold.warnings + done.warnings)
            assert foretold.data["access_changes"] == done.data["access_changes"]
            for check in (True, False):
                again = run(stage.host, check=check, **options)
                assert not again.changed
                assert again.data.get("access_changes", "none") == ([] if check else "none")
            entries = done.data["access_changes"]
            assert {entry["certainty"] for entry in entries} == {"definite"}
            after = stage.heard(ways, {way: who for way, who in before.items() if not loses(stage, way, entries)})
            return [
                f"{stage} {way}: {before[way] or 'nobody'} before, {after[way] or 'nobody'} after; "
                f"{[entry['text'] for entry in entries]}"
                for way in ways
                if loses(stage, way, entries) != (bool(before[way]) and not after[way])
                or (after[way] and not before[way])
            ]
        finally:
            assert not modules.docker_user_chain(stage.host, state="absent").failed
            stage.restore()

    found = [fault for several in together(stages, one) for fault in several]
    assert not found, f"{len(found)} faults\n" + "\n".join(found)


def loses(stage: Stage, way: Way, entries: list[dict[str, t.Any]]) -> bool:
    """Whether it is said that this way is not open any more."""
    family = "ipv6" if ":" in way.address else "ipv4"
    direct = {address: name for name, addresses in stage.addresses.items() for address in addresses}
    for entry in entries:
        assert entry["becomes"] == "blocked"
        if entry["family"] != family or bool(entry["published"]) == (way.address in direct):
            continue
        if entry["published"] and entry["port"] != way.port:
            continue
        if not entry["published"] and (entry["address"], entry["port"]) not in (
            (way.address, way.port),
            # An entry of a port's own is for the ports that are published.
            (way.address, None if direct[way.address] in ("neighbour", "inner") else 0),
        ):
            continue
        if way.place in CONTAINERS:
            if way.place in entry["source"].replace(" and ", ", ").split(", "):
                return True
        elif _is_among(way.source, entry["source"]):
            return True
    return False


def _is_among(source: str, peers: str) -> bool:
    if peers == "anyone":
        return True
    words = peers.removeprefix("anyone but ").replace(" and ", ", ").split(", ")
    if set(words) <= set(CONTAINERS):
        return False
    assert "others" not in words, peers
    inside = any(ipaddress.ip_address(source) in ipaddress.ip_network(word) for word in words)
    return inside != peers.startswith("anyone but ")


# One question ---------------------------------------------------------------------------------------------------------


def test_the_question_of_the_readme(stages: list[Stage]) -> None:
    """INPUT lets port 8080 in, DOCKER-USER drops it, and nobody gets to port 9000."""

    def one(stage: Stage) -> None:
        admin = stage.addresses["admin"][0]
        question = {"source": OFFICE.v4, "port": 9000}
        assert stage.module(**question, expect="delivered").data["verdict"] == "delivered"
        stage.host.run(
            "iptables -A INPUT -p tcp --dport 8080 -j ACCEPT; iptables -I DOCKER-USER -p tcp --dport 8080 -j DROP"
        )
        try:
            for check in (True, False):
                result = stage.module(check, **question, expect="delivered")
                assert result.failed
                assert not result.changed
                assert result.message == (
                    "Blocked: rule 1 of DOCKER-USER drops it, because Docker forwards port 9000 to admin "
                    f"({admin}:8080) and DOCKER-USER sees the container's port 8080; rule 1 of INPUT, which accepts "
                    "port 8080, is never read, because this is forwarded; to let it in, put a policy for the container "
                    "in place of that rule: docker_user_rule with container: admin, destination_port: [8080], source: "
                    f"[{OFFICE.v4}], action: accept."
                )
                assert result.data["container"]["name"] == "admin"
                assert result.data["decided_by"] == {
                    "family": "ipv4",
                    "variant": "nft",
                    "table": "filter",
                    "chain": "DOCKER-USER",
                    "position": 1,
                    "rule": "-p tcp -m tcp --dport 8080 -j DROP",
                }
            assert not stage.client.connect(stage.own[0], 9000, source=OFFICE).open
            # What it says to do.
            done = modules.docker_user_rule(
                stage.host,
                name="admin",
                container="admin",
                destination_port=["8080"],
                source=[OFFICE.v4],
                action="accept",
            )
            assert not done.failed, done.message
            stage.host.run("iptables -D DOCKER-USER -p tcp --dport 8080 -j DROP")
            assert not stage.module(**question, expect="delivered").failed
            assert stage.client.connect(stage.own[0], 9000, source=OFFICE).who == "admin"
            assert not stage.module(source=STRANGER.v4, port=9000, expect="blocked").failed
            assert not stage.client.connect(stage.own[0], 9000, source=STRANGER).open
        finally:
            modules.docker_user_chain(stage.host, state="absent")
            stage.restore()

    together(stages, one)


def test_a_snapshot_is_enough(stages: list[Stage]) -> None:
    """Neither Docker nor iptables nor root, on another machine; and the answer is the same."""
    stage = stages[-1]
    snapshot = modules.docker_fw_audit(stage.host, return_snapshot=True, checks=["exposed"]).data["snapshot"]
    asked = {"sources": [OFFICE.v4, STRANGER.v6, "dual"], "ports": ["9000", "9100"]}
    live = stage.module(**asked)
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command("docker_fw_trace")]
    done = stage.host.run(words, stdin=modules.arguments(**asked, snapshot=json.dumps(snapshot)), check=False)
    assert json.loads(done.stdout)["report"] == live.data["report"]


def test_what_makes_no_sense_is_one_sentence(stages: list[Stage]) -> None:
    stage = stages[0]
    for options, words in (
        ({"source": OFFICE.v4, "port": 9000, "destination": "192.0.2.77"}, "neither an address of this host"),
        ({"source": "nobody", "port": 9000}, "neither an address nor a container"),
        ({"source": OFFICE.v4, "port": 9000, "in_interface": "eth7"}, "no interface eth7"),
        ({"source": OFFICE.v4, "port": 0}, "port: 0 is none"),
        ({"source": OFFICE.v4, "port": 9000, "snapshot": "{"}, "no JSON"),
    ):
        refused = stage.module(**options)
        assert refused.failed
        assert words in refused.message
        assert "\n" not in refused.message
    nobody = stage.module(source=OFFICE.v4, port=7000)
    assert nobody.data["verdict"] == "blocked"
    assert "nothing is published there" in nobody.message
    inner = stage.module(source=OFFICE.v4, port=8081)
    assert "nothing is published there" in inner.message
