# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What happens on a host between two playbook runs, and that the follower puts it right; shown by packets."""

from __future__ import annotations

import os
import time
import typing as t

import pytest

from testbed.hosts import OFFICE, STRANGER, Bed, Client, Host

testinfra_hosts = ["ansible://dockers"]

BED = os.environ.get("QUAYWALL_BED") or "quaywall"
GUARD = "QUAYWALL-GUARD"


@pytest.fixture(scope="module")
def bed() -> t.Iterator[Bed]:
    bed = Bed(BED)
    yield bed
    bed.close()


@pytest.fixture(scope="module")
def client(bed: Bed) -> Client:
    return bed.client


@pytest.fixture
def machine(host: t.Any, bed: Bed, client: Client) -> t.Iterator[Host]:
    """The host, on which each test finds and leaves everything right."""
    name = host.backend.get_pytest_id().rpartition("//")[2]
    machine = bed.host(name.removeprefix(BED + "-"))
    _is_right(machine, client)
    yield machine
    _is_right(machine, client)


def _within(seconds: float, what: t.Callable[[], bool]) -> float:
    """The seconds that it took; fails after the time that it may take."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < seconds
        time.sleep(0.02)
    return time.monotonic() - start


def _chain(machine: Host) -> list[str]:
    return machine.run("iptables -S DOCKER-USER", check=False).stdout.splitlines()[1:]


def _first_of_forward(machine: Host) -> str:
    return machine.run("iptables -S FORWARD").stdout.splitlines()[1]


def _is_right(machine: Host, client: Client) -> None:
    address = machine.address()
    _within(5, lambda: client.connect(address, 9000, source=OFFICE).open)
    _within(5, lambda: client.connect(address, 8080, source=STRANGER).open)
    assert not client.connect(address, 9000, source=STRANGER).open
    rules = _chain(machine)
    assert '"quaywall: established"' in rules[0] or "by another tool" in rules[0]
    assert sum('"quaywall: established"' in rule for rule in rules) == 1
    assert _first_of_forward(machine) == "-A FORWARD -j DOCKER-USER"


def test_service_runs_in_its_sandbox(host: t.Any, machine: Host) -> None:
    service = host.service("quaywall-follower")
    assert service.is_running
    assert service.is_enabled
    shown = machine.run("systemctl show quaywall-follower -p MainPID -p NRestarts").stdout.split()
    values = dict(line.split("=") for line in shown)
    assert values["NRestarts"] == "0"
    status = machine.run(f"cat /proc/{values['MainPID']}/status").stdout
    bounding = int(next(line for line in status.splitlines() if line.startswith("CapBnd")).split()[1], 16)
    assert bounding == (1 << 12) | (1 << 13)  # CAP_NET_ADMIN, CAP_NET_RAW


def test_container_comes_back_with_another_address(machine: Host, client: Client) -> None:
    before = machine.workload("admin").address()
    address = machine.address()
    with client.storm(address, 9000, source=STRANGER) as forbidden:
        # Somebody takes the address in between.
        machine.run(
            "docker rm --force admin && docker run --detach --name squatter --stop-signal KILL workload serve 8080"
        )
        machine.run_workload("admin", publish=["9000:8080"])
        took = _within(2, lambda: client.connect(address, 9000, source=OFFICE).open)
        time.sleep(0.5)
    print(f"allowed again after {took:.3f} s")
    assert machine.workload("admin").address() != before
    assert forbidden.accepted == 0
    assert forbidden.attempts > 20
    machine.run("docker rm --force squatter")


def test_container_that_was_waited_for(machine: Host, client: Client) -> None:
    address = machine.address()
    machine.run_workload("later", publish=["9500:8080"])
    try:
        _within(2, lambda: client.connect(address, 9500, source=OFFICE).open)
        assert not client.connect(address, 9500, source=STRANGER).open
    finally:
        machine.run("docker rm --force later")


def test_networks_come_and_go(machine: Host, client: Client) -> None:
    address = machine.address()
    with client.storm(address, 9000, source=STRANGER) as forbidden:
        for number in range(10):
            machine.run(f"docker network create passing-{number}")
        machine.run("docker network connect passing-1 admin")
        time.sleep(0.3)
        machine.run("docker network disconnect passing-1 admin; docker network prune --force")
    assert forbidden.accepted == 0
    assert forbidden.attempts > 20


@pytest.mark.parametrize(
    "edit",
    [
        "iptables -F DOCKER-USER",
        "iptables -D FORWARD -j DOCKER-USER",
        "iptables -D DOCKER-USER 1",
        "iptables -t mangle -F FORWARD",
        f"iptables -t mangle -F {GUARD}",
    ],
)
def test_edit_by_hand_is_put_right(machine: Host, client: Client, edit: str) -> None:
    save = (
        "iptables-save -t filter | grep -e DOCKER-USER -e QUAYWALL; iptables-save -t mangle | sed 's/ \\[.*//; /^#/d'"
    )
    before = machine.run(save).stdout
    with client.storm(machine.address(), 9000, source=STRANGER) as forbidden:
        time.sleep(0.2)
        machine.run(edit)
        _within(1.5, lambda: machine.run(save).stdout == before)
        time.sleep(0.5)
    if "mangle" in edit or "-F" in edit or "FORWARD" in edit:
        # One half is there while the other is put right.
        assert forbidden.accepted == 0


def test_rule_on_top_stays_and_opens_nothing(machine: Host, client: Client) -> None:
    rule = '-p tcp -m tcp --dport 8080 -m comment --comment "opened by another tool" -j ACCEPT'
    machine.run(f"iptables -I DOCKER-USER 1 {rule}")
    _within(1.5, lambda: "another tool" not in _chain(machine)[0])
    assert not client.connect(machine.address(), 9000, source=STRANGER).open
    assert sum("opened by another tool" in line for line in _chain(machine)) == 1
    machine.run(f"iptables -D DOCKER-USER {rule}")


def test_docker_restarts_and_stops(machine: Host, client: Client) -> None:
    with client.storm(machine.address(), 9000, source=STRANGER) as forbidden:
        machine.restart_docker()
        machine.run("systemctl stop docker.socket docker.service")
        time.sleep(2)
        machine.run("systemctl start docker")
        machine.wait_until_up()
    assert forbidden.accepted == 0


def test_follower_that_is_killed_is_back(host: t.Any, machine: Host) -> None:
    before = machine.run("systemctl show quaywall-follower -p MainPID --value").stdout
    machine.run("systemctl kill --signal=KILL quaywall-follower")
    show = "systemctl show quaywall-follower -p MainPID -p ActiveState --value"

    def back() -> bool:
        shown = machine.run(show).stdout.split()
        return "active" in shown and "0" not in shown and before.strip() not in shown

    _within(3, back)
    assert host.service("quaywall-follower").is_running


def test_journal_says_what_was_done(machine: Host) -> None:
    journal = machine.run("journalctl --no-pager -o cat -u quaywall-follower").stdout
    assert "admin" in journal
    assert "Traceback" not in journal
