# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The whole chain in the kernel's own hands: guard, default and sets by packets; killed runs; several at once."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
import types
import typing as t
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._ipset import Ipset
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import FirewallError
from ansible_collections.quaywall.docker.plugins.module_utils._store import Store, StoreError

from . import chains
from .lab import (
    FAMILIES,
    IPV4,
    IPV6,
    LEGACY,
    VARIANTS,
    Host,
    counted,
    docker_table,
    find,
    listed,
    load,
    run_command,
    save,
    tool,
)
from .test_faults import everything
from .test_kill import settle
from .test_packets import connection, connects, listener

if t.TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

FRIEND, STRANGER, OUTSIDE = "203.0.113.10", "203.0.113.66", "203.0.113.1"
FRIEND6, STRANGER6, OUTSIDE6 = "2001:db8:c::10", "2001:db8:c::66", "2001:db8:c::1"
LAN, LAN6 = "198.51.100.2", "2001:db8:1::2"

ESTABLISHED = '-m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "quaywall: established" -j ACCEPT'
#: What an engine does with what DOCKER-USER lets pass: published ports are open, and all that goes out.
DOCKER_FORWARD = """\
-A DOCKER-FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -o lan0 -j DROP
-A DOCKER-FORWARD -j ACCEPT
"""

WEB = {
    "name": "web",
    "container": "web",
    "destination_port": ["8080"],
    "source": [FRIEND, FRIEND6],
    "action": "accept",
    "match": "address",
}


# A machine with containers -------------------------------------------------------------------------------------------


