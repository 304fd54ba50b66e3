# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the follower does at one run, on a host in memory, and what it says of it."""

from __future__ import annotations

import json
import typing as t

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import (
    Binding,
    Container,
    Inventory,
    from_stored,
    to_stored,
)
from ansible_collections.quaywall.docker.plugins.module_utils._ipset import Ipset
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import Firewall, FirewallError
from ansible_collections.quaywall.docker.plugins.module_utils._reconcile import Outcome, Reconciler
from ansible_collections.quaywall.docker.plugins.module_utils._store import Store, StoreError
from ansible_collections.quaywall.docker.tests.unit.memory import (
    ADMIN,
    BRIDGE,
    DOCKER_29,
    DUAL,
    ESTABLISHED,
    INVENTORY,
    FakeDocker,
    Host,
    isolate,
    one,
)
from ansible_collections.quaywall.docker.tests.unit.support import Kernel

PORT = {"name": "metrics", "published_port": "9100", "action": "drop"}
NO_DOCKER: t.Dict[str, t.List[str]] = {"INPUT": [], "FORWARD": [], "OUTPUT": []}
ADMIN_RULES = [
    (
        "-s 203.0.113.10/32 -d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 "
        '-m comment --comment "quaywall:admin-ui" -j ACCEPT'
    ),
    '-d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 -m comment --comment "quaywall:admin-ui" -j DROP',
]
PORT_RULE = (
    "-p tcp -m conntrack --ctstate DNAT --ctorigdstport 9100 --ctdir ORIGINAL "
    '-m comment --comment "quaywall:metrics action" -j DROP'
)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: t.Any) -> None:
    isolate(monkeypatch, tmp_path)


class Site:
    def __init__(self, tmp_path: t.Any, *chains: t.Mapping[str, t.Sequence[str]]) -> None:
        self.host = Host(*chains)
        self.path = tmp_path
        self.store = Store(str(tmp_path), str(tmp_path))
        firewall = Firewall(self.host.run, self.host.find, 0.1, 0.1, str(tmp_path))
        ipset = Ipset(self.host.run, self.host.find, firewall.descriptors, 0, lambda: bool(self.host.sets))
        self.reconciler = Reconciler(firewall, ipset, self.store)

    def keep(self, *policies: t.Any, version: t.Any = 1, **options: t.Any) -> None:
        document = {"version": version, "settings": options, "policies": list(policies)}
        # Stored anew, as it really is: with another inode.
        new = self.path / "new"
        new.write_text(json.dumps(document))
        new.rename(self.store.path)

    def run(
        self,
        inventory: t.Optional[Inventory] = INVENTORY,
        bindings: t.Callable[[Container], t.Tuple[Binding, ...]] = FakeDocker(INVENTORY).bindings,
        **options: t.Any,
    ) -> Outcome:
        return self.reconciler.run(inventory, bindings, **options)

    def again(self, **options: t.Any) -> Outcome:
        """A dry run says what the run does, and then there is nothing to do."""
        before = self.host.everything()
        self.host.read_only = True
        first = self.run(dry=True, **options)
        self.host.read_only = False
        assert self.host.everything() == before
        second = self.run(**options)
        assert (first.changed, first.waiting, first.warnings) == (second.changed, second.waiting, second.warnings)
        assert first.messages == second.messages
        third = self.run(**options)
        assert (third.changed, third.messages) == (False, ())
        return second

    def texts(self, command: str = "iptables") -> t.List[str]:
        return list(self.host.tables[command, "nft"].texts(DOCKER_USER))


@pytest.fixture
def site(tmp_path: t.Any) -> Site:
    return Site(tmp_path)


def test_a_host_without_stored_policies_is_left_alone(site: Site) -> None:
    before = site.host.everything()
    found = site.run()
    assert not found.changed
    assert len(found.warnings) == 1
    assert site.store.path in found.warnings[0]
    assert site.host.everything() == before


