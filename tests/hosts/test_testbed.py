# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The bed itself: what the other tests take for granted about hosts, client and packets."""

from __future__ import annotations

import pathlib
import subprocess
import time
import typing as t

import pytest

from testbed import OFFICE, STRANGER, SUITES, Bed, BedError, Client, Host, HostSpec
from testbed.engine import OwnEngine
from testbed.probe import Probe

BOTH_FAMILIES = {"ipv6": True, "fixed-cidr-v6": "fd12:3456:789a::/64", "ip6tables": True, "experimental": True}


def machine() -> dict[str, str]:
    """The machine's own network and firewall, as the tests must leave them."""
    commands = {
        "rules": "iptables-save | sed '/^#/d; s/\\[[0-9:]*\\]//'",
        "rules6": "ip6tables-save | sed '/^#/d; s/\\[[0-9:]*\\]//'",
        # Neither file is there until the kernel has legacy tables: then that is the answer, on both looks.
        "legacy tables": "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null || true",
        "addresses": "ip -oneline address show scope global | sed 's/valid_lft.*//'",
        "routes": "ip route show table all | grep -v '^multicast'",
        "forwarding": "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding",
        "bridges": "ip -brief link show type bridge",
        "controllers": "cd /sys/fs/cgroup; cat cgroup.subtree_control */cgroup.subtree_control || true",
    }
    return {what: subprocess.check_output(["sh", "-c", command], text=True) for what, command in commands.items()}


def leftovers(bed: Bed, ids: t.Iterable[str] = ()) -> list[str]:
    found = []
    for kind in ("container", "network", "volume"):
        every = ["--all"] if kind == "container" else []
        found += bed.engine.docker(
            kind, "ls", "--quiet", *every, f"--filter=label=quaywall.bed={bed.name}"
        ).stdout.split()
    for container in ids:
        found += [str(folder) for folder in pathlib.Path("/sys/fs/cgroup").glob(f"**/*{container}*")]
    return found


@pytest.mark.parametrize(("suite", "version"), [("bookworm", "20.10."), ("trixie", "26.1."), ("forky", "28.5.")])
def test_engines_are_those_the_suites_are_chosen_for(bed: Bed, suite: str, version: str) -> None:
    assert SUITES[suite].engine in version
    assert bed.host(suite).docker("version", "--format", "{{.Server.Version}}").stdout.startswith(version)


@pytest.mark.parametrize("suite", SUITES)
def test_host_whose_docker_never_started_has_an_empty_rule_set(
    start_host: t.Callable[[HostSpec], Host], suite: str
) -> None:
    host = start_host(HostSpec("never", suite=suite, docker=False))
    assert host.run("systemctl is-active docker", check=False).stdout.strip() == "inactive"
    assert host.run("nft list ruleset").stdout == ""
    assert host.run("iptables-save; ip6tables-save").stdout == ""
    assert host.run("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names", check=False).stdout == ""
    assert host.run("cat /proc/sys/net/ipv4/ip_forward").stdout.strip() == "0"

    host.start_docker()
    assert "-A FORWARD -j DOCKER-USER" in host.run("iptables -S FORWARD").stdout


def test_docker_makes_forward_drop_as_on_a_bare_machine(docker_host: Host) -> None:
    assert "-P FORWARD DROP" in docker_host.run("iptables -S FORWARD").stdout


def test_bridged_frames_go_through_iptables(docker_host: Host) -> None:
    docker_host.run_workload("web")
    assert docker_host.run("cat /proc/sys/net/bridge/bridge-nf-call-iptables").stdout.strip() == "1"


def test_published_port_is_reached_and_says_who_answered(docker_host: Host, client: Client) -> None:
    docker_host.run_workload("web-a", publish=["9000:8080"])
    docker_host.run_workload("web-b", port=[8080, 8081], publish=["8080:8080", "8081:8081"])
    for source in (None, OFFICE, STRANGER):
        who = {port: client.connect(docker_host.address(4), port, source=source).who for port in (9000, 8080, 8081)}
        assert who == {9000: "web-a", 8080: "web-b", 8081: "web-b"}
        assert client.connect(docker_host.address(4), 9001, source=source).outcome == "refused"