class Site:
    """A host with two bridges and three containers, a client outside, and a machine on another interface."""

    def __init__(self, variant: str, stack: ExitStack) -> None:
        self.variant = variant
        self.host, self.client, self.lan = (stack.enter_context(Host()) for _index in range(3))
        self.machines = {name: stack.enter_context(Host()) for name in chains.PLACES}
        for machine in (self.host, self.client, self.lan, *self.machines.values()):
            for name in ("all", "default"):
                machine.sysctl("ipv6/conf/%s/accept_dad" % name, "0")
                machine.sysctl("ipv6/conf/%s/disable_ipv6" % name, "0")
        self.host.sysctl("ipv4/ip_forward", "1")
        self.host.sysctl("ipv6/conf/all/forwarding", "1")
        for name, device, there, here in (
            ("outside", self.client, (FRIEND, STRANGER, FRIEND6, STRANGER6), (OUTSIDE, OUTSIDE6)),
            ("lan0", self.lan, (LAN, LAN6), ("198.51.100.1", "2001:db8:1::1")),
        ):
            self.host.ip("link add %s type veth peer name eth0 netns %s\n" % (name, device.network))
            self._up(self.host, name, here)
            self._up(device, "eth0", there, here)
        for network in (chains.FIRST, chains.SECOND):
            self.host.ip("link add %s type bridge\n" % network.bridge)
            self._up(self.host, network.bridge, self._gateways(network))
        for name, (_digit, network) in chains.PLACES.items():
            self.host.ip(
                "link add v-%s type veth peer name eth0 netns %s\nlink set v-%s master %s up\n"
                % (name, self.machines[name].network, name, network.bridge)
            )
            self._up(self.machines[name], "eth0", chains.addresses(name), self._gateways(network))
        for machine in (self.client, self.lan, *self.machines.values()):
            stack.enter_context(machine.call(listener, 8080))
        self.reset()
        deadline = time.monotonic() + 10
        while not all(self.ways().values()):
            assert time.monotonic() < deadline, self.ways()

    @staticmethod
    def _gateways(network: t.Any) -> tuple[str, str]:
        four, six = network.subnets
        return four.replace("0.0/16", "0.1"), six.replace("::/64", "::1")

    @staticmethod
    def _up(device: Host, name: str, here: t.Iterable[str], via: t.Iterable[str] = ()) -> None:
        lines = ["link set %s up" % name]
        for address in here:
            width = "64" if ":" in address else "16" if address.startswith("172") else "24"
            lines.append("addr add %s/%s dev %s%s" % (address, width, name, " nodad" if ":" in address else ""))
        lines += ["route add default via %s" % gateway for gateway in via]
        device.ip("".join(line + "\n" for line in lines))

    def reset(self, user: t.Mapping[str, t.Sequence[str]] = types.MappingProxyType({})) -> None:
        """Docker's tables as they are without us, and no set."""
        for family in FAMILIES:
            table = docker_table(user.get(family, ()), more="BANS").replace("COMMIT\n", DOCKER_FORWARD + "COMMIT\n")
            load(self.host, self.variant, family, table)
            load(self.host, self.variant, family, "*mangle\n:FORWARD ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n")
            nat = (
                "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 9000 "
            )
            to = chains.addresses("web")[FAMILIES.index(family)]
            nat += "-j DNAT --to-destination %s\nCOMMIT\n" % (("[%s]:8080" if family == IPV6 else "%s:8080") % to)
            load(self.host, self.variant, family, nat)
        self.host.run("ipset", "destroy")

    def apply(self, *policies: t.Mapping[str, t.Any], **options: t.Any) -> t.Any:
        """Apply, and see that there is nothing to do then."""
        result = self.host.call(chains.apply, policies, **options)
        for dry in (True, False):
            again = self.host.call(chains.apply, policies, dry=dry, **options)
            assert not again.changed, [change.plan for change in again.changes.values()]
        return result

    def tables(self, command: str) -> None:
        """A command of both families."""
        for family in FAMILIES:
            self.host.run(tool(family, self.variant), "-w", "10", *command.split(" "))

    def hits(self, family: str, chain: str, word: str, table: str) -> list[int]:
        dump = save(self.host, self.variant, family, "-c", table=table)
        return [rule.counters[0] for rule in counted(dump, chain) if word in rule.spec]

    # Who gets through

    def to(self, source: str, name: str, port: int = 8080) -> bool:
        target = chains.addresses(name)[":" in source] if name else OUTSIDE6 if ":" in source else OUTSIDE
        return connects(self.client, source, target, port)

    def ways(self) -> dict[str, bool]:
        tries: dict[str, t.Callable[[], bool]] = {}
        for index, (friend, stranger) in enumerate(((FRIEND, STRANGER), (FRIEND6, STRANGER6))):
            end = "" if index == 0 else ", IPv6"
            web, far = chains.addresses("web")[index], chains.addresses("far")[index]
            tries.update({
                "friend to web" + end: partial(self.to, friend, "web"),
                "friend to web, published" + end: partial(self.to, friend, "", 9000),
                "stranger to web" + end: partial(self.to, stranger, "web"),
                "stranger to web, published" + end: partial(self.to, stranger, "", 9000),
                "stranger to other" + end: partial(self.to, stranger, "other"),
                "stranger to far" + end: partial(self.to, stranger, "far"),
                "lan to far" + end: partial(connects, self.lan, "", far, 8080),
                "web to far" + end: partial(connects, self.machines["web"], "", far, 8080),
                "far to web" + end: partial(connects, self.machines["far"], "", web, 8080),
                "other to web" + end: partial(connects, self.machines["other"], "", web, 8080),
                "web to the client" + end: partial(connects, self.machines["web"], "", stranger, 8080),
            })  # fmt: skip
        # All at once, as each one that is closed takes its whole time.
        with ThreadPoolExecutor(len(tries)) as pool:
            return dict(zip(tries, pool.map(lambda one: one(), tries.values()), strict=True))

    def closed(self) -> set[str]:
        return {name for name, is_open in self.ways().items() if not is_open}


def both(*names: str) -> set[str]:
    return {name + end for name in names for end in ("", ", IPv6")}


#: far is on another bridge: to the policy of web it is a stranger, as everybody whom the policy does not name.
DENIED = both("stranger to web", "stranger to web, published", "far to web")


@pytest.fixture(scope="module", params=VARIANTS)
def made(request: pytest.FixtureRequest) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(str(request.param), stack)


@pytest.fixture
def site(made: Site) -> Site:
    made.reset()
    return made


# The guard -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("match", ["address", "both"])
def test_the_guard_by_packets(site: Site, match: str) -> None:
    # By host port and address, whoever is let in must come by the host port.
    denied = DENIED | (both("friend to web") if match == "both" else set())
    site.apply({**WEB, "match": match})
    assert site.closed() == denied
    # What a network create does on engines up to 27: the jump is not there.
    site.tables("-D FORWARD -j DOCKER-USER")
    assert site.closed() == denied
    # Something accepts before DOCKER-USER is read.
    site.tables("-I FORWARD -j DOCKER-USER")
    site.tables("-I FORWARD -j ACCEPT")
    assert site.closed() == denied
    site.tables("-F DOCKER-USER")
    assert site.closed() == denied
    # Something accepts before the guard is read, until the next run.
    site.tables("-t mangle -I FORWARD -j ACCEPT")
    site.tables("-t mangle -I POSTROUTING -j ACCEPT")
    site.apply({**WEB, "match": match})
    site.tables("-F DOCKER-USER")
    assert site.closed() == denied
    # It is the guard that does it.
    site.apply(WEB, guard=False)
    site.tables("-D FORWARD -j DOCKER-USER")
    assert site.closed() == set()


