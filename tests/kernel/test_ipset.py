# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sets in the kernel's own hands: what is in them, and what packets meet while they are replaced."""

from __future__ import annotations

import resource
import signal
import socket
import time
import typing as t
from contextlib import ExitStack
from pathlib import Path

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._chain import set_name
from ansible_collections.quaywall.docker.plugins.module_utils._ipset import (
    NEW,
    AddressSet,
    Ipset,
    elements,
    fill,
)
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import FirewallError
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6

from .lab import FAMILIES, Host, docker_table, find, load, run_command

if t.TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

NAME, NAME6 = set_name("admin-ui", IPV4), set_name("admin-ui", IPV6)
ONE = AddressSet(NAME, IPV4, frozenset(("198.51.100.0/24", "203.0.113.7")))
TWO = AddressSet(NAME, IPV4, frozenset(("192.0.2.0/25", "203.0.113.8", "10.0.0.0/8")))
SIX = AddressSet(
    NAME6,
    IPV6,
    elements(("2001:db8::/32", "2001:db8::7/128", "::ffff:c633:6407/128", "::/1", "::c633:6407", "fe80::/10")),
)


def many(family: str, count: int, start: int) -> AddressSet:
    if family == IPV4:
        numbers = range(start << 24, (start << 24) + count * 16, 16)
        texts = ["%d.%d.%d.%d/28" % (n >> 24, n >> 16 & 255, n >> 8 & 255, n & 255) for n in numbers]
        return AddressSet(NAME, IPV4, elements(texts))
    texts = ["2001:db8:%x:%x:1::/80" % (start + (n >> 16), n & 0xFFFF or 0xFFFFF & 1) for n in range(count)]
    return AddressSet(NAME6, IPV6, elements(texts))


class Sets:
    """The code under test on a machine."""

    def __init__(self, host: Host, run: t.Any = run_command, **options: t.Any) -> None:
        self.host = host
        self.code = Ipset(run, find, **options)

    def read(self, **options: t.Any) -> dict[str, AddressSet]:
        return self.host.call(self.code.read, **options)

    def prepare(self, *wanted: AddressSet) -> None:
        self.host.call(lambda: self.code.prepare(wanted, self.code.read()))

    def undo(self) -> None:
        self.host.call(self.code.undo)

    def finish(self, *keep: str) -> tuple[str, ...]:
        return self.host.call(self.code.finish, keep)

    def put(self, *wanted: AddressSet) -> None:
        self.prepare(*wanted)
        assert self.finish(*[item.name for item in wanted]) == ()


def names(host: Host) -> list[str]:
    return sorted(host.run("ipset", "list", "-n").decode().split())


def mapped(*sets: AddressSet) -> dict[str, AddressSet]:
    return {item.name: item for item in sets}


def test_sets_come_change_and_go(host: Host) -> None:
    sets = Sets(host)
    sets.put(ONE, SIX)
    assert sets.read() == mapped(ONE, SIX)
    assert names(host) == sorted([NAME, NAME6])
    assert host.attempt("ipset", "test", NAME, "198.51.100.77").returncode == 0
    assert host.attempt("ipset", "test", NAME, "198.51.101.77").returncode == 1
    sets.put(TWO, SIX)
    assert sets.read() == mapped(TWO, SIX)
    assert sets.finish(NAME) == ()
    assert sets.read() == mapped(TWO)
    assert sets.finish() == ()
    assert names(host) == []


def test_what_is_as_wanted_is_left_alone(host: Host) -> None:
    calls: list[Sequence[str]] = []

    def run(args: Sequence[str], *more: t.Any) -> tuple[int, bytes, bytes]:
        calls.append(args[1:])
        return run_command(args, *more)

    sets = Sets(host, run)
    sets.put(ONE)
    calls.clear()
    sets.prepare(ONE)
    assert [call[0] for call in calls] == ["list", "save"]
    assert sets.read(quick=True) == mapped(ONE)
    assert [call[0] for call in calls] == ["list", "save", "list"]


def test_a_quick_look_sees_what_was_made_anew_or_has_another_size(host: Host) -> None:
    sets = Sets(host)
    sets.put(ONE)
    assert sets.read() == mapped(ONE)
    host.run("ipset", "add", NAME, "192.0.2.1")
    assert sets.read(quick=True)[NAME].networks == ONE.networks | {"192.0.2.1"}
    other = AddressSet(NAME, IPV4, frozenset(("192.0.2.1", "192.0.2.2", "192.0.2.3")))
    Sets(host).put(other)
    assert sets.read(quick=True) == mapped(other)
    Sets(host).finish()
    assert sets.read(quick=True) == {}


def test_undo(host: Host) -> None:
    sets = Sets(host)
    sets.put(ONE)
    sets.prepare(TWO, SIX)
    assert sets.read() == mapped(TWO, SIX, ONE._replace(name=NAME + NEW), AddressSet(NAME6 + NEW, IPV6, frozenset()))
    sets.undo()
    assert sets.read() == mapped(ONE)
    assert names(host) == [NAME]
    sets.undo()
    assert sets.read() == mapped(ONE)


