# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The whole chain from settings and policies: its laws on a kernel in memory, and by packets there."""

from __future__ import annotations

import random
import typing as t
from contextlib import suppress

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils._baseline import (
    NOTHING,
    Settings,
    Wanted,
    compile_chain,
    parse_policies,
    plan_chain,
    plan_removal,
)
from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER, Table, is_managed, parse_dump
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Binding, Container, Inventory, Network
from ansible_collections.quaywall.docker.plugins.module_utils._plan import Plan, apply, jump_is_first
from ansible_collections.quaywall.docker.plugins.module_utils._policy import PolicyError
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, parse
from ansible_collections.quaywall.docker.tests.unit.packets import Packet, judge
from ansible_collections.quaywall.docker.tests.unit.support import Kernel, Stored

# A host --------------------------------------------------------------------------------------------------------------

FIRST = Network("bridge", "b" * 64, "bridge", "docker0", False, ("172.17.0.0/16",))
DUAL = Network("dual", "d" * 64, "bridge", "br-dual", True, ("172.31.0.0/24", "fd00:31::/64"))


def container(name: str, network: Network, *addresses: str) -> Container:
    return Container(
        name, name.ljust(64, "0"), True, network.name, {"app": name}, {network.name: addresses},
        {network.name: network.id}, (),
    )  # fmt: skip


INVENTORY = Inventory(
    (
        container("one", FIRST, "172.17.0.2"),
        container("two", FIRST, "172.17.0.3"),
        container("dual", DUAL, "172.31.0.2", "fd00:31::2"),
    ),
    {"bridge": FIRST, "dual": DUAL},
)
PUBLISHED = {
    "one": (Binding("tcp", 80, 8080, "", True), Binding("udp", 53, 53, "", True)),
    "two": (),
    "dual": (Binding("tcp", 80, 8081, "", True),),
}


def bindings(found: Container) -> t.Tuple[Binding, ...]:
    return PUBLISHED[found.name]


def compiled(policies: t.Sequence[t.Mapping[str, t.Any]], threshold: int = 2, **options: t.Any) -> Wanted:
    found = {"inventory": INVENTORY, "wait": False, "ip6_dnat": True, "settings": Settings(), **options}
    listed = parse_policies(policies, threshold)
    return compile_chain(listed, found["inventory"], bindings, (), found["ip6_dnat"], found["wait"], found["settings"])


class Tables:
    """Both tables of one family."""

    def __init__(self, chain: t.Optional[t.Sequence[str]], forward: t.Sequence[str], family: str = IPV4) -> None:
        chains: t.Dict[str, t.Sequence[str]] = {"INPUT": [], "FORWARD": forward, "OUTPUT": [], "f2b": [BAN]}
        if chain is not None:
            chains[DOCKER_USER] = chain
        self.family = family
        self.filter = Kernel(chains)
        self.mangle = Kernel(
            {
                "INPUT": ["-j TTL --ttl-set 64"],
                "FORWARD": ["-j TTL --ttl-set 64"],
                "POSTROUTING": ["-j CHECKSUM --checksum-fill"],
            },
            "mangle",
        )

    def saved(self) -> t.Dict[str, t.Tuple[str, ...]]:
        """All chains; the order in which they were made says nothing."""
        found = {"filter " + name: self.filter.texts(name) for name in self.filter.chains}
        return {**found, **{"mangle " + name: self.mangle.texts(name) for name in self.mangle.chains}}

    def table(self, kernel: Kernel) -> Table:
        return next(iter(parse_dump(kernel.save(), self.family).tables.values()))

    def plan(self, wanted: Wanted, options: Settings, unknown: bool = False) -> Plan:
        return plan_chain(self.table(self.filter), self.table(self.mangle), wanted, options, self.family, unknown)

    def removal(self) -> Plan:
        return plan_removal(self.table(self.filter), self.table(self.mangle), self.family)

    def restore(self, text: str, test: bool = False) -> None:
        for part in text.split("COMMIT\n")[:-1]:
            kernel = self.mangle if part.startswith("*mangle\n") else self.filter
            kernel.restore(part + "COMMIT\n", test)

    def foreign(self, chain: str = DOCKER_USER) -> t.List[Stored]:
        return [rule for rule in self.filter.chains.get(chain, []) if not is_managed(parse(rule.text, self.family))]