def test_what_docker_user_answers_logs_and_counts_is_not_the_guards(site: Site) -> None:
    site.apply({**WEB, "otherwise": "reject", "log": {"limit": "1000/second"}})
    with pytest.raises(ConnectionRefusedError):
        connection(site.client, STRANGER, chains.addresses("web")[0], 8080)
    # How soon ICMPv6 is told is the kernel's business.
    assert not site.to(STRANGER6, "web")
    for family in FAMILIES:
        assert sum(site.hits(family, "DOCKER-USER", "-j LOG", "filter")) >= 1
        assert sum(site.hits(family, "DOCKER-USER", "-j REJECT", "filter")) >= 1
        # It was marked, and yet the guard had nothing to stop.
        assert site.hits(family, "QUAYWALL-DENY", "MARK", "mangle")[0] >= 1
        assert site.hits(family, "POSTROUTING", "quaywall: guard", "mangle") == [0]
    site.tables("-D FORWARD -j DOCKER-USER")
    assert not site.to(STRANGER, "web") and not site.to(STRANGER6, "web")
    for family in FAMILIES:
        assert site.hits(family, "POSTROUTING", "quaywall: guard", "mangle")[0] >= 1


def test_marks_of_other_tools_stay(site: Site) -> None:
    site.tables("-t mangle -A PREROUTING -j MARK --set-xmark 0xab/0xffffffff")
    site.tables("-t mangle -A POSTROUTING -m mark --mark 0xab")
    site.apply(WEB)
    for friend, stranger in ((FRIEND, STRANGER), (FRIEND6, STRANGER6)):
        site.tables("-t mangle -Z")
        assert site.to(friend, "web") and site.to(stranger, "other") and not site.to(stranger, "web")
        family = IPV6 if ":" in friend else IPV4
        marked = site.hits(family, "PREROUTING", "-j MARK", "mangle")[0]
        denied = site.hits(family, "QUAYWALL-DENY", "MARK", "mangle")[0]
        assert denied >= 1
        # All that came in and was not denied went out with its mark (or came to the host itself, as neighbours do).
        assert site.hits(family, "POSTROUTING", "--mark 0xab", "mangle")[0] >= 6
        assert marked > denied


def test_a_guard_for_a_connection_that_is_open_already(site: Site) -> None:
    with connection(site.client, STRANGER, chains.addresses("web")[0], 8080) as open_before:
        site.apply(WEB)
        site.tables("-D FORWARD -j DOCKER-USER")
        open_before.sendall(b"x")
        deadline = time.monotonic() + 5
        while int.from_bytes(open_before.getsockopt(6, 11, 104)[24:28], "little"):
            assert time.monotonic() < deadline
            time.sleep(0.005)


# The default ---------------------------------------------------------------------------------------------------------


def test_default_drop_by_packets(site: Site) -> None:
    # A rule of another tool opens what an engine would not.
    site.reset({IPV4: ["-d 198.51.100.0/24 -j ACCEPT"], IPV6: ["-d 2001:db8:1::/64 -j ACCEPT"]})
    assert connects(site.client, STRANGER, LAN, 8080) and connects(site.client, STRANGER6, LAN6, 8080)
    outside = both(
        "stranger to web", "stranger to web, published", "stranger to other", "stranger to far", "lan to far"
    )
    site.apply(default="drop")
    friend = both("friend to web", "friend to web, published")
    assert site.closed() == outside | friend
    assert connects(site.client, STRANGER, LAN, 8080) and connects(site.client, STRANGER6, LAN6, 8080)
    site.apply({**WEB, "otherwise": "none"}, default="drop")
    assert site.closed() == outside
    site.tables("-D FORWARD -j DOCKER-USER")
    assert site.closed() == outside
    site.apply({**WEB, "otherwise": "none"}, default="drop", outside_interfaces=["outside"])
    assert site.closed() == outside - both("lan to far")
    assert connects(site.client, STRANGER, LAN, 8080) and connects(site.client, STRANGER6, LAN6, 8080)
    site.host.call(chains.remove)
    assert site.closed() == set()