def test_container_sees_the_source_that_was_asked_for(docker_host: Host, client: Client) -> None:
    web = docker_host.run_workload("web", publish=["9000:8080"])
    for source in (OFFICE, STRANGER):
        rule = f"-s {source.v4} -d {web.address()} -j REJECT"
        docker_host.run(f"iptables -I DOCKER-USER {rule}")
        others = STRANGER if source is OFFICE else OFFICE
        assert client.connect(docker_host.address(4), 9000, source=source).outcome == "refused"
        assert client.connect(docker_host.address(4), 9000, source=others).who == "web"
        docker_host.run(f"iptables -D DOCKER-USER {rule}")


@pytest.mark.parametrize("family", [4, 6])
def test_probe_tells_the_ways_of_no_apart(client: Client, hosts: list[Host], family: int) -> None:
    command, prohibited = {4: ("iptables", "icmp-admin-prohibited"), 6: ("ip6tables", "icmp6-adm-prohibited")}[family]
    ways = {
        "DROP": "timeout",
        "REJECT": "refused",
        "REJECT --reject-with tcp-reset": "refused",
        f"REJECT --reject-with {prohibited}": "unreachable",
    }
    for host in hosts:
        for target, outcome in ways.items():
            host.run(f"{command} -I INPUT -p tcp --dport 9 -j {target}")
            assert client.connect(host.address(family), 9).outcome == outcome, target
            host.run(f"{command} -D INPUT 1")


@pytest.mark.parametrize("suite", SUITES)
def test_both_families_reach_a_container(start_host: t.Callable[[HostSpec], Host], client: Client, suite: str) -> None:
    host = start_host(HostSpec("both", suite=suite, daemon={**BOTH_FAMILIES, "userland-proxy": False}))
    web = host.run_workload("web", publish=["9000:8080", "5353:5353/udp"])
    web.serve_udp(5353)
    for family in (4, 6):
        for source in (None, OFFICE, STRANGER):
            assert client.connect(host.address(family), 9000, source=source).who == "web"
            assert client.datagram(host.address(family), 5353, source=source).who == "web"
    assert "DNAT" in host.run("ip6tables -t nat -S DOCKER").stdout
    assert host.run("pgrep docker-proxy", check=False).stdout == ""


def test_containers_reach_the_client_and_each_other(docker_host: Host, client: Client) -> None:
    web_a = docker_host.run_workload("web-a")
    web_b = docker_host.run_workload("web-b")
    with client.listen(8080, "the-client") as visits:
        assert web_a.connect(client.address(4), 8080).who == "the-client"
        assert web_a.connect(OFFICE.v4, 8080).who == "the-client"
        assert docker_host.connect_from("web-b", client.address(4), 8080).who == "the-client"
        assert docker_host.connect(client.address(6), 8080).who == "the-client"
        assert visits.peers() == [docker_host.address(4)] * 3 + [docker_host.address(6)]
    assert web_a.connect(client.address(4), 8080).outcome == "refused"
    assert web_a.connect(web_b.address(), 8080).who == "web-b"


def test_client_reaches_a_container_directly_only_by_a_route(docker_host: Host, client: Client) -> None:
    web = docker_host.run_workload("web", publish=["9000:8080"])
    docker_host.run("iptables -t raw -F PREROUTING; iptables -I FORWARD -j ACCEPT")
    assert client.connect(web.address(), 8080).who == ""
    with client.route("172.17.0.0/16", via=docker_host):
        assert client.connect(web.address(), 8080).who == "web"
    assert client.connect(web.address(), 8080).who == ""