BAN, OPEN = "-s 203.0.113.66/32 -j DROP", "-s 10.9.0.0/16 -j ACCEPT"
ESTABLISHED = '-m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "quaywall: established" -j ACCEPT'
JUMP, RETURN = "-j DOCKER-USER", "-j RETURN"
FOREIGN = (BAN, "-j f2b", OPEN, RETURN, "-i eth9 -j DROP", "", '-m comment --comment "see quaywall:web" -j DROP')
#: Rules of ours as an earlier run may have left them, right or spoilt.
OURS = (
    ESTABLISHED,
    ESTABLISHED.replace("-j ACCEPT", "-j RETURN"),
    '-m comment --comment "quaywall: default drop" -j ACCEPT',
    '-d 172.17.0.2/32 -m comment --comment "quaywall:a" -j DROP',
    '-d 172.17.0.9/32 -m comment --comment "quaywall:gone priority 7" -j ACCEPT',
)

# Settings and policies made up ---------------------------------------------------------------------------------------

TARGETS: t.Tuple[t.Dict[str, t.Any], ...] = (
    {"container": "one"},
    {"container": "two"},
    {"container": "dual"},
    {"labels": {"app": "one"}},
    {"network": "bridge"},
    {"network": "dual"},
    {"destination": "172.17.0.0/29"},
    {"destination": "fd00:31::/112"},
    {"published_port": "8080"},
    {"published_port": "8080:8081"},
    {"published_port": "53", "protocol": "udp"},
)
SOURCES = ("203.0.113.0/28", "203.0.113.9", "10.9.0.0/16", "0.0.0.0/0", "172.31.0.0/24", "2001:db8::/64", "2001:db8::9")
OPTIONS: t.Dict[str, t.Tuple[t.Any, ...]] = {
    "action": ("accept", "return", "drop", "reject"),
    "in_interface": (None, None, "eth0", "!eth0", "br-+"),
    "same_network": ("allow", "filter"),
    "match": (None, None, "address", "published_port"),
    "priority": (500, 10, 900),
    "log": (None, None, {}),
    "protocol": (None, "tcp", "all"),
    "otherwise": (None, None, "drop", "return", "none"),
}


def _pool() -> t.List[t.Dict[str, t.Any]]:
    """Policies that can be compiled, the same each time: to look for them in each example would take too long."""
    chance = random.Random(20261123)
    found: t.List[t.Dict[str, t.Any]] = []
    while len(found) < 250:
        policy = {name: chance.choice(values) for name, values in OPTIONS.items()}
        policy.update(chance.choice(TARGETS), name="x")
        if chance.random() < 0.7:
            policy["source"] = chance.sample(SOURCES, chance.randint(1, 4))
        with suppress(PolicyError):
            compiled([policy])
            found.append(policy)
    return found


policies = st.lists(st.sampled_from(_pool()), max_size=4).map(
    lambda found: [{**policy, "name": "abcd"[index]} for index, policy in enumerate(found)]
)


def _settings(given: t.Dict[str, t.Any]) -> Settings:
    if given["default"] == "return":
        given = {**given, "outside_interfaces": ()}
    elif given["established"] == "omit":
        given = {**given, "established": "accept"}
    return Settings.from_options(given)


all_settings = st.fixed_dictionaries(
    {
        "established": st.sampled_from(("accept", "return", "omit")),
        "default": st.sampled_from(("return", "drop")),
        "outside_interfaces": st.sampled_from(((), ("eth0",), ("eth0", "wg+"))),
        "foreign_rules": st.sampled_from(("keep", "keep", "remove")),
        "guard": st.booleans(),
    }
).map(_settings)
chains = st.none() | st.lists(st.sampled_from(FOREIGN + OURS), max_size=8)
forwards = st.lists(st.sampled_from((JUMP, "-i lo -j ACCEPT", "-o docker0 -j ACCEPT")), max_size=3)
families = st.sampled_from((IPV4, IPV6))