# Long lists ----------------------------------------------------------------------------------------------------------

MANY = ["10.%d.%d.0/24" % divmod(number, 256) for number in range(300)]
MANY6 = ["2001:db8:ffff:%x::/64" % number for number in range(200)]
#: As a user may write them, and as the kernel does not print them.
ODD = ["2001:0db8:00c0::0001", "::ffff:192.0.2.1", "2001:db8:c0:1::7/64", "192.0.2.77/25", "192.0.2.200/32", "::/1"]


def test_a_long_list_by_packets(site: Site) -> None:
    names = [FRIEND, FRIEND6]
    result = site.apply({**WEB, "source": [*MANY, *MANY6, *ODD, *names]})
    assert sorted(len(made.networks) for made in result.sets_after.values()) == [205, 303]
    assert all(len(change.after) < 12 for change in result.changes.values())
    # The half of all IPv6 addresses that ::/1 is has the stranger in it, and not the container.
    strangers6 = {"stranger to web, IPv6", "stranger to web, published, IPv6"}
    assert site.closed() == DENIED - strangers6
    site.apply({**WEB, "source": [*MANY, *MANY6, *names]})
    assert site.closed() == DENIED
    site.tables("-D FORWARD -j DOCKER-USER")
    assert site.closed() == DENIED
    # Only the sets change.
    before = [listed(site.host, site.variant, family) for family in FAMILIES]
    site.apply({**WEB, "source": [*MANY, *MANY6, STRANGER, STRANGER6]})
    site.apply({**WEB, "source": [*MANY, *MANY6, STRANGER, STRANGER6]})
    assert [listed(site.host, site.variant, family) for family in FAMILIES] == before
    friend = both("friend to web", "friend to web, published")
    assert site.closed() == friend | both("far to web")
    # Everybody is in the list.
    site.apply({**WEB, "source": [*MANY, *MANY6, "0.0.0.0/0", "::/0"]})
    assert site.closed() == set()
    site.host.call(chains.remove)
    assert site.host.run("ipset", "list", "-n") == b""


# Rules of others -----------------------------------------------------------------------------------------------------


def foreign(host: Host, variant: str) -> dict[tuple[str, str], list[bytes]]:
    """All that is not ours, with its counters: each table's lines without our chains and rules."""
    found = {}
    for family in FAMILIES:
        for table in ("filter", "mangle", "nat"):
            lines = save(host, variant, family, "-c", table=table).splitlines()
            kept = [line for line in lines if b"quaywall" not in line and b"QUAYWALL" not in line]
            # The counters of chains and of rules that every packet meets move by themselves.
            found[family, table] = [
                re.sub(rb" \[\d+:\d+\]\Z", b"", line) if line[:1] == b":" else line for line in kept
            ]
    return found