def test_undo_while_rules_use_the_old_set(host: Host, variant: str) -> None:
    sets = Sets(host)
    sets.put(ONE)
    load(host, variant, IPV4, docker_table(["-m set --match-set %s src -j ACCEPT" % NAME]))
    sets.prepare(TWO)
    sets.undo()
    assert sets.read() == mapped(ONE)


def test_a_set_whose_rule_was_just_removed_goes(host: Host, variant: str) -> None:
    """nft lets go of it a moment later."""
    sets = Sets(host)
    for _number in range(20):
        sets.put(ONE, SIX)
        load(host, variant, IPV4, docker_table(["-m set --match-set %s src -j ACCEPT" % NAME] * 50))
        load(host, variant, IPV4, docker_table([]))
        assert sets.finish() == ()
        assert names(host) == []


def test_a_set_that_somebodys_rule_uses_stays_and_is_told(host: Host, variant: str) -> None:
    sets = Sets(host, release_wait=0.1)
    sets.put(ONE, SIX)
    load(host, variant, IPV4, docker_table(["-m set --match-set %s src -j ACCEPT" % NAME]))
    assert sets.finish() == (NAME,)
    assert sets.read() == mapped(ONE)


@pytest.mark.parametrize("bad", ["10.0.0.0/99", "not an address", "0.0.0.0/0", "2001:db8::1"])
def test_a_failure_in_the_middle_leaves_all_as_it_was(host: Host, bad: str) -> None:
    sets = Sets(host)
    sets.put(ONE, SIX)
    other = AddressSet(set_name("other", IPV4), IPV4, frozenset(("192.0.2.7",)))
    spoilt = AddressSet(NAME, IPV4, many(IPV4, 5000, 11).networks | {bad})
    with pytest.raises(FirewallError, match="Nothing was changed") as caught:
        sets.prepare(other, SIX._replace(networks=frozenset(("2001:db8:1::/48",))), spoilt)
    assert bad.rpartition(" ")[2] in str(caught.value)
    assert sets.read() == mapped(ONE, SIX)
    assert names(host) == sorted([NAME, NAME6])
    sets.undo()
    assert sets.read() == mapped(ONE, SIX)


@pytest.mark.parametrize("suffix", ["", NEW])
@pytest.mark.parametrize("kind", ["hash:ip", "list:set", "bitmap:port range 0-9"])
def test_somebodys_set_of_our_name(host: Host, suffix: str, kind: str) -> None:
    host.run("ipset", "create", NAME + suffix, *kind.split(" "))
    sets = Sets(host)
    assert sets.read() == {}
    with pytest.raises(FirewallError) as caught:
        sets.prepare(ONE, SIX)
    assert "There is a set %s already that quaywall.docker did not make" % (NAME + suffix) in str(caught.value)
    assert "ipset destroy" in str(caught.value)
    assert names(host) == [NAME + suffix]
    assert sets.finish() == ()
    assert names(host) == [NAME + suffix]


def test_somebodys_set_of_the_other_family(host: Host) -> None:
    host.run("ipset", "create", NAME, "hash:net", "family", "inet6")
    with pytest.raises(FirewallError, match="did not make"):
        Sets(host).prepare(ONE)
    assert names(host) == [NAME]


def test_entries_with_options_of_somebodys_are_replaced(host: Host) -> None:
    host.run("ipset", "create", NAME, "hash:net", "comment", "counters")
    host.run("ipset", "add", NAME, "198.51.100.0/24", "comment", "a b")
    host.run("ipset", "add", NAME, "203.0.113.7", "nomatch")
    sets = Sets(host)
    assert sets.read()[NAME] != ONE
    sets.put(ONE)
    assert sets.read() == mapped(ONE)


def test_what_a_killed_run_left_behind(host: Host) -> None:
    """Killed in the middle of a fill, and killed between the swap and the end."""
    sets = Sets(host)
    sets.put(ONE)
    host.run("ipset", "restore", data=fill(NAME + NEW, IPV4, many(IPV4, 300, 11).networks).encode())
    host.run("ipset", "create", NAME6 + NEW, "hash:net", "family", "inet", "maxelem", "5")
    assert set(sets.read()) == {NAME, NAME + NEW, NAME6 + NEW}
    sets.put(TWO, SIX)
    assert sets.read() == mapped(TWO, SIX)
    sets.prepare(ONE, SIX)
    again = Sets(host)
    again.put(ONE, SIX)
    assert again.read() == mapped(ONE, SIX)
    assert names(host) == sorted([NAME, NAME6])