# Laws ----------------------------------------------------------------------------------------------------------------


def try_compile(given: t.Sequence[t.Mapping[str, t.Any]], how: Settings) -> Wanted:
    try:
        return compiled(given, settings=how)
    except PolicyError as error:
        # Policies made up may disagree, and then nothing is planned.
        assume("disagree" not in str(error))
        raise


def check(tables: Tables, made: Plan, keep: bool = True) -> None:
    """Carry the plan out, and look at what became of it."""
    before, foreign = tables.saved(), tables.foreign()
    there = tuple(rule.text for rule in tables.filter.chains.get(DOCKER_USER, ()))
    assert made.before == there
    assert apply(made.operations, made.before) == made.after
    tables.restore(made.transaction(), test=True)
    assert tables.saved() == before
    tables.restore(made.transaction())
    assert tuple(rule.text for rule in tables.filter.chains.get(DOCKER_USER, ())) == made.after
    for own in made.own:
        kernel = tables.mangle if own.table == "mangle" else tables.filter
        assert (kernel.texts(own.name) if own.name in kernel.chains else None) == own.after
    if keep:
        kept = tables.foreign()
        if len(kept) > len(foreign):
            assert kept.pop().text == RETURN
        assert kept == foreign
    else:
        assert [rule.text for rule in tables.foreign()] in ([], [RETURN])
    # What is of others is the very same in all other chains.
    assert tables.filter.texts("f2b") == (BAN,)
    assert tables.mangle.texts("FORWARD")[-1] == "-j TTL --ttl-set 64"
    assert tables.mangle.texts("POSTROUTING")[-1] == "-j CHECKSUM --checksum-fill"


@given(chains, forwards, policies, all_settings, families, st.booleans(), policies, all_settings)
@settings(max_examples=100)
def test_laws(
    chain: t.Optional[t.List[str]],
    forward: t.List[str],
    given_policies: t.List[t.Dict[str, t.Any]],
    given_settings: Settings,
    family: str,
    unknown: bool,
    then: t.List[t.Dict[str, t.Any]],
    then_settings: Settings,
) -> None:
    """Once, again, back; then to something else, again, back; and away."""
    wanted, other = try_compile(given_policies, given_settings), try_compile(then, then_settings)
    # A chain that is not there has no jump.
    tables = Tables(chain, [rule for rule in forward if rule != JUMP or chain is not None], family)
    for now, how in ((wanted, given_settings), (other, then_settings)):
        before = tables.saved()
        made = tables.plan(now, how, unknown)
        check(tables, made, how.foreign_rules == "keep")
        after = tables.saved()
        assert tables.plan(now, how, unknown).empty
        # What is asked for is there.
        if DOCKER_USER in tables.filter.chains:
            assert tables.filter.texts("FORWARD")[0] == JUMP
            assert jump_is_first(tables.table(tables.filter))
            assert RETURN in made.after
            wanted_first = {"accept": ["ACCEPT"], "return": ["RETURN"], "omit": []}[how.established]
            assert [r.rpartition(" ")[2] for r in made.after if "quaywall: established" in r] == wanted_first
        else:
            assert family == IPV6
            assert not now.rules.get(family)
        assert ("QUAYWALL-GUARD" in tables.mangle.chains) <= how.guard
        assert ("QUAYWALL-PROXY" in tables.mangle.chains) <= how.guard
        tables.restore(made.undo())
        assert tables.saved() == before
        tables.restore(made.transaction())
        assert tables.saved() == after
    made = tables.removal()
    check(tables, made)
    assert "quaywall" not in str(tables.saved()).replace("see quaywall:web", "").lower()
    assert tables.removal().empty