def test_what_is_of_others_stays_byte_for_byte(host: Host, variant: str) -> None:
    user = [
        '-s 203.0.113.66/32 -m comment --comment "a \\"b\\" \xe4\udcff" -j DROP -c 5 500',
        "-i eth8 -j BANS -c 6 600",
        "-i eth9 -j ACCEPT -c 7 700",
        "-j RETURN -c 8 800",
        "-p udp -j DROP -c 9 900",
    ]
    for family in FAMILIES:
        rules = [rule for rule in user if family == IPV4 or "203.0" not in rule]
        table = docker_table(rules, ["-j DOCKER-USER", "-i eth7 -j ACCEPT -c 3 300"], more="BANS").replace(
            "COMMIT\n", DOCKER_FORWARD + "-A BANS -p tcp -j DROP -c 4 400\nCOMMIT\n"
        )
        load(host, variant, family, table)
        mangle = "*mangle\n:FORWARD ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n-A FORWARD -p tcp "
        mangle += "-m tcp --tcp-flags SYN,RST SYN "
        load(
            host,
            variant,
            family,
            mangle + "-j TCPMSS --clamp-mss-to-pmtu -c 1 100\n-A POSTROUTING -j ACCEPT -c 2 200\nCOMMIT\n",
        )
        load(
            host,
            variant,
            family,
            "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o eth9 -j MASQUERADE -c 2 2\nCOMMIT\n",
        )
    before = foreign(host, variant)
    steps: list[tuple[list[dict[str, t.Any]], dict[str, t.Any]]] = [
        ([WEB], {}),
        ([WEB, {"name": "port", "published_port": "53", "protocol": "udp", "action": "reject"}], {"default": "drop"}),
        ([{**WEB, "source": MANY}], {"established": "return"}),
        ([], {"established": "omit", "guard": False}),
        ([WEB], {"default": "drop", "outside_interfaces": ["eth0"]}),
    ]
    for policies, settings in steps:
        assert host.call(chains.apply, policies, **settings).changed
        assert not host.call(chains.apply, policies, **settings).changed
        assert foreign(host, variant) == before
    assert host.call(chains.remove).changed
    assert foreign(host, variant) == before
    assert all(
        b"quaywall" not in save(host, variant, family, table=table).lower()
        for family in FAMILIES
        for table in ("filter", "mangle")
    )
    assert not host.call(chains.remove).changed
    # Told to, all that is of others in DOCKER-USER goes, and nowhere else.
    assert host.call(chains.apply, [WEB], foreign_rules="remove").changed
    assert not host.call(chains.apply, [WEB], foreign_rules="remove").changed
    for family in FAMILIES:
        specs = [rule.spec for rule in counted(save(host, variant, family, "-c"))]
        assert specs[0] == ESTABLISHED and specs[-1] == "-j RETURN"
        assert all('"quaywall:web"' in spec for spec in specs[1:-1])
    found = foreign(host, variant)
    assert {key: lines for key, lines in found.items() if key[1] != "filter"} == {
        key: lines for key, lines in before.items() if key[1] != "filter"
    }


# Before Docker -------------------------------------------------------------------------------------------------------


def test_before_docker_is_there(host: Host, variant: str) -> None:
    """No chain, no table: what the plain iptables of the machine is for is what an engine will use."""

    def finder(program: str) -> str | None:
        # A machine whose plain iptables is this variant.
        if program in ("iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore"):
            return find(program.replace("tables-", "tables-%s-" % variant))
        return None if "-legacy-" in program or "-nft-" in program else find(program)

    from ansible_collections.quaywall.docker.plugins.module_utils._baseline import Settings, parse_policies
    from ansible_collections.quaywall.docker.plugins.module_utils._iptables import Firewall
    from ansible_collections.quaywall.docker.plugins.module_utils._reconcile import Job, bring

    def run(dry: bool) -> t.Any:
        policies = parse_policies([{"name": "port", "published_port": "9000", "action": "drop"}, WEB], 100)
        job = Job(Settings(default="drop"), policies, None, chains.bindings, tuple, True)
        return bring(Firewall(run_command, finder), Ipset(run_command, finder), job, dry)

    before = everything(host)
    assert host.call(run, True).changed
    found = everything(host)
    assert {**found, "run": []} == {**before, "run": []}
    result = host.call(run, False)
    assert result.changed and list(result.wanted.waiting) == ["web"]
    assert set(result.changes) == set(FAMILIES)
    assert {change.variant for change in result.changes.values()} == {variant}
    assert not host.call(run, False).changed
    for family in FAMILIES:
        rules = listed(host, variant, family).decode().splitlines()
        assert rules[0] == "-A DOCKER-USER " + ESTABLISHED
        assert '--ctorigdstport 9000 --ctdir ORIGINAL -m comment --comment "quaywall:port action" -j DROP' in rules[1]
        assert rules[2:] == [
            '-A DOCKER-USER -m comment --comment "quaywall: default drop" -j QUAYWALL-DEFAULT',
            "-A DOCKER-USER -j RETURN",
        ]
        assert listed(host, variant, family, "FORWARD") == b"-A FORWARD -j DOCKER-USER\n"
        assert listed(host, variant, family, "QUAYWALL-DEFAULT") == (
            b"-A QUAYWALL-DEFAULT -i docker0 -j RETURN\n-A QUAYWALL-DEFAULT -o docker0 -j DROP\n"
        )
        assert b"QUAYWALL-DENY" in save(host, variant, family, table="mangle")


# Killed --------------------------------------------------------------------------------------------------------------

MOMENTS = 9


