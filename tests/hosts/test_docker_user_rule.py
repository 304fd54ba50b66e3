# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""docker_user_rule on real Docker hosts: what must pass passes, what must stop stops, the neighbours included."""

from __future__ import annotations

import json
import re
import time
import typing as t

import pytest
from hosts import modules
from hosts.modules import docker_user_rule

from testbed.hosts import OFFICE, STRANGER, Client, Host, HostSpec

EXAMPLE: t.Final = {
    "name": "admin-ui",
    "container": "admin",
    "destination_port": ["8080"],
    "source": [f"{OFFICE.v4}/32"],
    "action": "accept",
    "otherwise": "drop",
}


@pytest.fixture
def host(docker_host: Host) -> Host:
    modules.install(docker_host)
    return docker_host


def chain(host: Host, command: str = "iptables") -> list[str]:
    """The rules of DOCKER-USER as the host's own iptables prints them."""
    return host.run(f"{command} -S DOCKER-USER").stdout.splitlines()[1:]


def who_gets_in(client: Client, host: Host, *ports: int, version: int = 4) -> dict[str, str]:
    """Outcome of a connection from the office and from a stranger to each port of the host."""
    outcomes = {}
    for port in ports:
        for name, source in (("office", OFFICE), ("stranger", STRANGER)):
            probe = client.connect(host.address(version), port, source=source)
            outcomes[f"{name} {port}"] = probe.who or probe.outcome
    return outcomes


def four_times(host: Host, **options: t.Any) -> modules.ModuleResult:
    """Check, apply, check again, apply again: changed, changed, not, not; and the check told what came."""
    foretold = docker_user_rule(host, check=True, diff=True, **options)
    assert not foretold.failed, foretold.message
    done = docker_user_rule(host, diff=True, **options)
    assert not done.failed, done.message
    again = [docker_user_rule(host, check=check, diff=True, **options) for check in (True, False)]
    assert [foretold.changed, done.changed, *(result.changed for result in again)] == [True, True, False, False]
    assert foretold.data["diff"] == done.data["diff"]
    assert foretold.data["chains"] == done.data["chains"]
    assert done.data["chains"]["ipv4"]["after"] == chain(host)
    return done


def two_containers(host: Host) -> None:
    """The same inner port twice, and a neighbour that publishes nothing."""
    host.run_workload("admin", publish=["9000:8080"])
    host.run_workload("shop", publish=["8080:8080"])
    host.run_workload("neighbour")


# The main job --------------------------------------------------------------------------------------------------------


def test_the_example_policy(host: Host, client: Client) -> None:
    two_containers(host)
    assert who_gets_in(client, host, 9000, 8080) == {
        "office 9000": "admin",
        "stranger 9000": "admin",
        "office 8080": "shop",
        "stranger 8080": "shop",
    }
    result = four_times(host, **EXAMPLE)
    assert [endpoint["container"] for endpoint in result.data["endpoints"]] == ["admin"]
    guarded = {
        "office 9000": "admin",
        "stranger 9000": "timeout",
        "office 8080": "shop",
        "stranger 8080": "shop",
    }
    assert who_gets_in(client, host, 9000, 8080) == guarded
    admin = host.workload("admin")
    # Neighbours on the same network, both ways.
    assert host.connect_from("neighbour", admin.address(), 8080).who == "admin"
    assert host.connect_from("admin", host.workload("shop").address(), 8080).who == "shop"
    # The container's own connections to a remote port of the same number, inner and published.
    for port in (8080, 9000):
        with client.listen(port):
            assert admin.connect(client.address(), port).open
    # And a policy for the other container beside it.
    four_times(host, **{**EXAMPLE, "name": "shop", "container": "shop", "otherwise": "reject"})
    assert who_gets_in(client, host, 9000, 8080) == {**guarded, "stranger 8080": "refused"}
    docker_user_rule(host, name="shop", state="absent")
    assert who_gets_in(client, host, 9000, 8080) == guarded
    foretold = docker_user_rule(host, check=True, name="admin-ui", state="absent")
    assert foretold.changed
    assert who_gets_in(client, host, 9000)["stranger 9000"] == "timeout"
    assert [docker_user_rule(host, name="admin-ui", state="absent").changed for run in range(2)] == [True, False]
    assert who_gets_in(client, host, 9000)["stranger 9000"] == "admin"
    assert not any("quaywall" in rule for rule in chain(host))