ADDRESSES = ("203.0.113.9", "203.0.113.5", "10.9.1.1", "198.51.100.1", "172.17.0.3", "172.31.0.2")
ADDRESSES6 = ("2001:db8::9", "2001:db8::5", "2001:db8:1::1", "fd00:31::7")
_packets = st.builds(
    lambda source, source6, target, incoming, protocol, published, state: (
        source, source6, target, incoming, protocol, published, state
    ),
    st.sampled_from(ADDRESSES),
    st.sampled_from(ADDRESSES6),
    st.sampled_from(
        (("172.17.0.2", "docker0"), ("172.17.0.3", "docker0"), ("172.31.0.2", "br-dual"), ("198.51.100.7", "eth0"))
    ),
    st.sampled_from(("eth0", "eth1", "wg0", "docker0", "br-dual")),
    st.sampled_from((("tcp", 80), ("tcp", 443), ("udp", 53), ("icmp", 0))),
    st.sampled_from((None, 8080, 8081, 53)),
    st.sampled_from(("NEW", "NEW", "NEW", "ESTABLISHED", "RELATED")),
)  # fmt: skip


def packet_of(made: t.Any, family: str) -> Packet:
    source, source6, (address, outgoing), incoming, (protocol, port), published, state = made
    host = "203.0.113.1"
    if family == IPV6:
        source, address, outgoing, host = source6, "fd00:31::2", "br-dual", "2001:db8::1"
    return Packet(
        source, address, incoming, outgoing, protocol, port, state,
        None if published is None or protocol == "icmp" else (host, published),
    )  # fmt: skip


@given(policies, all_settings, families, st.lists(_packets, min_size=20, max_size=20))
@settings(max_examples=100)
def test_the_guard_denies_what_docker_user_denies_and_nothing_else(
    given_policies: t.List[t.Dict[str, t.Any]], given_settings: Settings, family: str, made: t.List[t.Any]
) -> None:
    how = given_settings._replace(guard=True)
    wanted = try_compile(given_policies, how)
    tables = Tables([], [JUMP], family)
    tables.restore(tables.plan(wanted, how).transaction())
    tables.mangle.chains["FORWARD"].pop()
    tables.mangle.chains["POSTROUTING"].pop()
    for one in made:
        packet = packet_of(one, family)._replace(mark=0x7)
        own = judge(tables.filter, DOCKER_USER, packet, wanted.sets)
        marked = judge(tables.mangle, "FORWARD", packet, wanted.sets)
        assert marked.verdict is None
        dropped = judge(tables.mangle, "POSTROUTING", packet._replace(mark=marked.mark), wanted.sets).verdict
        denied = own.verdict in ("DROP", "REJECT")
        if packet.state != "NEW":
            # Replies are never the guard's, whatever the first rule was told.
            assert dropped is None
            assert marked.mark == 0x7
            assert not denied or how.established == "omit"
            continue
        assert (dropped == "DROP") == denied
        # The mark of what passes is what another tool gave it, and nothing is logged twice.
        assert denied or marked.mark == 0x7
        assert marked.logged == 0


#: Host port, protocol, and where Docker leads it to, by family.
DOORS = {
    8080: ("tcp", 80, {IPV4: ("172.17.0.2", "docker0")}),
    53: ("udp", 53, {IPV4: ("172.17.0.2", "docker0")}),
    8081: ("tcp", 80, {IPV4: ("172.31.0.2", "br-dual"), IPV6: ("fd00:31::2", "br-dual")}),
}