def version(number: int) -> dict[str, t.Any]:
    """Two hundred rules of which half differ, a set of each family, and another default."""
    policies: list[dict[str, t.Any]] = [
        {"name": "p%d" % port, "published_port": str(port), "action": "drop"}
        for port in (p + (10000 * number if p % 2 else 0) for p in range(1, 61))
    ]
    sources = ["10.%d.%d.0/24" % (number, third) for third in range(200)]
    sources += ["2001:db8:%x:%x::/64" % (number, third) for third in range(200)]
    policies.append({"name": "long", "published_port": "9999", "action": "accept", "source": sources})
    return {"policies": policies, "settings": {"established": ("accept", "return")[number]}}


class View(t.NamedTuple):
    """What there is of ours."""

    user: tuple[bytes, ...]
    guard: tuple[bytes, ...]
    sets: tuple[tuple[str, ...], ...]


def view(host: Host, variant: str) -> View:
    sets = host.call(Ipset(run_command, find).read)
    guards = [save(host, variant, family, table="mangle") for family in FAMILIES]
    return View(
        tuple(listed(host, variant, family) for family in FAMILIES),
        tuple(guards),
        tuple(tuple(sorted(sets[name].networks)) for name in sorted(sets) if not name.endswith("-new")),
    )


def go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    process.stdin.write(b"go\n")
    process.stdin.flush()


def test_killed_at_any_moment(host: Host, variant: str, tmp_path: Path) -> None:
    for family in FAMILIES:
        load(host, variant, family, docker_table(["-i eth9 -j DROP", "-i eth8 -j ACCEPT", "-j RETURN"]))
    views, paths = [], []
    for number in (0, 1):
        paths.append(tmp_path / str(number))
        paths[-1].write_text(json.dumps(version(number)), encoding="utf-8")
        host.call(chains.apply, version(number)["policies"], None, **version(number)["settings"])
        views.append(view(host, variant))
    assert all(left != right for left, right in zip(views[0], views[1], strict=True))

    def start(number: int) -> subprocess.Popen[bytes]:
        return host.start(sys.executable, "-m", "kernel.chains", "once", str(paths[number]), stdin=-1, stdout=-1)

    chance = random.Random(20261123)
    seen: Counter[str] = Counter()
    # How long a whole run takes here and now; moments are spread over that, and a bit more.
    process = start(0)
    started = time.monotonic()
    go(process)
    assert process.communicate(timeout=60)[0] == b"changed\n"
    whole = 1.2 * (time.monotonic() - started)
    old = 0
    following = start(1)
    try:
        for moment in range(MOMENTS):
            new = 1 - old
            process, following = following, start(old)
            go(process)
            time.sleep(whole * (moment + chance.random()) / MOMENTS)
            if moment % 3:
                os.kill(process.pid, signal.SIGKILL)
                process.communicate()
                settle(host, following.pid)
            else:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
            found = view(host, variant)
            states = []
            for kind in View._fields:
                for index, part in enumerate(getattr(found, kind)):
                    kinds = [getattr(views[which], kind)[index] for which in (old, new)]
                    assert part in kinds, (kind, index)
                    states.append("on"[kinds.index(part)])
            seen["".join(states)] += 1
            # The next run works at once, and leaves nothing of a killed one.
            started = time.monotonic()
            host.call(chains.apply, version(new)["policies"], None, **version(new)["settings"])
            assert time.monotonic() - started < 10
            assert view(host, variant) == views[new]
            assert len(host.run("ipset", "list", "-n").split()) == 2
            old = new
    finally:
        following.kill()
        following.communicate()
    print(variant, dict(seen))
    assert len(seen) > 1


def test_the_next_run_waits_for_the_set_that_a_killed_one_is_filling(host: Host, variant: str, tmp_path: Path) -> None:
    for family in FAMILIES:
        load(host, variant, family, docker_table(["-j RETURN"]))
    path = tmp_path / "0"
    path.write_text(json.dumps(version(0)), encoding="utf-8")
    process = host.start(sys.executable, "-m", "kernel.chains", "once", str(path), "0.5", stdin=-1, stdout=-1)
    go(process)
    time.sleep(0.35)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    host.call(chains.apply, version(1)["policies"], None, **version(1)["settings"])
    written = view(host, variant)
    settle(host, 0)
    assert view(host, variant) == written
    assert len(host.run("ipset", "list", "-n").split()) == 2
    assert not host.call(chains.apply, version(1)["policies"], None, **version(1)["settings"]).changed


# At once -------------------------------------------------------------------------------------------------------------