def test_the_example_policy_with_legacy_iptables(legacy_host: Host, client: Client) -> None:
    modules.install(legacy_host)
    two_containers(legacy_host)
    result = four_times(legacy_host, **EXAMPLE)
    assert result.data["chains"]["ipv4"]["variant"] == "legacy"
    assert who_gets_in(client, legacy_host, 9000, 8080) == {
        "office 9000": "admin",
        "stranger 9000": "timeout",
        "office 8080": "shop",
        "stranger 8080": "shop",
    }
    assert legacy_host.connect_from("neighbour", legacy_host.workload("admin").address(), 8080).who == "admin"
    # What `iptables` on the PATH is does not matter: Docker's chains are in the legacy tables.
    legacy_host.run("update-alternatives --set iptables /usr/sbin/iptables-nft")
    try:
        assert not docker_user_rule(legacy_host, **EXAMPLE).changed
        assert docker_user_rule(legacy_host, name="admin-ui", state="absent").changed
        assert docker_user_rule(legacy_host, **EXAMPLE).changed
    finally:
        legacy_host.run("update-alternatives --set iptables /usr/sbin/iptables-legacy")
    assert who_gets_in(client, legacy_host, 9000)["stranger 9000"] == "timeout"
    # Chains in both variants: nobody can tell which one Docker uses.
    legacy_host.run("iptables-nft -N DOCKER-USER")
    try:
        refused = docker_user_rule(legacy_host, **EXAMPLE)
        assert refused.failed
        assert "both variants" in refused.message
    finally:
        legacy_host.run("iptables-nft -X DOCKER-USER")


def test_foreign_rules_keep_text_order_and_counters(host: Host, client: Client) -> None:
    two_containers(host)
    docker_user_rule(host, **EXAMPLE)
    # Counters of these rules move only when we send: each has an address of the client's as its source.
    host.run(
        f"iptables -I DOCKER-USER 1 -s {STRANGER.v4} -p tcp --dport 81 -m comment --comment foreign-top -j DROP; "
        f"iptables -I DOCKER-USER 3 -s {STRANGER.v4} -p tcp --dport 82 -m comment --comment 'foreign middle' -j DROP; "
        "iptables -A DOCKER-USER -s 192.0.2.9 -m comment --comment foreign-end -j ACCEPT"
    )
    host.run_workload("counted", port=[81, 82], publish=["81:81", "82:82"])

    def foreign() -> list[str]:
        dump = host.run("iptables-save -c -t filter").stdout
        return [line for line in dump.splitlines() if "foreign" in line]

    for _attempt in range(3):
        for port in (81, 82):
            assert not client.connect(host.address(), port, source=STRANGER, timeout=0.1).open
    before = foreign()
    assert [int(re.match(r"\[(\d+):", line).group(1)) > 0 for line in before] == [True, True, False]  # type: ignore[union-attr]
    for number in range(20):
        name = f"p{number % 5}"
        if number % 4 == 3:
            result = docker_user_rule(host, name=f"p{(number - 1) % 5}", state="absent")
        else:
            result = docker_user_rule(
                host, name=name, container="shop", action="drop", source=[f"192.0.2.{number}"], priority=number * 40
            )
        assert result.changed, result.data
        assert foreign() == before
    assert who_gets_in(client, host, 9000, 8080) == {
        "office 9000": "admin",
        "stranger 9000": "timeout",
        "office 8080": "shop",
        "stranger 8080": "shop",
    }