def test_what_is_stored_comes_and_is_said(site: Site) -> None:
    site.keep(ADMIN)
    found = site.again()
    assert site.texts() == [ESTABLISHED, *ADMIN_RULES, "-j RETURN"]
    assert found.changed
    assert found.messages == (
        "IPv4 DOCKER-USER: wrote the baseline (1 rules)",
        "IPv4 DOCKER-USER: wrote policy admin-ui (2 rules) for 172.17.0.10",
        "IPv4 DOCKER-USER: brought the guard in mangle into line",
        "IPv6 DOCKER-USER: wrote the baseline (1 rules)",
    )
    assert not site.reconciler.legacy()


def test_a_container_that_moved(site: Site) -> None:
    site.keep(ADMIN)
    site.run()
    moved = Inventory((one("admin", BRIDGE, "172.17.0.11"),), INVENTORY.networks)
    found = site.again(inventory=moved)
    assert found.messages[0] == "IPv4 DOCKER-USER: rewrote policy admin-ui (2 rules) for 172.17.0.11"
    assert "172.17.0.10/" not in str(site.host.everything())


def test_a_container_that_went_and_comes(site: Site) -> None:
    site.keep(ADMIN, PORT)
    site.run()
    nobody = Inventory((), INVENTORY.networks)
    found = site.again(inventory=nobody)
    assert "IPv4 DOCKER-USER: took policy admin-ui out (2 rules)" in found.messages
    assert list(found.waiting) == ["admin-ui"]
    assert site.texts() == [ESTABLISHED, PORT_RULE, "-j RETURN"]
    found = site.again()
    assert found.waiting == {}
    assert "IPv4 DOCKER-USER: wrote policy admin-ui (2 rules) for 172.17.0.10" in found.messages


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda host: host.four.chains[DOCKER_USER].clear(), "wrote policy admin-ui"),
        (lambda host: host.four.chains["FORWARD"].pop(0), "put its jump into FORWARD"),
        (lambda host: host.four.insert("FORWARD", 0, "-i eth0 -j ACCEPT"), "moved its jump to the top"),
        (lambda host: host.four.insert(DOCKER_USER, 0, "-s 10.0.0.0/8 -j ACCEPT"), "put the rules in their order"),
        (lambda host: host.mangle["iptables"].chains["FORWARD"].clear(), "brought the guard in mangle into line"),
        (lambda host: host.mangle["iptables"].chains["QUAYWALL-DENY"].clear(), "brought the guard in mangle into line"),
        (lambda host: host.four.chains["QUAYWALL-DEFAULT"].clear(), "the default into line"),
        (lambda host: host.four.chains[DOCKER_USER].reverse(), ""),
        (lambda host: next(iter(host.sets.values())).elements.clear(), "holds 9 networks"),
    ],
)
def test_what_somebody_spoilt_is_made_right_and_said(site: Site, spoil: t.Any, said: str) -> None:
    long_port = {
        "name": "long",
        "published_port": "1",
        "source": ["10.0.0.%d" % n for n in range(9)],
        "action": "accept",
    }
    site.keep(ADMIN, long_port, default="drop", ipset_threshold=5)
    site.again()
    right = {name: set(kernel.texts(DOCKER_USER)) for name, kernel in site.host.tables.items()}
    spoil(site.host)
    found = site.again()
    assert found.changed
    assert found.messages
    assert said in "".join(found.messages)
    assert all(right[name] <= set(kernel.texts(DOCKER_USER)) for name, kernel in site.host.tables.items())
    assert site.host.four.texts("FORWARD")[0] == "-j DOCKER-USER"