def test_the_modules_and_the_follower_at_once(host: Host, variant: str, tmp_path: Path) -> None:
    """What is in the kernel in the end is what is stored, once each; the follower took back nothing."""
    for family in FAMILIES:
        load(host, variant, family, docker_table(["-i eth8 -j ACCEPT", "-j RETURN"]))
    mine = {"name": "mine", "container": "other", "source": MANY[:120], "action": "accept"}
    lists = [[WEB], [WEB, {**WEB, "name": "far", "container": "far"}]]
    files = {
        "chain": [{"rules": rules, "default": default} for rules in lists for default in ("drop", "return")],
        "rule": [mine, {**mine, "source": [FRIEND]}, {"name": "mine", "state": "absent"}, mine],
        "follower": [None],
    }
    for what, document in files.items():
        (tmp_path / what).write_text(json.dumps(document), encoding="utf-8")
    host.call(chains.run_module, chains.docker_user_chain, {"rules": [WEB], "store": True}, Store(str(tmp_path)))
    processes = [
        host.start(sys.executable, "-m", "kernel.chains", "loop", what, str(tmp_path), "3", stdin=-1, stdout=-1)
        for what in files
    ]
    try:
        for process in processes:
            go(process)
        said = [process.communicate(timeout=60)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0], said
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    print(variant, said)
    assert all(int(text.split()[-1]) >= 2 for text in said)
    stored = Store(str(tmp_path)).read()
    assert stored is not None
    names = {policy["name"] for policy in stored.policies}
    assert "web" in names
    for family in FAMILIES:
        specs = [rule.spec for rule in counted(save(host, variant, family, "-c"))]
        assert max(Counter(specs).values()) == 1
        assert {match for spec in specs for match in re.findall(r'"quaywall:([a-z]+)"', spec)} <= names
        assert [spec for spec in specs if "quaywall" not in spec] == ["-i eth8 -j ACCEPT", "-j RETURN"]
    reconciler = host.call(chains.follower, Store(str(tmp_path)))
    outcome = host.call(reconciler.run, chains.INVENTORY, chains.bindings, dry=True)
    assert not outcome.changed, outcome.messages


def test_a_disk_that_is_full_or_read_only_leaves_kernel_and_store_as_they_were(host: Host) -> None:
    for family in FAMILIES:
        load(host, "nft", family, docker_table(["-j RETURN"]))
    folder = "/run/quaywall-store"
    host.call(os.mkdir, folder)
    host.run("mount", "-t", "tmpfs", "-o", "size=16k,nr_inodes=8", "none", folder)
    store = Store(folder, folder)
    host.call(chains.run_module, chains.docker_user_chain, {"rules": [WEB], "store": True}, store)
    before, kept = everything(host), host.read(folder + "/policies.json")
    many = {**WEB, "source": MANY}
    for how in ("size=16k,nr_inodes=8", "ro"):
        if how == "ro":
            host.run("mount", "-o", "remount,ro", folder)
        for module, options in (
            (chains.docker_user_chain, {"rules": [many] + [{**many, "name": "x%d" % number} for number in range(9)]}),
            (chains.docker_user_rule, {**many, "name": "y", "source": [*MANY] * 10}),
        ):
            with pytest.raises(StoreError) as caught:
                host.call(chains.run_module, module, options, store)
            assert folder in str(caught.value) and str(caught.value).endswith(".")
            assert {**everything(host), "run": before["run"]} == before
            assert host.read(folder + "/policies.json") == kept
            assert host.call(os.listdir, folder) == ["policies.json"]


# Faults --------------------------------------------------------------------------------------------------------------


def test_a_guard_that_the_kernel_will_not_have_changes_nothing(host: Host, variant: str) -> None:
    """Somebody's rule leads to a chain of ours: it cannot be removed, and all stays as it was."""
    for family in FAMILIES:
        load(host, variant, family, docker_table(["-j RETURN"]))
    host.call(chains.apply, [WEB])
    host.run(tool(IPV4, variant), "-w", "10", "-t", "mangle", "-A", "OUTPUT", "-j", "QUAYWALL-GUARD")
    before = foreign(host, variant), view(host, variant)
    with pytest.raises(FirewallError) as caught:
        host.call(chains.remove)
    assert str(caught.value).endswith(".")
    assert (foreign(host, variant), view(host, variant)) == before
    assert variant == LEGACY or b"QUAYWALL-GUARD" in host.run("nft", "list", "table", "ip", "mangle")