def test_killed_while_it_fills(host: Host) -> None:
    """Whenever ipset itself dies, the set that rules use has its old contents or the new ones."""
    sets = Sets(host)
    big = many(IPV4, 100000, 11)
    for number in range(8):
        sets.put(ONE)
        process = host.start("ipset", "restore", stdin=-1)
        assert process.stdin is not None
        process.stdin.write((fill(NAME + NEW, IPV4, big.networks) + "swap %s%s %s\n" % (NAME, NEW, NAME)).encode())
        process.stdin.close()
        time.sleep(0.04 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert sets.read()[NAME] in (ONE, big)
        sets.put(TWO)
        assert sets.read() == mapped(TWO)


def test_reading_loads_no_module(host: Host) -> None:
    """Where the kernel has no sets nothing is run: ipset would load the module."""

    def run(*_args: t.Any) -> tuple[int, bytes, bytes]:
        raise AssertionError

    sets = Sets(host, run, is_loaded=lambda: False)
    assert sets.read() == {}
    assert sets.finish() == ()
    before = modules()
    assert Sets(host).read() == {}
    assert modules() == before


def modules() -> list[str]:
    """None on a kernel that has all of it built in."""
    path = Path("/proc/modules")
    return sorted(line.split(" ")[0] for line in path.read_text("utf-8").splitlines()) if path.exists() else []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hundred_thousand_networks(host: Host, family: str) -> None:
    one, two = many(family, 100000, 11), many(family, 100000, 60)
    assert len(one.networks) > 99990
    sets = Sets(host)
    sets.put(one)
    replaced = cpu_seconds(lambda: sets.put(two))
    found: list[Mapping[str, AddressSet]] = []
    compared = cpu_seconds(lambda: found.append(sets.read()))
    compared += cpu_seconds(lambda: found.append({two.name: two} if found[0] == {two.name: two} else {}))
    assert found[0] == found[1] == {two.name: two}
    quick = cpu_seconds(lambda: sets.read(quick=True))
    # On an idle machine 0.5, 0.14 and 0.004.
    assert replaced < 1.5, replaced
    assert compared < 0.5, compared
    assert quick < 0.1, quick


def cpu_seconds(function: Callable[[], t.Any]) -> float:
    """Of this process and of those that it ran: others may use the machine too."""

    def used() -> float:
        found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(item.ru_utime + item.ru_stime for item in found)

    before = used()
    function()
    return used() - before


def test_packets_meet_the_old_contents_or_the_new_ones(host: Host, variant: str) -> None:
    """Who is in both is never stopped while sets of 20,000 are swapped, and who is in none never gets through."""
    with ExitStack() as stack:
        client = stack.enter_context(Host())
        host.ip("link add outside type veth peer name eth0 netns %s\n" % client.network)
        for machine, device, addresses in (
            (host, "outside", ["203.0.113.1/24"]),
            (client, "eth0", ["203.0.113.10/24", "203.0.113.66/24"]),
        ):
            lines = ["link set %s up" % device, *["addr add %s dev %s" % (item, device) for item in addresses]]
            machine.ip("".join(line + "\n" for line in lines))
        receiving = stack.enter_context(host.call(udp, "203.0.113.1", 7000))
        friend = stack.enter_context(client.call(udp, "203.0.113.10", 0))
        stranger = stack.enter_context(client.call(udp, "203.0.113.66", 0))
        one, two = (AddressSet(NAME, IPV4, many(IPV4, 20000, start).networks | {"203.0.113.10"}) for start in (11, 60))
        sets = Sets(host)
        sets.put(one)
        table = docker_table([]).replace(
            "COMMIT\n", "-A INPUT -p udp -m set --match-set %s src -j ACCEPT\n-A INPUT -p udp -j DROP\nCOMMIT\n" % NAME
        )
        load(host, variant, IPV4, table)
        sent = 0
        received: list[str] = []

        def exchange() -> None:
            nonlocal sent
            for sending in (stranger, friend):
                sending.sendto(b"x", ("203.0.113.1", 7000))
            sent += 1
            received.append(receiving.recvfrom(10)[1][0])

        def run(args: Sequence[str], data: bytes | None, *_more: t.Any) -> tuple[int, bytes, bytes]:
            with host.start(*args, stdin=-1, stdout=-1, stderr=-1) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                assert process.stderr is not None
                # Packets are sent while ipset works, the last one before it is told that there is no more.
                for part in [(data or b"")[start : start + 4096] for start in range(0, len(data or b""), 4096)]:
                    process.stdin.write(part)
                    process.stdin.flush()
                    exchange()
                process.stdin.close()
                out, err = process.stdout.read(), process.stderr.read()
            return process.returncode, out, err

        swapping = Sets(host, run)
        for wanted in (two, one, two, one):
            swapping.put(wanted)
        assert swapping.read() == mapped(one)
        assert sent > 200
        assert received == ["203.0.113.10"] * sent


def udp(address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, port))
    made.settimeout(2)
    return made