@pytest.mark.parametrize("boot", [Host.reboot, Host.power_cut])
def test_storm_sees_a_host_boot(docker_host: Host, client: Client, boot: t.Callable[[Host], None]) -> None:
    docker_host.run_workload("web", publish=["9000:8080"])
    address = docker_host.address(4)
    docker_host.run("iptables -I DOCKER-USER -p tcp --dport 9999 -j DROP")
    booted_before = docker_host.run("stat -c %Y /proc/1").stdout
    with client.storm(address, 9000) as storm:
        time.sleep(0.2)
        boot(docker_host)
        time.sleep(0.5)

    assert storm.attempts > 200
    assert storm.accepted == sum(storm.who.values()) == storm.outcomes["open"] < storm.attempts
    assert storm.who["web"] > 20
    assert docker_host.run("stat -c %Y /proc/1").stdout != booted_before
    assert docker_host.address(4) == address
    assert "9999" not in docker_host.run("iptables -S DOCKER-USER").stdout
    assert "-P FORWARD DROP" in docker_host.run("iptables -S FORWARD").stdout
    assert client.connect(address, 9000, source=OFFICE).who == "web"


def test_reset_leaves_nothing_of_the_test_before(docker_host: Host, client: Client) -> None:
    before = docker_host.run("iptables-save; ip6tables-save; docker ps -aq; docker network ls -q").stdout
    docker_host.run_workload("web", publish=["9000:8080"])
    docker_host.run(
        "iptables -P INPUT DROP; iptables -F DOCKER-USER; ip6tables -A INPUT -j DROP;"
        "iptables -t mangle -A FORWARD -j DROP; docker network create left;"
        "ipset create left hash:ip; iptables -A DOCKER-USER -m set --match-set left src -j DROP"
    )
    assert docker_host.reset() is True
    assert docker_host.reset() is False
    after = docker_host.run("iptables-save; ip6tables-save; docker ps -aq; docker network ls -q").stdout
    assert _rules(after) == _rules(before)
    assert client.connect(docker_host.address(4), 9000).outcome == "refused"
    docker_host.run_workload("web", publish=["9000:8080"])
    assert client.connect(docker_host.address(4), 9000).who == "web"


def _rules(saved: str) -> list[str]:
    """Rules only: the ID of the bridge network is new after a reset."""
    return [line for line in saved.splitlines() if line.startswith(("-A", "*"))]


@pytest.mark.parametrize("suite", SUITES)
def test_legacy_host_has_dockers_chains_in_the_legacy_tables(
    start_host: t.Callable[[HostSpec], Host], client: Client, suite: str
) -> None:
    host = start_host(HostSpec(f"legacy-{suite}", suite=suite, iptables="legacy"))
    host.run_workload("web", publish=["9000:8080"])
    assert "(legacy)" in host.run("iptables --version").stdout
    assert "filter" in host.run("cat /proc/net/ip_tables_names").stdout
    assert "-N DOCKER-USER" in host.run("iptables-legacy -S").stdout
    assert host.run("nft list ruleset").stdout == ""
    assert client.connect(host.address(4), 9000).who == "web"
    host.run("iptables -I DOCKER-USER -p tcp --dport 8080 -j REJECT")
    assert client.connect(host.address(4), 9000).outcome == "refused"
    host.power_cut()
    assert "(legacy)" in host.run("iptables --version").stdout
    assert client.connect(host.address(4), 9000).who == "web"


def test_legacy_host_on_request(legacy_host: Host, client: Client) -> None:
    legacy_host.run_workload("web", publish=["9000:8080"])
    assert client.connect(legacy_host.address(4), 9000).who == "web"