@given(
    policies.filter(lambda found: all(policy["match"] != "address" for policy in found)),
    all_settings,
    families,
    st.lists(
        st.tuples(st.sampled_from(ADDRESSES[:4]), st.sampled_from(ADDRESSES6[:3]), st.sampled_from(("eth0", "eth1")))
    ),
)
@settings(max_examples=100)
def test_who_comes_in_to_docker_proxy_is_denied_as_docker_user_denies(
    given_policies: t.List[t.Dict[str, t.Any]],
    given_settings: Settings,
    family: str,
    clients: t.List[t.Tuple[str, str, str]],
) -> None:
    how = given_settings._replace(guard=True)
    wanted = try_compile(given_policies, how)
    tables = Tables([], [JUMP], family)
    tables.restore(tables.plan(wanted, how).transaction())
    tables.mangle.chains["INPUT"].pop()
    host = "203.0.113.1" if family == IPV4 else "2001:db8::1"
    for four, six, incoming in clients:
        source = four if family == IPV4 else six
        for host_port, (protocol, port, places) in DOORS.items():
            if family not in places:
                continue
            address, bridge = places[family]
            forwarded = Packet(source, address, incoming, bridge, protocol, port, published=(host, host_port))
            local = Packet(source, host, incoming, "", protocol, host_port)
            denied = judge(tables.filter, DOCKER_USER, forwarded, wanted.sets).verdict in ("DROP", "REJECT")
            assert (judge(tables.mangle, "INPUT", local, wanted.sets).verdict == "DROP") == denied
            # Replies, the host itself, and containers, which come in that way as a rule.
            for passing in (
                local._replace(state="ESTABLISHED"),
                local._replace(incoming="lo"),
                local._replace(incoming="docker0"),
                local._replace(incoming="br-dual"),
            ):
                assert judge(tables.mangle, "INPUT", passing, wanted.sets).verdict is None
        # What no container publishes is no business of ours.
        for other in (22, 80, 9999):
            unpublished = Packet(source, host, incoming, "", "tcp", other)
            assert judge(tables.mangle, "INPUT", unpublished, wanted.sets).verdict is None


def test_a_range_of_published_ports_leaves_the_hosts_own_alone() -> None:
    policy = {"name": "all", "published_port": "1:65535", "action": "drop"}
    tables = Tables([], [JUMP])
    tables.restore(tables.plan(compiled([policy]), Settings()).transaction())
    assert [rule.rpartition(" -m comment")[0] for rule in tables.mangle.texts("QUAYWALL-PROXY")[4:]] == [
        "-p tcp -m tcp --dport 8080:8081"
    ]


def test_ip6_of_a_container_that_has_none_comes_in_to_docker_proxy() -> None:
    policy = {"name": "one", "container": "one", "source": ["203.0.113.9"], "action": "accept"}
    wanted = compiled([policy], ip6_dnat=False)
    tables = Tables(None, [], IPV6)
    assert tables.plan(wanted, Settings()).transaction().startswith("*mangle")
    tables.restore(tables.plan(wanted, Settings()).transaction())
    assert DOCKER_USER not in tables.filter.chains
    packet = Packet("2001:db8::9", "2001:db8::1", "eth0", "", "tcp", 8080)
    assert judge(tables.mangle, "INPUT", packet, {}).verdict == "DROP"
    only_four = compiled([{**policy, "ip_version": "ipv4"}], ip6_dnat=False)
    tables.restore(tables.plan(only_four, Settings()).transaction())
    assert "QUAYWALL-PROXY" not in tables.mangle.chains


def test_what_cannot_be_looked_up_stays_closed_to_docker_proxy_too() -> None:
    given_policies = [{"name": "one", "container": "one", "action": "drop"}]
    how = Settings.from_options({"default": "drop"})
    tables = Tables([], [JUMP])
    tables.restore(tables.plan(compiled(given_policies, settings=how), how).transaction())
    before = tables.mangle.texts("QUAYWALL-PROXY")
    gone = compiled(given_policies, settings=how, inventory=None, wait=True)
    tables.restore(tables.plan(gone, how).transaction())
    assert tables.mangle.texts("QUAYWALL-PROXY") == before


@given(st.sampled_from(((), ("eth0",))), families, st.lists(_packets, min_size=20, max_size=20))
def test_default_drop_closes_what_comes_from_outside_to_containers(
    outside: t.Tuple[str, ...], family: str, made: t.List[t.Any]
) -> None:
    tables = Tables([OPEN, RETURN], [JUMP], family)
    how = Settings(default="drop", outside_interfaces=outside)
    tables.restore(tables.plan(compiled([]), how).transaction())
    for one in made:
        packet = packet_of(one, family)
        found = judge(tables.filter, DOCKER_USER, packet, {}).verdict if family == IPV4 else None
        inside = ("docker0", "br-dual")
        from_outside = packet.incoming in outside if outside else packet.incoming not in inside
        closed = packet.outgoing in inside and from_outside and packet.state == "NEW"
        if family == IPV4:
            # What another tool accepts behind is still read for other traffic.
            opened = packet.source.startswith("10.9.") or packet.state != "NEW"
            assert found == ("DROP" if closed else "ACCEPT" if opened else None)