def test_before_docker_answers_and_after(tmp_path: t.Any) -> None:
    """At boot: no chain, no Docker; what is known of the last look tells of IPv6."""
    for known, wanted in ((True, True), (False, False), (None, True)):
        folder = tmp_path / str(known)
        folder.mkdir()
        site = Site(folder, NO_DOCKER, NO_DOCKER)
        site.keep(PORT, ADMIN)
        found = site.again(inventory=None, ip6_dnat=known)
        assert site.texts() == [ESTABLISHED, PORT_RULE, "-j RETURN"]
        assert (DOCKER_USER in site.host.six.chains) == wanted
        assert list(found.waiting) == ["admin-ui"]
        assert site.reconciler.ip6_dnat is None
        assert found.messages[:2] == ("IPv4 DOCKER-USER: made the chain", "IPv4 DOCKER-USER: put its jump into FORWARD")
        # Docker comes.
        for kernel in site.host.tables.values():
            kernel.chains["DOCKER-FORWARD"] = []
        site.again()
        # metrics denies anybody, which is an action: those of all policies come first, each by its name.
        assert site.texts() == [ESTABLISHED, ADMIN_RULES[0], PORT_RULE, ADMIN_RULES[1], "-j RETURN"]
        assert site.reconciler.ip6_dnat is True


def test_gaps_are_said_every_time(site: Site) -> None:
    site.keep(ADMIN)
    site.host.native_mangle = {"iptables"}
    site.host.incompatible = {"ip6tables"}
    found = site.again()
    assert [text.split(" ")[0] for text in found.warnings] == ["IPv6", "There"]
    assert found.warnings == site.run().warnings


def test_legacy(tmp_path: t.Any) -> None:
    site = Site(tmp_path, NO_DOCKER, NO_DOCKER)
    site.host.tables["iptables", "legacy"] = Kernel(DOCKER_29)
    (tmp_path / "ip_tables_names").write_text("filter\nmangle\n")
    site.keep(ADMIN)
    assert site.run().changed
    assert site.reconciler.legacy()


@pytest.mark.parametrize(
    ("policies", "options", "words"),
    [
        ([{**ADMIN, "action": None}], {}, "No action"),
        ([{"container": "admin"}], {}, "no name"),
        ([ADMIN, ADMIN], {}, "both named admin-ui"),
        ([ADMIN], {"default": "open"}, "return or drop"),
        ([{**ADMIN, "labels": ["a"], "container": None}], {}, ""),
        ([{**ADMIN, "log": "x"}], {}, ""),
        ([{**ADMIN, "source": 5}], {}, ""),
        ([{**ADMIN, "priority": "high"}], {}, ""),
        ([ADMIN], {"outside_interfaces": 5, "default": "drop"}, ""),
        ([ADMIN], {"ipset_threshold": "many"}, ""),
    ],
)
def test_stored_policies_that_somebody_edited_are_told(
    site: Site, policies: t.List[t.Any], options: t.Dict[str, t.Any], words: str
) -> None:
    site.keep(*policies, **options)
    before = site.host.everything()
    with pytest.raises(StoreError) as caught:
        site.run()
    assert site.store.path in str(caught.value)
    assert words in str(caught.value)
    assert site.host.everything() == before
    # And when it is mended, it works.
    site.keep(PORT)
    assert site.run().changed


def test_policies_that_come_to_disagree_stay_closed(site: Site) -> None:
    """By label a container may come under two policies, when nobody is there who could be asked."""
    site.keep(ADMIN, {**ADMIN, "name": "second", "otherwise": "return"})
    found = site.run()
    assert [
        warning for warning in found.warnings if "admin-ui" in warning and "second" in warning and "disagree" in warning
    ]
    rules = site.host.tables["iptables", "nft"].texts("DOCKER-USER")
    assert [rule for rule in rules if "quaywall:admin-ui" in rule and rule.endswith("-j DROP")]
    assert [rule for rule in rules if '"quaywall:second"' in rule and rule.endswith("-j ACCEPT")]
    assert not [rule for rule in rules if "quaywall:second" in rule and rule.endswith("-j RETURN")]
    assert not site.run().changed
    # Two ways to deny are both denials.
    site.keep(ADMIN, {**ADMIN, "name": "second", "otherwise": "reject"})
    assert any("disagree" in warning for warning in site.run().warnings)
    rules = site.host.tables["iptables", "nft"].texts("DOCKER-USER")
    assert [rule for rule in rules if "quaywall:admin-ui" in rule and rule.endswith("-j DROP")]
    assert [rule for rule in rules if "quaywall:second" in rule and "-j REJECT" in rule]