def test_a_ban_by_another_tool_holds(host: Host, client: Client) -> None:
    """Also behind an ESTABLISHED rule of the tool's own, which is the order that Docker's documentation gives."""
    host.run_workload("shop", publish=["8080:8080"])
    host.run(
        f"iptables -I DOCKER-USER -s {STRANGER.v4} -j DROP; "
        "iptables -I DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    )
    banned = {"office 8080": "shop", "stranger 8080": "timeout"}
    assert who_gets_in(client, host, 8080) == banned
    four_times(host, name="shop", container="shop", source=["0.0.0.0/0"], action="accept")
    assert who_gets_in(client, host, 8080) == banned


# Nobody reacts -------------------------------------------------------------------------------------------------------


def test_a_container_at_another_address_lets_nobody_in(host: Host, client: Client) -> None:
    """Its address moves, and the old one becomes another container's; the rules stay as they are."""
    host.run_workload("admin", publish=["8080:8080"])
    old = host.workload("admin").address()
    four_times(host, **EXAMPLE)
    assert client.connect(host.address(), 8080, source=OFFICE).who == "admin"
    with client.storm(host.address(), 8080, source=STRANGER, every=0.005, timeout=0.3) as storm:
        time.sleep(0.2)
        host.docker("rm", "--force", "admin")
        squatter = host.run_workload("squatter", publish=["9300:8080"])
        host.run_workload("admin", publish=["8080:8080"])
        time.sleep(0.5)
    assert squatter.address() == old
    assert host.workload("admin").address() != old
    assert storm.attempts > 50
    assert storm.accepted == 0, storm.who
    # The old allow opens nothing: neither the squatter on the old address nor the container on the new one.
    assert client.connect(host.address(), 9300, source=OFFICE).outcome == "timeout"
    with client.route(f"{old}/32", via=host):
        assert not client.connect(old, 8080, source=OFFICE).open
    assert client.connect(host.address(), 8080, source=OFFICE).outcome == "timeout"
    # The next run brings the rules to the new address and leaves the squatter alone.
    assert docker_user_rule(host, **EXAMPLE).changed
    assert client.connect(host.address(), 8080, source=OFFICE).who == "admin"
    assert client.connect(host.address(), 8080, source=STRANGER).outcome == "timeout"
    assert client.connect(host.address(), 9300, source=STRANGER).who == "squatter"


def test_a_second_network_lets_nobody_in(host: Host, client: Client) -> None:
    """Docker moves the DNAT to the address on the other network while the container runs."""
    host.run_workload("admin", publish=["8080:8080"])
    host.docker("network", "create", "aaa-second")
    four_times(host, **EXAMPLE)
    with client.storm(host.address(), 8080, source=STRANGER, every=0.005, timeout=0.3) as storm:
        time.sleep(0.2)
        host.docker("network", "connect", "aaa-second", "admin")
        time.sleep(1)
    assert storm.attempts > 50
    assert storm.accepted == 0, storm.who
    result = docker_user_rule(host, **EXAMPLE)
    assert result.changed
    assert {endpoint["network"] for endpoint in result.data["endpoints"]} == {"bridge", "aaa-second"}
    assert client.connect(host.address(), 8080, source=OFFICE).who == "admin"
    assert client.connect(host.address(), 8080, source=STRANGER).outcome == "timeout"


def test_a_stopped_container_is_guarded_before_it_starts(host: Host, client: Client) -> None:
    host.run_workload("admin", publish=["8080:8080"], restart="no")
    host.docker("stop", "admin")
    result = four_times(host, **EXAMPLE)
    assert "not running" in result.warnings[0]
    assert result.data["endpoints"] == []
    with client.storm(host.address(), 8080, source=STRANGER, every=0.005, timeout=0.3) as storm:
        host.docker("start", "admin")
        time.sleep(1)
    assert storm.accepted == 0, storm.who
    assert docker_user_rule(host, **EXAMPLE).changed
    assert client.connect(host.address(), 8080, source=OFFICE).who == "admin"


# IPv6 ----------------------------------------------------------------------------------------------------------------


def test_ipv6(host: Host, client: Client) -> None:
    """Engines up to 26 have no ip6tables chain: it is made, with its jump. There one gets in by routing."""
    host.docker("network", "create", "--ipv6", "--subnet=172.31.8.0/24", "--subnet=fd00:31:8::/64", "dual")
    dual = host.run_workload("dual", publish=["9100:8080"], network="dual")
    host.run_workload("near", network="dual")
    had_chain = "DOCKER-USER" in host.run("ip6tables-save").stdout
    options = {
        "name": "dual",
        "container": "dual",
        "destination_port": ["8080"],
        "source": [OFFICE.v4, OFFICE.v6],
        "action": "accept",
        "match": "both" if had_chain else "address",
    }
    four_times(host, **options)
    assert any("quaywall:dual" in rule for rule in chain(host, "ip6tables"))
    assert host.run("ip6tables -S FORWARD").stdout.splitlines()[1] == "-A FORWARD -j DOCKER-USER"
    if had_chain:
        outcomes = [client.connect(host.address(6), 9100, source=source).outcome for source in (OFFICE, STRANGER)]
    else:
        host.run("sysctl -q -w net.ipv6.conf.all.forwarding=1")
        with client.route("fd00:31:8::/64", via=host):
            address = dual.address(6)
            outcomes = [client.connect(address, 8080, source=source).outcome for source in (OFFICE, STRANGER)]
    assert outcomes == ["open", "timeout"]
    assert host.connect_from("near", dual.address(6), 8080).who == "dual"
    assert who_gets_in(client, host, 9100) == {"office 9100": "dual", "stranger 9100": "timeout"}
    docker_user_rule(host, **{**options, "ip_version": "ipv4"})
    assert not any("quaywall" in rule for rule in chain(host, "ip6tables"))
    assert docker_user_rule(host, name="dual", state="absent").changed


def test_what_docker_proxy_serves_on_ipv6_is_said(host: Host, client: Client) -> None:
    """No rule in DOCKER-USER stops it: the container has no IPv6 address, so the proxy takes it in INPUT."""
    two_containers(host)
    result = four_times(host, **EXAMPLE)
    assert client.connect(host.address(6), 9000, source=STRANGER).open
    assert [("docker-proxy" in warning and "9000" in warning) for warning in result.warnings] == [True]
    # As the warning says, published on IPv4 only.
    host.docker("rm", "--force", "admin")
    host.run_workload("admin", publish=["0.0.0.0:9000:8080"])
    result = docker_user_rule(host, **EXAMPLE)
    assert result.warnings == []
    assert not client.connect(host.address(6), 9000, source=STRANGER).open
    assert client.connect(host.address(), 9000, source=STRANGER).outcome == "timeout"


def test_an_ipv6_network_that_a_container_joins_lets_nobody_in(
    start_host: t.Callable[[HostSpec], Host], client: Client
) -> None:
    host = start_host(HostSpec("noproxy", suite="forky", daemon={"userland-proxy": False}))
    modules.install(host)
    host.run_workload("admin", publish=["9000:8080"])
    host.docker("network", "create", "--ipv6", "--subnet=172.31.8.0/24", "--subnet=fd00:31:8::/64", "dual")
    assert docker_user_rule(host, **EXAMPLE).changed
    host.docker("network", "connect", "dual", "admin")
    assert not client.connect(host.address(6), 9000, source=STRANGER).open
    assert not client.connect(host.address(6), 9000, source=OFFICE).open
    assert docker_user_rule(host, **{**EXAMPLE, "source": [OFFICE.v4, OFFICE.v6]}).changed
    assert client.connect(host.address(6), 9000, source=OFFICE).who == "admin"
    assert not client.connect(host.address(6), 9000, source=STRANGER).open


# Every kind of target ------------------------------------------------------------------------------------------------


def test_labels(host: Host, client: Client) -> None:
    for number, name in enumerate(("web-1", "web-2", "db")):
        service = name.partition("-")[0]
        host.run_workload(name, f"--label=service={service}", "--label=app=shop", publish=[f"910{number}:8080"])
    result = four_times(host, name="web", labels={"service": "web", "app": "shop"}, source=[OFFICE.v4], action="return")
    assert {endpoint["container"] for endpoint in result.data["endpoints"]} == {"web-1", "web-2"}
    assert who_gets_in(client, host, 9100, 9101, 9102) == {
        "office 9100": "web-1",
        "stranger 9100": "timeout",
        "office 9101": "web-2",
        "stranger 9101": "timeout",
        "office 9102": "db",
        "stranger 9102": "db",
    }
    refused = docker_user_rule(host, name="none", labels={"service": "wbe"}, action="drop")
    assert refused.failed
    assert "service=wbe" in refused.message


def test_network(host: Host, client: Client) -> None:
    host.docker("network", "create", "backend")
    host.run_workload("one", network="backend", publish=["9100:8080"])
    host.run_workload("other", publish=["9200:8080"])
    four_times(host, name="backend", network="backend", protocol="all", source=[OFFICE.v4], action="accept")
    # A container that joins later is protected too, without another run.
    host.run_workload("two", network="backend", publish=["9101:8080"])
    assert who_gets_in(client, host, 9100, 9101, 9200) == {
        "office 9100": "one",
        "stranger 9100": "timeout",
        "office 9101": "two",
        "stranger 9101": "timeout",
        "office 9200": "other",
        "stranger 9200": "other",
    }
    assert host.connect_from("one", host.workload("two").address(), 8080).who == "two"
    with client.listen(8080):
        assert host.workload("one").connect(client.address(), 8080).open


def test_destination(host: Host, client: Client) -> None:
    host.docker("network", "create", "--subnet=172.31.9.0/24", "static")
    host.run_workload("fixed", network="static", ip="172.31.9.80", publish=["9100:8080"])
    host.run_workload("other", network="static", publish=["9200:8080"])
    result = four_times(
        host, name="fixed", destination="172.31.9.80", destination_port=["8080"], source=[OFFICE.v4], action="accept"
    )
    # The own bridge is exempt for an address too: the routing table tells which one it is.
    assert "! -i br-" in "".join(result.data["chains"]["ipv4"]["after"])
    assert who_gets_in(client, host, 9100, 9200) == {
        "office 9100": "fixed",
        "stranger 9100": "timeout",
        "office 9200": "other",
        "stranger 9200": "other",
    }
    assert host.connect_from("other", "172.31.9.80", 8080).who == "fixed"


def test_published_port(host: Host, client: Client) -> None:
    options = {"name": "range", "published_port": "9100:9101", "source": [OFFICE.v4], "action": "accept"}
    four_times(host, **options)  # before there is any container
    host.run_workload("one", publish=["9100:8080"])
    host.run_workload("two", publish=["9101:8080"])
    host.run_workload("three", publish=["9102:8080"])
    assert who_gets_in(client, host, 9100, 9101, 9102) == {
        "office 9100": "one",
        "stranger 9100": "timeout",
        "office 9101": "two",
        "stranger 9101": "timeout",
        "office 9102": "three",
        "stranger 9102": "three",
    }
    with client.listen(9100):
        assert host.workload("one").connect(client.address(), 9100).open


def test_udp(host: Host, client: Client) -> None:
    host.run_workload("dns", publish=["5300:53/udp", "5301:54/udp"]).serve_udp(53)
    host.workload("dns").serve_udp(54)
    four_times(
        host, name="dns", container="dns", protocol="udp", destination_port=["53"], source=[OFFICE.v4], action="accept"
    )
    assert client.datagram(host.address(), 5300, source=OFFICE).who == "dns"
    assert client.datagram(host.address(), 5300, source=STRANGER).outcome == "timeout"
    assert client.datagram(host.address(), 5301, source=STRANGER).who == "dns"


# Options -------------------------------------------------------------------------------------------------------------


def test_two_policies_for_one_container_add_up(host: Host, client: Client) -> None:
    two_containers(host)
    docker_user_rule(host, **EXAMPLE)
    second = {**EXAMPLE, "name": "second", "source": [STRANGER.v4], "priority": 900}
    assert docker_user_rule(host, **second).changed
    assert who_gets_in(client, host, 9000) == {"office 9000": "admin", "stranger 9000": "admin"}
    refused = docker_user_rule(host, **{**EXAMPLE, "name": "third", "otherwise": "reject"})
    assert refused.failed
    assert "third" in refused.message
    assert "admin-ui" in refused.message or "second" in refused.message
    before = chain(host)
    assert docker_user_rule(host, check=True, **{**EXAMPLE, "name": "third", "otherwise": "reject"}).failed
    assert chain(host) == before


def test_interfaces_and_own_network(host: Host, client: Client) -> None:
    two_containers(host)
    admin = host.workload("admin").address()
    four_times(host, name="in", container="admin", in_interface="wg0", action="accept", otherwise="drop")
    assert who_gets_in(client, host, 9000) == {"office 9000": "timeout", "stranger 9000": "timeout"}
    assert docker_user_rule(
        host, name="in", container="admin", in_interface="eth+", action="accept", otherwise="drop"
    ).changed
    assert who_gets_in(client, host, 9000) == {"office 9000": "admin", "stranger 9000": "admin"}
    # Everything that does not come in through wg0 is dropped, but the own network is exempt.
    docker_user_rule(host, name="in", container="admin", in_interface="!wg0", action="drop")
    assert who_gets_in(client, host, 9000) == {"office 9000": "timeout", "stranger 9000": "timeout"}
    assert host.connect_from("neighbour", admin, 8080).who == "admin"
    docker_user_rule(host, name="in", container="admin", action="drop", same_network="filter")
    assert host.connect_from("neighbour", admin, 8080).outcome == "timeout"
    assert host.connect_from("neighbour", host.workload("shop").address(), 8080).who == "shop"


def test_log_and_reject(host: Host, client: Client) -> None:
    two_containers(host)
    four_times(host, **{**EXAMPLE, "otherwise": "reject", "log": {"prefix": "admin denied: ", "limit": "100/second"}})
    assert who_gets_in(client, host, 9000) == {"office 9000": "admin", "stranger 9000": "refused"}
    counted = host.run("iptables-save -c -t filter").stdout
    logged = [line for line in counted.splitlines() if "LOG --log-prefix" in line]
    assert any(int(re.match(r"\[(\d+):", line).group(1)) > 0 for line in logged)  # type: ignore[union-attr]


def test_match_published_port(host: Host, client: Client) -> None:
    two_containers(host)
    four_times(host, **{**EXAMPLE, "match": "published_port"})
    assert not any("-d " in rule for rule in chain(host))
    assert who_gets_in(client, host, 9000, 8080) == {
        "office 9000": "admin",
        "stranger 9000": "timeout",
        "office 8080": "shop",
        "stranger 8080": "shop",
    }


def test_a_port_published_on_one_address(host: Host, client: Client) -> None:
    """The same host port on two addresses of the host is two containers'."""
    other = "192.0.2.200"
    host.run(f"ip address replace {other}/32 dev lo")
    try:
        host.run_workload("first", publish=[f"{host.address()}:9000:8080"])
        host.run_workload("second", publish=[f"{other}:9000:8080"])
        four_times(host, name="first", container="first", source=[OFFICE.v4], action="accept")
        with client.route(f"{other}/32", via=host):
            assert client.connect(other, 9000, source=STRANGER).who == "second"
            assert who_gets_in(client, host, 9000) == {"office 9000": "first", "stranger 9000": "timeout"}
    finally:
        host.run(f"ip address del {other}/32 dev lo")


# Containers that are not on a bridge, or not there at all -------------------------------------------------------------


def test_containers_without_a_network_of_their_own(host: Host, client: Client) -> None:
    """Without macvlan, which the kernel of a small machine may lack: the unit tests have what the API says of it."""
    host.run_workload("admin", publish=["9000:8080"])
    host.docker("run", "-d", "--name=sidecar", "--network=container:admin", "workload", "serve", "8081")
    host.docker("run", "-d", "--name=onhost", "--network=host", "workload", "serve", "8090")
    host.docker("run", "-d", "--name=alone", "--network=none", "workload", "serve", "8080")
    result = docker_user_rule(host, **{**EXAMPLE, "container": "sidecar"})
    assert not result.failed, result.message
    assert who_gets_in(client, host, 9000) == {"office 9000": "admin", "stranger 9000": "timeout"}
    docker_user_rule(host, name="admin-ui", state="absent")
    before = chain(host)
    expected = {
        "onhost": "INPUT",
        "alone": "no network",
        "amdin": "'admin'",
    }
    for name, word in expected.items():
        for check in (True, False):
            refused = docker_user_rule(host, check=check, **{**EXAMPLE, "container": name})
            assert refused.failed
            assert word in refused.message
            assert "\n" not in refused.message
    refused = docker_user_rule(host, name="net", network="host", action="drop")
    assert refused.failed
    assert "driver host" in refused.message
    host.docker("create", "--name=never-started", "workload", "serve", "8080")
    refused = docker_user_rule(host, name="x", container="never-started", action="drop")
    assert refused.failed
    assert "not running" in refused.message
    assert chain(host) == before


def test_docker_is_down(host: Host) -> None:
    two_containers(host)
    before = chain(host)
    host.run("systemctl stop docker.socket docker.service")
    try:
        refused = docker_user_rule(host, **EXAMPLE)
        assert refused.failed
        assert "Docker does not answer" in refused.message
        assert chain(host) == before
        # What needs no look-up works all the same.
        assert docker_user_rule(host, name="port", published_port="9000", action="drop").changed
        assert docker_user_rule(host, name="port", state="absent").changed
    finally:
        host.run("systemctl start docker.socket docker.service")
        host.wait_until_up()


def test_the_sdk_is_missing(host: Host) -> None:
    host.run_workload("admin", publish=["9000:8080"])
    before = chain(host)
    blocked = modules.command()
    blocked[-2] = "import sys; sys.modules['docker'] = None\n" + blocked[-2]
    done = host.run(blocked, stdin=modules.arguments(**EXAMPLE), check=False)
    answer = json.loads(done.stdout)
    assert answer["failed"]
    assert "docker" in answer["msg"]
    assert chain(host) == before
    done = host.run(blocked, stdin=modules.arguments(name="p", published_port="9000", action="drop"), check=False)
    assert json.loads(done.stdout)["changed"]


def test_there_is_no_docker_user(start_host: t.Callable[[HostSpec], Host]) -> None:
    """Docker leaves the firewall alone: a policy would protect nothing, and there is nothing to take away."""
    host = start_host(HostSpec("unguarded", suite="forky", daemon={"iptables": False, "ip6tables": False}))
    modules.install(host)
    before = host.run("nft list ruleset").stdout
    refused = docker_user_rule(host, name="port", published_port="9000", action="drop")
    assert refused.failed
    assert "no chain DOCKER-USER" in refused.message
    assert '"iptables": false' in refused.message
    absent = docker_user_rule(host, name="port", state="absent")
    assert not absent.failed, absent.message
    assert not absent.changed
    assert host.run("nft list ruleset").stdout == before
    # Docker's nftables backend leaves these tables; nothing reads DOCKER-USER then, even where an old one is left.
    host.run("nft add table ip docker-bridges; iptables -N DOCKER-USER")
    refused = docker_user_rule(host, name="port", published_port="9000", action="drop")
    assert refused.failed
    assert "firewall backend on this host is nftables" in refused.message