# By example ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"established": "maybe"}, "accept or return or omit"),
        ({"default": "reject"}, "return or drop"),
        ({"foreign_rules": "flush"}, "keep or remove"),
        ({"outside_interfaces": ["eth0"]}, "default: drop"),
        ({"default": "drop", "outside_interfaces": ["eth0", "a b"]}, "outside_interfaces[1]"),
        ({"default": "drop", "established": "omit"}, "established: omit"),
        ({"ipset_threshold": -1}, "ipset_threshold"),
    ],
)
def test_wrong_settings(given: t.Dict[str, t.Any], words: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Settings.from_options(given)
    text = str(caught.value)
    assert words in text
    assert text.isprintable()
    assert text.endswith(".")


def test_settings_that_are_left_out_are_the_defaults_of_the_module() -> None:
    """The documentation of docker_user_chain; the store leaves out what is a default."""
    assert Settings.from_options({}) == Settings("accept", "return", (), "keep", True, 100)
    assert Settings.from_options({"guard": False, "other": 1}).guard is False


def test_policies_of_a_list() -> None:
    port = {"name": "a", "published_port": "1", "action": "drop"}
    found = parse_policies([port, {**port, "name": "b", "ipset_threshold": 5}], 7)
    assert [(policy.name, policy.ipset_threshold) for policy in found] == [("a", 7), ("b", 5)]
    for wrong, words in (
        ([port, {**port, "name": "b", "action": None}], ("rules[1] (b): ", "No action")),
        ([port, {**port, "name": "b"}, port], ("rules[0] and rules[2]", "named a")),
        ([{"published_port": "1", "action": "drop"}], ("rules[0]", "name")),
    ):
        with pytest.raises(PolicyError) as caught:
            parse_policies(wrong, 0)
        for word in words:
            assert word in str(caught.value)


def test_what_cannot_be_looked_up_waits_or_fails() -> None:
    missing = {"name": "a", "container": "three", "action": "drop"}
    port = {"name": "b", "published_port": "1", "action": "drop"}
    found = compiled([missing, port], wait=True)
    assert list(found.waiting) == ["a"]
    assert "'three'" in found.waiting["a"]
    assert len(found.rules[IPV4]) == len(found.rules[IPV6]) == 1
    with pytest.raises(PolicyError, match=r"\APolicy a: There is no container 'three'"):
        compiled([missing, port])
    found = compiled([missing, port], wait=True, inventory=None)
    assert list(found.waiting) == ["a"]
    assert "Docker does not answer" in found.waiting["a"]


def test_a_family_that_nobody_uses_is_left_alone() -> None:
    tables = Tables(None, ["-i lo -j ACCEPT"], IPV6)
    wanted = compiled([{"name": "a", "container": "two", "action": "drop"}], ip6_dnat=False)
    assert tables.plan(wanted, Settings()).empty
    assert not tables.plan(wanted, Settings(), unknown=True).empty
    assert tables.plan(NOTHING, Settings()).empty


def test_a_line_break_of_somebody_in_a_comment_is_never_written() -> None:
    """It would end our line: what follows it would be a command of its own to iptables-restore (kernel-facts 3)."""
    hostile = '-m comment --comment "x\nCOMMIT\n*filter\n-A INPUT -j ACCEPT" -j DROP'
    tables = Tables([hostile, BAN], [JUMP])
    with pytest.raises(PolicyError) as caught:
        tables.plan(NOTHING, Settings(foreign_rules="remove"))
    assert "iptables -D DOCKER-USER 1" in str(caught.value)
    assert str(caught.value).isprintable()
    made = tables.plan(NOTHING, Settings())
    assert "\n-A INPUT" not in made.transaction() + made.undo()