_values = st.sampled_from(
    (None, True, 0, -1, 7, 1.5, "", "x", "tcp", "80", "10.0.0.0/8", "admin", "drop", "accept", [], ["x"], ["80"], [7],
     [None], {}, {"a": "b"}, {"prefix": 5}, {"limit": "x"}, {"prefix": "p ", "limit": "1/s"})
)  # fmt: skip
_options = (
    "name", "container", "labels", "network", "destination", "published_port", "published_address",
    "container_network", "protocol", "destination_port", "source", "in_interface", "action", "otherwise",
    "same_network", "match", "log", "priority", "ip_version", "ipset_threshold",
)  # fmt: skip


@given(
    st.lists(st.dictionaries(st.sampled_from(_options), _values, max_size=8), max_size=2),
    st.dictionaries(
        st.sampled_from(("established", "default", "outside_interfaces", "foreign_rules", "guard", "ipset_threshold")),
        _values,
        max_size=2,
    ),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_stored_document_is_applied_or_told(site: Site, policies: t.List[t.Any], given_settings: t.Any) -> None:
    """Never a traceback: the follower must not exit on one bad file."""
    base = {"name": "a", "container": "admin", "action": "drop"}
    site.keep(*[{**base, "name": "p%d" % number, **policy} for number, policy in enumerate(policies)], **given_settings)
    told = ""
    try:
        site.run()
    except StoreError as error:
        told = str(error)
    if told:
        assert site.store.path in told
        assert told.isprintable()
        assert told.endswith((".", "?"))
    else:
        assert not site.run().changed


def test_a_kernel_that_refuses_is_told_and_tried_again(site: Site) -> None:
    site.keep(ADMIN)
    before = site.host.everything()
    site.host.refuse_commit = "iptables"
    with pytest.raises(FirewallError, match="Operation not permitted"):
        site.run()
    assert site.host.everything() == before
    site.host.refuse_commit = ""
    assert site.run().changed


def test_many_addresses_are_not_all_said(site: Site) -> None:
    many = [one("c%d" % number, DUAL, "172.31.0.%d" % number)._replace(labels={"a": "b"}) for number in range(10, 20)]
    site.keep({"name": "all", "labels": {"a": "b"}, "action": "drop", "ip_version": "ipv4"})
    found = site.run(inventory=Inventory(tuple(many), INVENTORY.networks))
    text = next(line for line in found.messages if "policy all" in line)
    assert text == (
        "IPv4 DOCKER-USER: wrote policy all (10 rules) "
        "for 172.31.0.10, 172.31.0.11, 172.31.0.12, 172.31.0.13 and 6 more"
    )


def test_docker_that_is_only_remembered_takes_no_address_away(site: Site) -> None:
    """A follower that starts while Docker is down: with live-restore the containers run on, at their addresses."""
    site.keep(ADMIN, PORT)
    site.run()
    before = site.host.everything()
    remembered, bindings = from_stored(to_stored(INVENTORY, FakeDocker(INVENTORY).bindings))
    assert remembered.remembered
    found = site.run(remembered, bindings)
    assert not found.changed
    assert site.host.everything() == before
    # What needs no look-up is put right all the same, and so is the order.
    site.host.tables["iptables", "nft"].restore("*filter\n-D DOCKER-USER %s\nCOMMIT\n" % PORT_RULE)
    assert site.run(remembered, bindings).changed
    assert site.host.everything() == before


def test_after_a_boot_what_is_remembered_is_all_there_is(tmp_path: t.Any) -> None:
    site = Site(tmp_path, NO_DOCKER, NO_DOCKER)
    fixed = (Binding("tcp", 8080, 9000, "", True),)
    site.keep(ADMIN)
    remembered, bindings = from_stored(to_stored(INVENTORY, lambda container: fixed))
    assert site.run(remembered, bindings, ip6_dnat=True).changed
    for command in ("iptables", "ip6tables"):
        rules = site.texts(command)
        assert any("--ctorigdstport 9000" in rule and rule.endswith("-j DROP") for rule in rules)
        assert not any("172.17.0.10" in rule for rule in rules)