def test_up_leaves_alone_what_runs_and_replaces_what_is_specified_otherwise(bed: Bed) -> None:
    assert bed.up(SUITES) == []
    spec = HostSpec("short", suite="bookworm", docker=False)
    try:
        assert bed.up([spec]) == [f"{bed.name}-short"]
        address = bed.host("short").address(4)
        bed.engine.docker("kill", f"{bed.name}-short")
        assert bed.up([spec]) == [f"{bed.name}-short"]
        assert bed.host("short").address(4) == address
        assert bed.up([HostSpec("short", suite="trixie", docker=False)]) == [f"{bed.name}-short"]
        assert "VERSION_CODENAME=trixie" in bed.host("short").run("cat /etc/os-release").stdout
        (container,) = bed.engine.docker("ps", "--quiet", "--no-trunc", "--filter=name=-short$").stdout.split()
    finally:
        bed.remove("short")
    assert not list(pathlib.Path("/sys/fs/cgroup").glob(f"**/{container}"))


def test_two_beds_coexist_and_down_leaves_nothing(bed: Bed, client: Client) -> None:
    bed.host("bookworm").reset()
    bed.host("bookworm").run_workload("first", publish=["9000:8080"])
    before = machine()
    with Bed(f"{bed.name}-second", bed.engine) as second:
        second.up(["forky"])
        second.host("forky").run_workload("second", publish=["9000:8080"])
        if bed.engine.own:
            assert machine() == before
        assert client.connect(bed.host("bookworm").address(4), 9000).who == "first"
        assert second.client.connect(second.host("forky").address(4), 9000).who == "second"
        assert client.connect(second.host("forky").address(4), 9000).who == ""
        ids = bed.engine.docker(
            "ps", "--quiet", "--no-trunc", f"--filter=label=quaywall.bed={second.name}"
        ).stdout.split()
        assert len(ids) == 2
        ids += second.host("forky").docker("ps", "--quiet", "--no-trunc").stdout.split()
        template = "{{range .Mounts}}{{.Name}} {{end}}"
        volumes = bed.engine.docker("inspect", "--format", template, second.host("forky").container).stdout.split()
        assert len(volumes) == 2
    assert leftovers(second, ids) == []
    assert not set(volumes) & set(bed.engine.docker("volume", "ls", "--quiet").stdout.split())
    assert machine() == before
    assert client.connect(bed.host("bookworm").address(4), 9000).who == "first"


def test_down_finds_what_a_crashed_run_left(bed: Bed) -> None:
    crashed = Bed(f"{bed.name}-crashed", bed.engine)
    crashed.down()
    crashed.up([HostSpec("bookworm", docker=False)], client=False)
    bed.engine.docker("kill", f"{crashed.name}-bookworm")
    del crashed

    again = Bed(f"{bed.name}-crashed", bed.engine)
    assert len(again.down()) == 2
    assert leftovers(again) == []
    assert again.down() == []


def test_own_engine_does_not_touch_the_machine(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / ("a-folder-with-a-name-too-long-for-the-path-of-a-unix-socket" * 2) / "engine"
    monkeypatch.setenv("QUAYWALL_BED_STATE", str(state))
    before = machine()
    own = OwnEngine()
    try:
        engine = own.start()
        assert machine() == before
        assert OwnEngine().start().docker("info", "--format", "{{.DockerRootDir}}").stdout.strip() == str(
            state / "data"
        )
        assert own.pid() is not None
        assert OwnEngine().pid() == own.pid()
        engine.docker("network", "create", "lab")
        assert machine() == before
    finally:
        own.purge()
    assert own.pid() is None
    assert not state.exists()
    assert not pathlib.Path(engine.address.removeprefix("unix://")).parent.exists()
    assert machine() == before


def test_host_names_and_variants_are_checked_before_anything_starts() -> None:
    for name, suite, iptables in (("sid", "", "nft"), ("forky", "", "xtables"), ("client", "forky", "nft")):
        with pytest.raises(BedError):
            HostSpec(name, suite=suite, iptables=iptables)


def test_probe_is_open_only_if_the_connection_was() -> None:
    assert Probe("open").open
    assert not Probe("refused").open
