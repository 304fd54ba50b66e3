# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module docker_user_chain from its options to its results, with docker_user_rule and the follower beside it."""

from __future__ import annotations

import errno
import json
import os
import typing as t

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.quaywall.docker.plugins.module_utils import _ipset
from ansible_collections.quaywall.docker.plugins.module_utils._binding import Binding
from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import (
    Container,
    DockerError,
    DockerGone,
    DockerSdkMissing,
    Inventory,
    Network,
)
from ansible_collections.quaywall.docker.plugins.module_utils._ipset import Ipset
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import Firewall, FirewallError
from ansible_collections.quaywall.docker.plugins.module_utils._module import docker_user_chain, docker_user_rule
from ansible_collections.quaywall.docker.plugins.module_utils._module._edge import Host as ModuleHost
from ansible_collections.quaywall.docker.plugins.module_utils._module._edge import make_host
from ansible_collections.quaywall.docker.plugins.module_utils._reconcile import Outcome, Reconciler
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4
from ansible_collections.quaywall.docker.plugins.module_utils._store import Store
from ansible_collections.quaywall.docker.tests.unit.memory import (
    ADMIN,
    BRIDGE,
    DOCKER_29,
    ESTABLISHED,
    INVENTORY,
    MANGLE,
    FakeDocker,
    Host,
    MemorySet,
    isolate,
    one,
)
from ansible_collections.quaywall.docker.tests.unit.packets import Packet, judge
from ansible_collections.quaywall.docker.tests.unit.support import Kernel

PORT = {"name": "metrics", "published_port": "9100", "source": ["198.51.100.0/24"], "action": "accept"}
PUBLISHED = (Binding("tcp", 8080, 9100, "", True),)
DUAL = {"name": "dual", "container": "dual", "protocol": "all", "action": "reject"}

RETURN = "-j RETURN"
ADMIN_HEAD = "-d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080"
ADMIN_ALLOW = '-s 203.0.113.10/32 %s -m comment --comment "quaywall:admin-ui"' % ADMIN_HEAD
ADMIN_DENY = '%s -m comment --comment "quaywall:admin-ui"' % ADMIN_HEAD
DNAT_9100 = "-p tcp -m conntrack --ctstate DNAT --ctorigdstport 9100 --ctdir ORIGINAL"
PORT_ALLOW = '-s 198.51.100.0/24 %s -m comment --comment "quaywall:metrics"' % DNAT_9100
PORT_DENY = '%s -m comment --comment "quaywall:metrics"' % DNAT_9100
DEFAULT_JUMP = '-m comment --comment "quaywall: default drop" -j QUAYWALL-DEFAULT'

#: What the design says: all actions, then all otherwises, each by name.
BOTH = [
    ESTABLISHED,
    ADMIN_ALLOW + " -j ACCEPT",
    PORT_ALLOW + " -j ACCEPT",
    ADMIN_DENY + " -j DROP",
    PORT_DENY + " -j DROP",
    RETURN,
]
GUARD = [
    ESTABLISHED.replace("ACCEPT", "RETURN"),
    ADMIN_ALLOW + " -j RETURN",
    PORT_ALLOW + " -j RETURN",
    ADMIN_DENY + " -g QUAYWALL-DENY",
    PORT_DENY + " -g QUAYWALL-DENY",
]
MARK = "-j MARK --set-xmark 0x51574744/0xffffffff"
FORWARD_HOOK = '-m comment --comment "quaywall: guard" -j QUAYWALL-GUARD'
POSTROUTING_HOOK = '-m mark --mark 0x51574744 -m comment --comment "quaywall: guard" -j DROP'

BAN, OPEN = "-s 203.0.113.66/32 -j DROP", "-s 10.9.0.0/16 -j ACCEPT"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: t.Any) -> None:
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr(_ipset, "RELEASE_WAIT", 0.0)


def given(docker: t.Any) -> t.Any:
    if isinstance(docker, Exception):
        raise docker
    return docker


class Answer(t.NamedTuple):
    failed: bool
    result: t.Dict[str, t.Any]
    warnings: t.List[str]

    @property
    def message(self) -> str:
        text = str(self.result["msg"])
        assert text.isprintable()
        assert text.endswith((".", "?"))
        assert "Unexpected error" not in text
        return text

    @property
    def changed(self) -> bool:
        assert not self.failed, self.result
        return bool(self.result["changed"])


class Site:
    """A host in memory, its store, and the modules on it."""

    def __init__(self, tmp_path: t.Any, capsys: pytest.CaptureFixture[str], *chains: t.Mapping[str, t.Any]) -> None:
        self.host = Host(*chains)
        self.docker: t.Any = FakeDocker(INVENTORY)
        self.path = tmp_path / "etc"
        self.store = Store(str(self.path), str(tmp_path / "var"))
        self.locks = str(tmp_path)
        self.capsys = capsys

    def _parts(self) -> ModuleHost:
        def create_docker() -> t.Any:
            return given(self.docker)

        firewall = Firewall(self.host.run, self.host.find, 0.1, 0.1, self.locks)
        return ModuleHost(
            firewall,
            Ipset(self.host.run, self.host.find, firewall.descriptors, 0, lambda: bool(self.host.sets)),
            create_docker,
            lambda: pytest.fail("connections were asked for"),
        )

    def _run(self, module_code: t.Any, options: t.Mapping[str, t.Any], check: bool) -> Answer:
        parts = self._parts()
        self.host.read_only = check
        arguments = {**options, "_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(arguments):
            module = AnsibleModule(argument_spec=module_code.argument_spec(), supports_check_mode=True)
            warned: t.List[str] = []
            module.warn = warned.append
            with pytest.raises(SystemExit):
                module_code.run_module(module, lambda module: parts, self.store)
        self.host.read_only = False
        result = json.loads(self.capsys.readouterr().out)
        return Answer(bool(result.get("failed")), result, warned)

    def chain(self, *rules: t.Mapping[str, t.Any], check: bool = False, **options: t.Any) -> Answer:
        given = options if options.get("state") == "absent" else {"rules": list(rules), **options}
        return self._run(docker_user_chain, given, check)

    def rule(self, check: bool = False, **options: t.Any) -> Answer:
        return self._run(docker_user_rule, options, check)

    def follow(self, dry: bool = False, inventory: t.Optional[Inventory] = INVENTORY, **options: t.Any) -> Outcome:
        parts = self._parts()
        self.host.read_only = dry
        found = Reconciler(parts.firewall, parts.ipset, self.store).run(inventory, lambda found: (), dry, **options)
        self.host.read_only = False
        return found

    def twice(self, *rules: t.Mapping[str, t.Any], **options: t.Any) -> Answer:
        """Check, apply, check, apply: what is shown is what happens, and there is nothing to do then."""
        before, stored = self.host.everything(), self.stored
        first = self.chain(*rules, check=True, **options)
        assert (self.host.everything(), self.stored) == (before, stored)
        second = self.chain(*rules, **options)
        written, stored = self.host.everything(), self.stored
        third = self.chain(*rules, check=True, **options)
        fourth = self.chain(*rules, **options)
        assert (self.host.everything(), self.stored) == (written, stored)
        assert [first.changed, third.changed, fourth.changed] == [second.changed, False, False]
        for key in ("diff", "chains", "endpoints", "sets", "waiting"):
            assert first.result[key] == second.result[key]
            assert third.result[key] == fourth.result[key]
        assert all(diff["before"] == diff["after"] for diff in fourth.result["diff"])
        assert first.warnings == second.warnings == third.warnings == fourth.warnings
        return second

    @property
    def stored(self) -> t.Any:
        path = self.path / "policies.json"
        return json.loads(path.read_text()) if path.exists() else None

    def texts(self, command: str = "iptables") -> t.List[str]:
        return list(self.host.tables[command, "nft"].texts(DOCKER_USER))

    def guard(self, command: str = "iptables") -> t.Optional[t.List[str]]:
        """The guard's rules, None if it is not there; its other parts are right then."""
        chains = {name: list(kept.texts(name)) for kept in [self.host.mangle[command]] for name in kept.chains}
        there = "QUAYWALL-GUARD" in chains
        assert chains.get("QUAYWALL-DENY") == ([MARK] if there else None)
        assert chains["FORWARD"].count(FORWARD_HOOK) == chains["POSTROUTING"].count(POSTROUTING_HOOK) == there
        return chains.get("QUAYWALL-GUARD")


@pytest.fixture
def make(tmp_path: t.Any, capsys: pytest.CaptureFixture[str]) -> t.Callable[..., Site]:
    return lambda *chains: Site(tmp_path, capsys, *chains)


@pytest.fixture
def site(make: t.Callable[..., Site]) -> Site:
    return make()


# Apply, check, again -------------------------------------------------------------------------------------------------


def test_the_whole_chain_with_its_guard(site: Site) -> None:
    found = site.twice(PORT, ADMIN)
    assert site.texts() == BOTH
    assert site.guard() == GUARD
    assert site.host.mangle["iptables"].texts("FORWARD") == (FORWARD_HOOK,)
    assert found.changed
    assert found.result["chains"][IPV4]["after"] == ["-A DOCKER-USER " + rule for rule in BOTH]
    assert found.result["chains"][IPV4]["guard"] == {
        "before": [],
        "after": ["-A QUAYWALL-GUARD " + rule for rule in GUARD],
    }
    assert [item["address"] for item in found.result["endpoints"]] == ["172.17.0.10"]
    assert found.result["sets"] == found.result["waiting"] == {}
    assert site.stored is None
    # Docker uses ip6tables here, and forwards the host port in both families.
    assert site.texts("ip6tables") == [ESTABLISHED, PORT_DENY + " -j DROP", RETURN]
    assert site.guard("ip6tables") == [GUARD[0], PORT_DENY + " -g QUAYWALL-DENY"]


def test_what_is_not_named_any_more_goes_and_the_rest_keeps_its_counters(site: Site) -> None:
    site.chain(ADMIN, PORT, DUAL)
    serials = {rule.text: rule.serial for rule in site.host.four.chains[DOCKER_USER]}
    site.twice(ADMIN, PORT)
    assert site.texts() == BOTH
    assert {rule.text: rule.serial for rule in site.host.four.chains[DOCKER_USER]}.items() <= serials.items()
    site.twice()
    assert site.texts() == site.texts("ip6tables") == [ESTABLISHED, RETURN]
    assert site.guard() is site.guard("ip6tables") is None


def test_one_transaction_for_each_table(site: Site) -> None:
    site.chain(ADMIN, PORT, DUAL)
    commits = [c for c in site.host.commands if c[0].endswith("-restore") and c[-1] != "--test"]
    assert [os.path.basename(command[0]) for command in commits] == ["iptables-nft-restore", "ip6tables-nft-restore"]


@pytest.mark.parametrize("foreign_rules", ["keep", "remove"])
def test_rules_of_others(make: t.Callable[..., Site], foreign_rules: str) -> None:
    there = [OPEN, BAN, '-m comment --comment "x\\"y" -j DROP', RETURN, "-i eth9 -j DROP"]
    site = make({**DOCKER_29, DOCKER_USER: there}, DOCKER_29)
    serials = {rule.serial for rule in site.host.four.chains[DOCKER_USER]}
    found = site.twice(ADMIN, PORT, foreign_rules=foreign_rules)
    if foreign_rules == "remove":
        assert site.texts() == BOTH
        assert found.warnings == []
    else:
        assert site.texts() == [*BOTH[:-1], *there]
        assert serials <= {rule.serial for rule in site.host.four.chains[DOCKER_USER]}
        assert "-i eth9 -j DROP" in found.warnings[0]


def test_the_jump_is_made_and_moved_to_the_top(make: t.Callable[..., Site]) -> None:
    site = make({**DOCKER_29, "FORWARD": ["-i eth0 -j ACCEPT", "-j DOCKER-USER"]}, {**DOCKER_29, "FORWARD": []})
    site.twice(ADMIN)
    assert site.host.four.texts("FORWARD") == ("-j DOCKER-USER", "-i eth0 -j ACCEPT")
    assert site.host.six.texts("FORWARD") == ("-j DOCKER-USER",)


@pytest.mark.parametrize("established", ["accept", "return", "omit"])
def test_established(site: Site, established: str) -> None:
    site.twice(ADMIN, PORT, established=established)
    first = {"accept": [ESTABLISHED], "return": [ESTABLISHED.replace("ACCEPT", "RETURN")], "omit": []}[established]
    assert site.texts() == first + BOTH[1:]
    # And back.
    site.twice(ADMIN, PORT)
    assert site.texts() == BOTH


def test_established_return_is_left_so_by_docker_user_rule(site: Site) -> None:
    site.chain(ADMIN, established="return")
    site.rule(**PORT)
    assert site.texts() == [ESTABLISHED.replace("ACCEPT", "RETURN"), *BOTH[1:]]


# The default ---------------------------------------------------------------------------------------------------------

DUAL_BRIDGE = "br-dddddddddddd"


def default_chain(site: Site, command: str = "iptables") -> t.Optional[t.List[str]]:
    kernel = site.host.tables[command, "nft"]
    return list(kernel.texts("QUAYWALL-DEFAULT")) if "QUAYWALL-DEFAULT" in kernel.chains else None


def test_default_drop(site: Site) -> None:
    site.twice(ADMIN, default="drop")
    assert site.texts() == [ESTABLISHED, BOTH[1], BOTH[3], DEFAULT_JUMP, RETURN]
    closed = [
        "-i %s -j RETURN" % DUAL_BRIDGE,
        "-i docker0 -j RETURN",
        "-o %s -j DROP" % DUAL_BRIDGE,
        "-o docker0 -j DROP",
    ]
    assert default_chain(site) == closed
    # The network docker0 has no IPv6.
    assert default_chain(site, "ip6tables") == [closed[0], closed[2]]
    assert site.guard() == [GUARD[0], GUARD[1], GUARD[3], *(c.replace("-j DROP", "-g QUAYWALL-DENY") for c in closed)]
    assert site.guard("ip6tables") == [GUARD[0], closed[0], closed[2].replace("-j DROP", "-g QUAYWALL-DENY")]
    # And back.
    site.twice(ADMIN)
    assert site.texts() == [ESTABLISHED, BOTH[1], BOTH[3], RETURN]
    assert default_chain(site) is default_chain(site, "ip6tables") is None


def test_default_drop_of_what_comes_in_through_some_interfaces(site: Site) -> None:
    site.twice(default="drop", outside_interfaces=["eth0", "wg+"])
    assert default_chain(site) == [
        "-i %s -o %s -j DROP" % (outside, bridge) for outside in ("eth0", "wg+") for bridge in (DUAL_BRIDGE, "docker0")
    ]
    assert site.texts() == [ESTABLISHED, DEFAULT_JUMP, RETURN]


def test_default_drop_follows_the_networks(site: Site) -> None:
    site.chain(default="drop")
    site.docker = FakeDocker(Inventory((), {"bridge": BRIDGE}))
    site.twice(default="drop")
    assert default_chain(site) == ["-i docker0 -j RETURN", "-o docker0 -j DROP"]
    assert default_chain(site, "ip6tables") is None
    assert site.texts("ip6tables") == [ESTABLISHED, RETURN]


def test_default_drop_is_kept_by_docker_user_rule(site: Site) -> None:
    site.chain(default="drop")
    site.rule(**ADMIN)
    assert site.texts() == [ESTABLISHED, BOTH[1], BOTH[3], DEFAULT_JUMP, RETURN]
    guard = site.guard()
    site.chain(ADMIN, default="drop")
    assert site.guard() == guard
    site.rule(name="admin-ui", state="absent")
    assert site.texts() == [ESTABLISHED, DEFAULT_JUMP, RETURN]
    assert not site.chain(default="drop").changed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"outside_interfaces": ["eth0"]}, "outside_interfaces"),
        ({"default": "drop", "established": "omit"}, "established: omit"),
        ({"default": "drop", "outside_interfaces": ["eth0", "eth0:1"]}, "outside_interfaces[1]"),
        ({"default": "drop", "outside_interfaces": ["!eth0"]}, "outside_interfaces[0]"),
        ({"ipset_threshold": -1}, "ipset_threshold"),
    ],
)
def test_wrong_settings(site: Site, options: t.Dict[str, t.Any], words: str) -> None:
    before = site.host.everything()
    found = site.chain(ADMIN, store=True, **options)
    assert found.failed
    assert words in found.message
    assert (site.host.everything(), site.stored) == (before, None)


# Policies that are wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", ["fail", "wait"])
@pytest.mark.parametrize("check", [True, False])
def test_wrong_policies_name_their_place(site: Site, check: bool, wait: str) -> None:
    before = site.host.everything()
    for rules, words in (
        ([ADMIN, PORT, {**ADMIN, "name": "third", "destination_port": ["http"]}], ("rules[2]", "third", "'http'")),
        ([ADMIN, PORT, ADMIN], ("rules[0]", "rules[2]", "admin-ui")),
        ([{**ADMIN, "name": "bad name"}], ("rules[0]", "'bad name'")),
        ([PORT, {**PORT, "name": "second", "otherwise": "reject"}], ("metrics", "second", "disagree")),
    ):
        found = site.chain(*rules, check=check, store=True, missing_targets=wait)
        assert found.failed
        for word in words:
            assert word in found.result["msg"]
        assert (site.host.everything(), site.stored) == (before, None)


def test_missing_targets_fail(site: Site) -> None:
    before = site.host.everything()
    found = site.chain(PORT, {**ADMIN, "container": "admim"})
    assert found.failed
    assert "Policy admin-ui" in found.message
    assert "did you mean 'admin'" in found.message
    assert site.host.everything() == before


def test_missing_targets_wait(site: Site) -> None:
    later = {**ADMIN, "container": "later"}
    found = site.twice(PORT, later, missing_targets="wait")
    assert site.texts() == [ESTABLISHED, BOTH[2], BOTH[4], RETURN]
    assert list(found.result["waiting"]) == ["admin-ui"]
    assert "'later'" in found.result["waiting"]["admin-ui"]
    assert "admin-ui waits" in found.warnings[0]
    site.docker = FakeDocker(
        Inventory((*INVENTORY.containers, one("later", BRIDGE, "172.17.0.77")), INVENTORY.networks)
    )
    found = site.twice(PORT, later, missing_targets="wait")
    assert found.result["waiting"] == {}
    assert site.texts() == [rule.replace("172.17.0.10/", "172.17.0.77/") for rule in BOTH]


@pytest.mark.parametrize("error", [DockerError("Docker does not answer at unix:///x (no such file)."), None])
def test_docker_is_down(site: Site, error: t.Optional[Exception]) -> None:
    site.docker = error or DockerSdkMissing("no module")
    before = site.host.everything()
    for options in ({"rules": [PORT, ADMIN]}, {"rules": [], "default": "drop"}):
        found = site._run(docker_user_chain, options, False)
        assert found.failed
        assert "ocker" in found.result["msg"]
        assert site.host.everything() == before
    # What needs no look-up is written.
    found = site.twice(PORT, ADMIN, missing_targets="wait")
    assert site.texts() == [ESTABLISHED, BOTH[2], BOTH[4], RETURN]
    assert list(found.result["waiting"]) == ["admin-ui"]
    assert site.twice(PORT).result["waiting"] == {}


def test_what_waits_while_docker_is_down_is_not_opened(site: Site) -> None:
    """With live-restore the containers run on; nothing is known that would be better than what is there."""
    site.chain(PORT, ADMIN, DUAL, default="drop")
    before = site.host.everything()
    site.docker = DockerError("Docker does not answer.")
    found = site.twice(PORT, ADMIN, DUAL, default="drop", missing_targets="wait")
    assert sorted(found.result["waiting"]) == ["admin-ui", "dual"]
    assert not found.changed
    assert site.host.everything() == before
    # A set that such a policy asks stays too.
    site.docker = FakeDocker(INVENTORY)
    long_admin = {**ADMIN, "source": ["10.0.0.1", "10.0.0.2", "10.0.0.3"]}
    site.chain(PORT, long_admin, DUAL, default="drop", ipset_threshold=2)
    sets = site.host.members()
    assert sets
    site.docker = DockerError("Docker does not answer.")
    site.twice(PORT, long_admin, DUAL, default="drop", missing_targets="wait", ipset_threshold=2)
    assert site.host.members() == sets
    site.docker = FakeDocker(INVENTORY)
    site.chain(ADMIN, default="drop")
    assert site.host.members() == {}
    site.docker = DockerError("Docker does not answer.")
    # What is not named goes all the same, and what can be written is.
    site.twice(ADMIN, default="drop", missing_targets="wait")
    assert site.texts() == [ESTABLISHED, BOTH[1], BOTH[3], DEFAULT_JUMP, RETURN]


def test_docker_is_not_asked_where_nothing_needs_it(site: Site) -> None:
    site.docker = RuntimeError("asked")
    assert not site.twice(PORT).failed


# Away ----------------------------------------------------------------------------------------------------------------


def test_absent_leaves_nothing_of_ours_and_all_of_others(make: t.Callable[..., Site]) -> None:
    foreign = [OPEN, BAN, RETURN]
    site = make({**DOCKER_29, DOCKER_USER: foreign}, {**DOCKER_29, DOCKER_USER: [RETURN]})
    site.host.mangle["iptables"].insert("FORWARD", 0, "-j TTL --ttl-set 64")
    before = site.host.everything()
    site.chain(ADMIN, PORT, DUAL, default="drop", ipset_threshold=0, store=True)
    site.rule(**{**PORT, "name": "long", "source": ["10.0.0.1", "10.0.0.2"], "ipset_threshold": 1})
    assert site.host.sets
    assert site.stored
    site.docker = RuntimeError("asked")
    found = site.twice(state="absent")
    assert found.changed
    assert site.host.everything() == before
    assert site.stored is None
    assert not site.path.exists()


def test_the_store_goes_under_the_lock(site: Site) -> None:
    """A follower that came between the kernel and the store would bring all of it back."""
    site.chain(ADMIN, PORT, store=True)
    remove = site.store.remove
    overtaken = []

    def slow(dry: bool = False) -> bool:
        if not dry:
            with pytest.raises(FirewallError, match="lock"):
                site.follow()
            overtaken.append(True)
        return remove(dry)

    site.store.remove = slow  # type: ignore[method-assign]
    assert site.chain(state="absent").changed
    assert overtaken
    assert site.texts() == [RETURN]
    assert site.stored is None


def test_absent_can_leave_the_store(site: Site) -> None:
    site.chain(ADMIN, store=True)
    stored = site.stored
    site.twice(state="absent", store=False)
    assert site.stored == stored


def test_absent_on_a_host_that_never_had_anything(make: t.Callable[..., Site]) -> None:
    site = make({"INPUT": [], "FORWARD": [], "OUTPUT": []}, {"INPUT": [], "FORWARD": [], "OUTPUT": []})
    before = site.host.everything()
    assert not site.twice(state="absent").changed
    assert site.host.everything() == before


# Before Docker is there ----------------------------------------------------------------------------------------------

NO_DOCKER: t.Dict[str, t.List[str]] = {"INPUT": [], "FORWARD": ["-i lo -j ACCEPT"], "OUTPUT": []}


def test_before_docker_was_ever_there_both_families_are_guarded(make: t.Callable[..., Site]) -> None:
    site = make(NO_DOCKER, NO_DOCKER)
    site.docker = DockerError("Docker does not answer.")
    site.twice(PORT, ADMIN, missing_targets="wait")
    assert site.texts() == [ESTABLISHED, BOTH[2], BOTH[4], RETURN]
    assert site.texts("ip6tables") == [ESTABLISHED, PORT_DENY + " -j DROP", RETURN]
    for command in ("iptables", "ip6tables"):
        assert site.host.tables[command, "nft"].texts("FORWARD") == ("-j DOCKER-USER", "-i lo -j ACCEPT")
        assert site.guard(command)


def test_before_docker_the_default_closes_the_bridge_that_every_engine_makes(make: t.Callable[..., Site]) -> None:
    site = make(NO_DOCKER, NO_DOCKER)
    site.docker = DockerError("Docker does not answer.")
    site.twice(default="drop", missing_targets="wait")
    for command in ("iptables", "ip6tables"):
        assert default_chain(site, command) == ["-i docker0 -j RETURN", "-o docker0 -j DROP"]


def test_where_docker_leaves_ip6tables_alone_so_do_we_whoever_runs(make: t.Callable[..., Site]) -> None:
    """Engines up to 26 do unless they are told; the follower asks Docker, this module only if a policy needs it."""
    site = make(DOCKER_29, NO_DOCKER)
    six = site.host.six.save()
    site.twice(PORT, store=True)
    assert not site.follow().changed
    assert not site.chain(PORT).changed
    assert not site.rule(**PORT).changed
    assert site.host.six.save() == six


def test_a_host_without_ip6tables(site: Site) -> None:
    site.host.programs = {name for name in site.host.programs if not name.startswith("ip6tables")}
    site.twice(PORT, ADMIN)
    assert site.texts() == BOTH
    # As docker_user_rule says it: nobody guards the IPv6 address that this container has.
    for answer in (site.rule(**DUAL), site.chain(PORT, DUAL)):
        assert answer.failed
        assert "ip6tables is not installed" in answer.message


def test_a_host_without_ip6tables_before_docker(make: t.Callable[..., Site]) -> None:
    site = make(NO_DOCKER, NO_DOCKER)
    site.host.programs = {name for name in site.host.programs if not name.startswith("ip6tables")}
    site.docker = DockerError("Docker does not answer.")
    site.twice(PORT, ADMIN, missing_targets="wait")
    assert site.texts() == [ESTABLISHED, BOTH[2], BOTH[4], RETURN]


def test_ip6_tables_that_cannot_be_read(site: Site) -> None:
    site.host.incompatible = {"ip6tables"}
    found = site.twice(ADMIN)
    assert "IPv6 was left as it is" in found.warnings[0]
    found = site.chain(ADMIN, DUAL)
    assert found.failed
    assert "nft list table ip6 filter" in found.message


# The guard -----------------------------------------------------------------------------------------------------------


def test_no_guard(site: Site) -> None:
    site.chain(ADMIN)
    site.twice(ADMIN, guard=False)
    assert site.guard() is None
    site.rule(**PORT)
    assert site.guard() is None


def test_the_guard_is_kept_in_step_by_docker_user_rule(site: Site) -> None:
    site.chain(ADMIN)
    first = site.rule(check=True, **PORT)
    second = site.rule(**PORT)
    assert first.result["diff"] == second.result["diff"]
    assert site.guard() == GUARD
    # Where nothing was denied until now there was none.
    assert site.guard("ip6tables") == [GUARD[0], PORT_DENY + " -g QUAYWALL-DENY"]
    assert not site.rule(**PORT).changed
    assert not site.chain(ADMIN, PORT).changed
    site.rule(name="admin-ui", state="absent")
    assert site.guard() == [GUARD[0], GUARD[2], GUARD[4]]


def test_docker_proxy_keeps_to_what_docker_user_rule_changed(site: Site) -> None:
    """Whoever its sources were, and are no more, has no way left by docker-proxy."""
    inventory = Inventory((INVENTORY.containers[0]._replace(current_ports=PUBLISHED),), INVENTORY.networks)
    site.docker = FakeDocker(inventory, PUBLISHED)

    def lines() -> t.List[str]:
        listed = site.host.mangle["iptables"].texts("QUAYWALL-PROXY")
        return [text for text in listed if '"quaywall:metrics"' in text]

    port = '-p tcp -m tcp --dport 9100 -m comment --comment "quaywall:metrics"'
    site.chain(PORT, store=True)
    assert lines() == ["-s 198.51.100.0/24 %s -j RETURN" % port, port + " -j DROP"]
    before = site.host.everything()
    changed = {**PORT, "source": ["203.0.113.7/32"]}
    assert site.rule(check=True, **changed).changed
    assert site.host.everything() == before
    assert site.rule(**changed).changed
    assert lines() == ["-s 203.0.113.7/32 %s -j RETURN" % port, port + " -j DROP"]
    assert not site.rule(check=True, **changed).changed
    assert not site.rule(**changed).changed
    assert not site.follow(inventory=inventory).changed
    # Docker down: the ports are those that are known, and who may come in is what the policy says now.
    site.docker = DockerError("Docker does not answer.")
    assert site.rule(**PORT).changed
    assert lines() == ["-s 198.51.100.0/24 %s -j RETURN" % port, port + " -j DROP"]
    assert not site.chain(PORT).changed
    assert site.chain(changed).changed
    assert lines() == ["-s 203.0.113.7/32 %s -j RETURN" % port, port + " -j DROP"]
    assert not site.rule(**changed).changed
    site.docker = FakeDocker(inventory, PUBLISHED)
    assert not site.follow(inventory=inventory).changed
    assert site.rule(name="metrics", state="absent").changed
    assert "QUAYWALL-PROXY" not in site.host.mangle["iptables"].chains
    # Where no guard lasts, Docker is not asked at all.
    site.chain(guard=False)
    site.docker = DockerError("Docker does not answer.")
    assert site.rule(**PORT).changed


class Removing(FakeDocker):
    """An engine that removes ``admin`` between the list of containers and a question about it."""

    def bindings(self, container: t.Any) -> t.Any:
        if container.name == "admin":
            raise DockerGone("Container admin was removed while it was looked up: run again.")
        return super().bindings(container)


def test_a_container_that_goes_meanwhile_is_no_fault_but_of_its_own_policy(site: Site) -> None:
    """docker-proxy's rules ask for every container, and somewhere one always goes."""
    site.docker = Removing(INVENTORY, PUBLISHED)
    network = {"name": "all", "network": "bridge", "source": ["203.0.113.7"], "action": "accept"}
    address = {"name": "one", "destination": "172.17.0.10", "action": "drop"}
    for policy in (PORT, network, address):
        assert site.chain(policy, store=True, default="drop").changed
        assert site.rule(**{**policy, "source": ["203.0.113.8/32"]}).changed
    found = site.chain(ADMIN)
    assert found.failed
    assert found.message == "Container admin was removed while it was looked up: run again."


def test_a_guard_that_somebody_spoilt_is_made_right(site: Site) -> None:
    site.chain(ADMIN, PORT)
    kernel = site.host.mangle["iptables"]
    kernel.chains["QUAYWALL-GUARD"].pop(3)
    kernel.insert("QUAYWALL-GUARD", 0, "-j RETURN")
    kernel.insert("FORWARD", 0, FORWARD_HOOK)
    kernel.chains["POSTROUTING"].clear()
    kernel.chains["QUAYWALL-DENY"].clear()
    assert site.twice(ADMIN, PORT).changed
    assert site.guard() == GUARD


def test_a_mangle_table_that_cannot_be_read(site: Site) -> None:
    site.host.native_mangle = {"iptables"}
    before = site.host.mangle["iptables"].save()
    found = site.twice(ADMIN, PORT)
    assert site.host.mangle["iptables"].save() == before
    assert site.texts() == BOTH
    assert site.guard("ip6tables")
    assert len(found.warnings) == 1
    assert "no guard in IPv4" in found.warnings[0]
    assert site.twice(ADMIN, PORT, guard=False).warnings == []


def test_a_guard_without_its_rules_is_taken_back(site: Site) -> None:
    """Mangle is a transaction of its own: if that of filter fails, the guard denies what nobody asked for."""
    site.chain(ADMIN)
    before = site.host.everything()
    restore = site.host.four.restore

    def refuse(transaction: str, test: bool = False) -> None:
        if test:
            restore(transaction, test)
            return
        from ansible_collections.quaywall.docker.tests.unit.support import Refused

        raise Refused("iptables-nft-restore: line 3 failed: No space left on device.")

    site.host.four.restore = refuse  # type: ignore[method-assign]
    found = site.chain(ADMIN, PORT, store=True)
    assert found.failed
    assert "No space left" in found.message
    assert site.host.everything() == before
    assert site.stored is None


# docker-proxy: who comes in there is denied as DOCKER-USER denies, whatever became of the look-up --------------------

APP = Network("app", "a" * 64, "bridge", "br-app", False, ("172.20.0.0/24",))
NETWORKS = {"bridge": BRIDGE, "app": APP}
OFFICE6, STRANGER6 = "2001:db8:a::1", "2001:db8:77::1"
WEB_POLICY = {"name": "web", "container": "web", "source": ["203.0.113.0/24", "2001:db8:a::/48"], "action": "accept"}


def published(name: str, address: str, *ports: int, network: Network = BRIDGE, **more: t.Any) -> Container:
    """A running container; each port leads to the same port of it."""
    current = tuple(Binding("tcp", port, port, host, False) for port in ports for host in ("0.0.0.0", "::"))
    return one(name, network, address)._replace(current_ports=current, **more)


class Publishing(FakeDocker):
    """An engine whose containers have fixed ports of their own; what is not among them cannot be inspected."""

    def __init__(self, *containers: Container, broken: str = "") -> None:
        super().__init__(Inventory(containers, NETWORKS))
        self.broken = broken
        self.ports = {
            container.name: tuple(port._replace(host_address="", fixed=True) for port in container.current_ports[::2])
            for container in containers
        }

    def bindings(self, container: Container) -> t.Tuple[Binding, ...]:
        if container.name == self.broken:
            raise DockerError("Docker refused GET /containers/%s/json: 500 Server Error." % container.name)
        return self.ports[container.name]


def by_proxy(site: Site, source: str, port: int, incoming: str = "eth0") -> t.Optional[str]:
    """What becomes of a connection that comes in for docker-proxy."""
    command = "ip6tables" if ":" in source else "iptables"
    kernel = site.host.mangle[command]
    host = "2001:db8::1" if ":" in source else "192.0.2.1"
    sets = {name: item.elements for name, item in site.host.sets.items()}
    return judge(kernel, "INPUT", Packet(source, host, incoming, "", "tcp", port), sets).verdict


def followed(site: Site, *containers: Container, **options: t.Any) -> Outcome:
    """What the follower does, with these containers (or those that there are)."""
    inventory = Inventory(containers, NETWORKS) if containers else site.docker.inventory()
    parts = site._parts()
    return Reconciler(parts.firewall, parts.ipset, site.store).run(inventory, site.docker.bindings, False, **options)


WEB = published("web", "172.17.0.10", 8080)


def test_docker_down_takes_nothing_from_docker_proxy_s_rules(site: Site) -> None:
    port = {**WEB_POLICY, "container": None, "published_port": "8080"}
    site.docker = Publishing(WEB)
    for default in ("return", "drop"):
        site.chain(port, store=True, default=default)
        site.docker = DockerError("Docker does not answer.")
        before = [site.host.mangle[command].texts("QUAYWALL-PROXY") for command in ("iptables", "ip6tables")]
        site.twice(port, store=True, default=default, missing_targets="wait")
        assert [site.host.mangle[command].texts("QUAYWALL-PROXY") for command in ("iptables", "ip6tables")] == before
        assert [by_proxy(site, source, 8080) for source in (OFFICE6, STRANGER6)] == [None, "DROP"]
        site.docker = Publishing(WEB)


@pytest.mark.parametrize("module", ["chain", "rule"])
def test_docker_down_and_a_list_that_only_docker_proxy_s_rules_ask(make: t.Callable[..., Site], module: str) -> None:
    """Where Docker leaves ip6tables alone, no rule of DOCKER-USER asks the set of the IPv6 sources."""
    site = make(DOCKER_29, {"INPUT": [], "FORWARD": [], "OUTPUT": []})
    site.docker = Publishing(WEB)
    port = {
        "name": "web",
        "published_port": "8080",
        "source": ["203.0.113.0/24", "2001:db8:a::/48"],
        "action": "accept",
    }
    site.chain(port, store=True, ipset_threshold=2)
    site.docker = DockerError("Docker does not answer.")
    six = ["2001:db8:%s::/48" % part for part in ("77", "78", "79")]
    longer = {**port, "source": ["203.0.113.0/24", *six]}

    def change(check: bool) -> Answer:
        if module == "chain":
            return site.chain(longer, check=check, store=True, ipset_threshold=2)
        return site.rule(check=check, **longer, ipset_threshold=2)

    assert [change(check).changed for check in (True, False, True, False)] == [True, True, False, False]
    assert [by_proxy(site, source, 8080) for source in (OFFICE6, STRANGER6)] == ["DROP", None]
    site.docker = Publishing(WEB)
    assert not followed(site).changed


def test_an_address_policy_outlasts_the_addresses(site: Site) -> None:
    """While the daemon restarts nobody has an address, and docker-proxy may already listen."""
    site.docker = Publishing(WEB)
    policy = {"name": "net", "destination": "172.17.0.0/16", "source": ["203.0.113.0/24"], "action": "accept"}
    site.chain(policy, store=True)
    assert by_proxy(site, STRANGER6, 8080) == "DROP"
    followed(site, WEB.stopped(), ip6_dnat=True)
    assert by_proxy(site, STRANGER6, 8080) == "DROP"


def test_docker_user_rule_makes_docker_proxy_s_chain_with_the_bridges(site: Site) -> None:
    site.docker = Publishing(WEB)
    other = {"name": "other", "published_port": "9999", "action": "drop"}
    site.chain(other)
    assert site.rule(**WEB_POLICY).changed
    assert by_proxy(site, "172.17.0.55", 8080, "docker0") is None
    assert by_proxy(site, "198.51.100.7", 8080) == "DROP"
    assert not site.rule(**WEB_POLICY).changed
    assert not site.chain(other, WEB_POLICY).changed


def test_what_one_policy_lets_in_is_known_when_another_denies(site: Site) -> None:
    site.docker = Publishing(WEB)
    allow = {**WEB_POLICY, "name": "allow", "otherwise": "none"}
    deny = {"name": "deny", "container": "web", "action": "drop"}
    site.chain({**allow, "priority": 1})
    assert site.rule(**deny).changed
    assert [by_proxy(site, source, 8080) for source in (OFFICE6, STRANGER6)] == [None, "DROP"]
    assert not site.chain({**allow, "priority": 1}, deny).changed


@pytest.mark.parametrize("otherwise", ["drop", "none"])
def test_ipsets_that_only_docker_proxy_s_rules_ask_stay(site: Site, otherwise: str) -> None:
    site.docker = Publishing(WEB)
    six = ["2001:db8:%d::/64" % number for number in range(4)]
    policy = {**WEB_POLICY, "source": ["203.0.113.0/24", *six], "otherwise": otherwise}
    other = {"name": "other", "published_port": "9999", "action": "drop"}
    site.chain(policy, store=True, ipset_threshold=2)
    assert len(site.host.sets) == 1
    assert site.rule(**other, ipset_threshold=2).changed
    assert not site.rule(**other, ipset_threshold=2).changed
    assert not followed(site).changed
    assert not site.rule(**other, ipset_threshold=2).changed
    assert len(site.host.sets) == 1


def test_without_a_store_new_sources_reach_docker_proxy_too(site: Site) -> None:
    site.docker = Publishing(WEB)
    port = {**WEB_POLICY, "container": None, "published_port": "8080"}
    site.chain(port)
    assert site.rule(**{**port, "source": ["2001:db8:77::/48"]}).changed
    assert [by_proxy(site, source, 8080) for source in (OFFICE6, STRANGER6)] == ["DROP", None]


@pytest.mark.parametrize("target", [{"network": "bridge"}, {"destination": "172.17.0.0/16"}])
def test_a_port_that_may_lead_to_another_network_is_not_judged(site: Site, target: t.Dict[str, str]) -> None:
    """IPv4 is decided by DNAT; by docker-proxy nobody can tell, and who is outside the policy must not suffer."""
    both = published("both", "172.17.0.11", 443)
    both = both._replace(
        networks={**both.networks, "app": ("172.20.0.5",)}, network_ids={**both.network_ids, "app": APP.id}
    )
    site.docker = Publishing(WEB, both)
    found = site.chain({"name": "net", **target, "source": ["10.0.0.0/8"], "action": "accept"}, store=True)
    assert [text.partition(" is on other")[0] for text in found.warnings] == ["Policy net: Container both"]
    assert [by_proxy(site, STRANGER6, port) for port in (8080, 443)] == ["DROP", None]


def test_container_network_judges_a_container_that_has_no_other(site: Site) -> None:
    site.docker = Publishing(WEB)
    found = site.chain({**WEB_POLICY, "container_network": "bridge"}, default="drop")
    assert [by_proxy(site, source, 8080) for source in (OFFICE6, STRANGER6)] == [None, "DROP"]
    assert found.warnings == []


def test_a_container_that_cannot_be_inspected_is_no_fault_of_others(site: Site) -> None:
    site.docker = Publishing(WEB, published("dead", "172.17.0.12", 9090), broken="dead")
    port = {**WEB_POLICY, "container": None, "published_port": "8080"}
    found = site.chain(port, {"name": "net", "network": "app", "action": "drop"}, default="drop", store=True)
    assert found.changed
    assert any(
        "What container dead publishes is guarded at docker-proxy only as far" in said for said in found.warnings
    )
    # What it publishes now is in the list of all.
    assert by_proxy(site, STRANGER6, 9090) == "DROP"
    assert site.rule(**{**port, "source": ["2001:db8:77::/48"]}).changed


def test_who_denies_is_right_at_docker_proxy_too(site: Site) -> None:
    api = published("api", "172.17.0.11", 9090)
    mine = {"app": "x"}
    denied = {"name": "b", "container": "api", "source": ["203.0.113.0/24"], "action": "accept"}
    labelled = {**denied, "name": "a", "container": None, "labels": mine, "otherwise": "return"}
    web = WEB._replace(labels=mine)
    site.docker = Publishing(web, api)
    site.chain(labelled, denied, store=True)
    assert followed(site, web, api._replace(labels=mine)).changed
    assert [by_proxy(site, STRANGER6, port) for port in (9090, 8080)] == ["DROP", None]


def test_ports_that_docker_does_not_publish_stay_the_host_s(site: Site) -> None:
    hosted = published("hosted", "172.17.0.13", 443, network_mode="host")
    site.docker = Publishing(hosted._replace(networks={}, network_ids={}, current_ports=()), WEB)
    site.docker.bindings = lambda container: (Binding("tcp", 443, 443, "", True),) if container.name == "hosted" else ()
    site.chain(default="drop")
    assert [by_proxy(site, STRANGER6, port) for port in (443, 8080)] == [None, "DROP"]


@pytest.mark.parametrize("target", [{"container": "web"}, {"published_port": "8080"}])
def test_sources_of_ipv6_alone_are_denied_where_only_docker_proxy_serves_them(
    make: t.Callable[..., Site], target: t.Dict[str, str]
) -> None:
    site = make(DOCKER_29, {"INPUT": [], "FORWARD": [], "OUTPUT": []})
    site.docker = Publishing(WEB)
    policy = {"name": "ban", **target, "source": ["2001:db8:77::/48"], "action": "drop"}
    assert site.chain(policy, store=True).changed
    assert [by_proxy(site, source, 8080) for source in (OFFICE6, STRANGER6)] == [None, "DROP"]
    again = site.rule(**policy)
    assert not again.changed, again.result["diff"]
    # Without a guard there is nothing that could.
    assert "no rule" in site.chain(policy, guard=False).message


def test_one_of_many_with_a_label_goes_meanwhile(site: Site) -> None:
    going = published("job", "172.17.0.12")._replace(labels={"tier": "x"})

    class Going(Publishing):
        def bindings(self, container: Container) -> t.Tuple[Binding, ...]:
            if container.name == "job":
                raise DockerGone("Container job was removed while it was looked up: run again.")
            return super().bindings(container)

    site.docker = Going(WEB._replace(labels={"tier": "x"}), going)
    found = site.chain({"name": "all", "labels": {"tier": "x"}, "source": ["203.0.113.0/24"], "action": "accept"})
    assert found.changed
    assert "removed while it was looked up" in found.warnings[0]


# Long lists ----------------------------------------------------------------------------------------------------------


def long(count: int, *more: str) -> t.Dict[str, t.Any]:
    return {**PORT, "name": "long", "source": ["10.%d.%d.0/24" % divmod(n, 256) for n in range(count)] + list(more)}


def set_name(name: str, digit: int = 4) -> str:
    import hashlib

    return "quaywall-%s-%d" % (hashlib.sha256(name.encode()).hexdigest()[:16], digit)


def test_above_the_threshold_a_set_is_asked(site: Site) -> None:
    name = set_name("long")
    found = site.twice(long(3), ipset_threshold=2)
    assert site.host.members() == {name: ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"]}
    asking = '%s -m set --match-set %s src -m comment --comment "quaywall:long" -j ACCEPT' % (DNAT_9100, name)
    assert site.texts()[1:-1] == [asking, PORT_DENY.replace("metrics", "long") + " -j DROP"]
    assert found.result["sets"] == {name: 3}
    assert site.guard()[1] == asking.replace("-j ACCEPT", "-j RETURN")  # type: ignore[index]
    assert any(diff["after_header"] == "ipset " + name for diff in found.result["diff"])
    # One network more: only the set changes.
    commits = len([c for c in site.host.commands if c[0].endswith("-restore")])
    assert site.twice(long(4), ipset_threshold=2).changed
    assert len([c for c in site.host.commands if c[0].endswith("-restore")]) == commits
    assert len(site.host.members()[name]) == 4
    # At the threshold: a rule each, and the set goes.
    site.twice(long(2), ipset_threshold=2)
    assert site.host.members() == {}
    assert len(site.texts()) == 5
    site.twice(long(3), ipset_threshold=0)
    assert site.host.members() == {}


def test_a_set_goes_with_its_policy(site: Site) -> None:
    both = {**long(3), "source": [*long(3)["source"], "2001:db8::/32", "2001:db9::/32", "2001:dba::1"]}
    site.twice(both, ipset_threshold=2)
    assert site.host.members()[set_name("long", 6)] == ["2001:db8::/32", "2001:db9::/32", "2001:dba::1"]
    site.rule(**PORT)
    assert len(site.host.sets) == 2, "docker_user_rule keeps the sets of other policies"
    site.rule(name="long", state="absent")
    assert site.host.members() == {}


@pytest.mark.parametrize("everybody", ["0.0.0.0/0", "10.0.0.0/0"])
def test_a_list_that_names_everybody_is_no_trap(site: Site, everybody: str) -> None:
    """hash:net refuses a prefix of 0."""
    site.twice(long(5, everybody), ipset_threshold=2)
    assert site.host.members() == {}
    comment = '-m comment --comment "quaywall:long"'
    assert site.texts() == [
        ESTABLISHED,
        "%s %s -j ACCEPT" % (DNAT_9100, comment),
        "%s %s -j DROP" % (DNAT_9100, comment),
        RETURN,
    ]


def test_the_same_network_said_twice_is_one(site: Site) -> None:
    site.twice(
        {**PORT, "name": "long", "source": ["10.0.0.0/24", "10.0.0.7/24", "10.0.0.9", "10.0.0.9/32"]}, ipset_threshold=1
    )
    assert site.host.members() == {set_name("long"): ["10.0.0.0/24", "10.0.0.9"]}


def test_sets_that_cannot_be_filled_leave_all_as_it_was(site: Site) -> None:
    site.chain(long(3), ipset_threshold=2, store=True)
    before, stored = site.host.everything(), site.stored
    site.host.refuse_sets = "Kernel error received: Cannot allocate memory"
    found = site.chain(long(9), {**PORT, "name": "zz", "published_port": "9"}, ipset_threshold=2)
    assert found.failed
    assert "Cannot allocate memory" in found.message
    assert (site.host.everything(), site.stored) == (before, stored)
    assert os.listdir(site.path) == ["policies.json"]


def test_rules_that_cannot_be_written_leave_the_sets_as_they_were(site: Site) -> None:
    site.chain(long(3), ipset_threshold=2, store=True)
    before, stored = site.host.everything(), site.stored
    site.host.refuse_commit = "iptables"
    more = {**PORT, "name": "other", "published_port": "9", "source": ["10.0.0.1", "10.0.0.2", "10.0.0.3"]}
    found = site.chain(long(9), more, ipset_threshold=2)
    assert found.failed
    assert "Operation not permitted" in found.message
    assert (site.host.everything(), site.stored) == (before, stored)
    assert os.listdir(site.path) == ["policies.json"]


def test_what_a_killed_run_left_is_cleared_away(site: Site) -> None:
    site.chain(long(3), ipset_threshold=2)
    left = MemorySet("hash:net", "inet", 65536)
    left.elements.append("192.0.2.0/24")
    site.host.sets[set_name("long") + "-new"] = left
    site.host.sets[set_name("gone")] = MemorySet("hash:net", "inet", 65536)
    site.host.sets["somebodys"] = MemorySet("hash:net", "inet", 65536)
    assert site.twice(long(3), ipset_threshold=2).changed
    assert sorted(site.host.sets) == sorted([set_name("long"), "somebodys"])


def test_whoever_writes_for_us_holds_our_lock(site: Site) -> None:
    """If we are killed, the next run waits for the child that goes on."""
    site.chain(long(3), ipset_threshold=2)
    site.chain(state="absent")
    assert {name for name, _held in site.host.held} == {"ipset", "iptables-nft-restore", "ip6tables-nft-restore"}
    assert all(held == 1 for _name, held in site.host.held)


def test_the_modules_own_host_holds_it_too() -> None:
    with patch_module_args({"state": "absent"}):
        module = AnsibleModule(argument_spec=docker_user_chain.argument_spec(), supports_check_mode=True)
    made = make_host(module)
    assert made.ipset._descriptors == made.firewall.descriptors


def test_without_the_program_ipset(site: Site) -> None:
    site.host.programs -= {"ipset"}
    before = site.host.everything()
    found = site.chain(long(3), ipset_threshold=2)
    assert found.failed
    assert "ipset is not installed" in found.message
    assert site.host.everything() == before
    assert site.twice(long(3)).changed


# The store -----------------------------------------------------------------------------------------------------------


def test_the_store_is_made_when_told_and_kept_from_then_on(site: Site) -> None:
    site.twice(ADMIN)
    assert site.stored is None
    assert site.twice(PORT, ADMIN, store=True).changed
    assert site.stored == {"version": 1, "settings": {}, "policies": [ADMIN, PORT]}
    assert os.stat(site.path / "policies.json").st_mode & 0o777 == 0o600
    site.twice(ADMIN, guard=False, default="drop", outside_interfaces=["eth0"], ipset_threshold=7, established="return")
    assert site.stored == {
        "version": 1,
        "settings": {
            "guard": False,
            "default": "drop",
            "outside_interfaces": ["eth0"],
            "ipset_threshold": 7,
            "established": "return",
        },
        "policies": [ADMIN],
    }
    site.twice(store=False)
    assert site.stored["policies"] == [ADMIN]
    assert os.listdir(site.path) == ["policies.json"]


def test_docker_user_rule_brings_the_store_along(site: Site) -> None:
    site.rule(**PORT)
    assert site.stored is None
    site.chain(ADMIN, store=True)
    assert site.rule(check=True, **PORT).changed
    assert site.stored["policies"] == [ADMIN]
    assert site.rule(**PORT).changed
    assert not site.rule(**PORT).changed
    assert site.stored == {"version": 1, "settings": {}, "policies": [ADMIN, PORT]}
    site.rule(name="admin-ui", state="absent")
    assert site.stored["policies"] == [PORT]
    # Also where the kernel has it already.
    site.chain(ADMIN, store=False)
    assert site.rule(**ADMIN).changed
    assert site.stored["policies"] == [ADMIN, PORT]


@pytest.mark.parametrize(
    ("settings", "rules"),
    [
        ({}, [ADMIN, PORT, DUAL]),
        ({}, [long(150)]),
        ({}, [long(100)]),
        ({"ipset_threshold": 2}, [long(3)]),
        ({"ipset_threshold": 0}, [long(150)]),
        ({"default": "drop", "established": "return", "guard": False}, [ADMIN]),
        ({"default": "drop", "outside_interfaces": ["eth0"]}, [ADMIN]),
        ({"foreign_rules": "remove"}, [{**ADMIN, "log": {}, "priority": 0, "otherwise": "reject"}]),
        ({}, [{**ADMIN, "container": None, "labels": {"a": True}}]),
    ],
)
def test_the_follower_finds_nothing_to_do(site: Site, settings: t.Dict[str, t.Any], rules: t.List[t.Any]) -> None:
    """What is stored says the same as the task: defaults of both included."""
    labelled = one("labelled", BRIDGE, "172.17.0.44")._replace(labels={"a": "true"})
    inventory = Inventory((*INVENTORY.containers, labelled), INVENTORY.networks)
    site.docker = FakeDocker(inventory)
    site.chain(*rules, store=True, **settings)
    before = site.host.everything()
    assert not site.follow(dry=True, inventory=inventory).changed
    assert not site.follow(inventory=inventory).changed
    assert site.host.everything() == before


@pytest.mark.parametrize(
    "settings",
    [
        {"established": "omit"},
        {"established": "return"},
        {"default": "drop"},
        {"guard": False},
        {"foreign_rules": "remove"},
    ],
)
def test_nobody_takes_back_what_another_did(site: Site, settings: t.Dict[str, t.Any]) -> None:
    """The chain, a rule and the follower, where the policies are stored: one says what is, and all see it so."""
    site.chain(store=True, **settings)
    for step in (PORT, ADMIN, {"name": "metrics", "state": "absent"}, {"name": "admin-ui", "state": "absent"}, ADMIN):
        assert site.rule(**step).changed
        before = site.host.everything()
        assert not site.follow().changed
        assert not site.rule(**step).changed
        assert site.host.everything() == before
    assert not site.chain(ADMIN, **settings).changed


def test_what_was_stored_while_the_follower_waited_for_the_lock_is_what_it_writes(site: Site) -> None:
    """Else it would take back what a playbook just did, and with C(--once) nobody would put it right."""
    site.chain(ADMIN, store=True)
    read = site.store.read
    steps = [lambda: site.rule(**PORT)]

    def read_and_be_overtaken() -> t.Any:
        found = read()
        if steps:
            steps.pop()()
        return found

    site.store.read = read_and_be_overtaken  # type: ignore[method-assign]
    site.follow()
    assert site.texts() == BOTH
    assert site.stored["policies"] == [ADMIN, PORT]
    assert not site.follow().changed
    # The store goes while it waits.
    steps = [lambda: site.chain(state="absent")]
    site.follow()
    assert site.texts() == [RETURN]
    assert site.guard() is None


@pytest.mark.parametrize("chains_threshold", [100, 2, 0])
@pytest.mark.parametrize("rules_threshold", [100, 2, 0])
def test_the_follower_takes_nothing_of_docker_user_rule_back(
    site: Site, chains_threshold: int, rules_threshold: int
) -> None:
    site.chain(ADMIN, store=True, ipset_threshold=chains_threshold)
    site.rule(**long(3), ipset_threshold=rules_threshold)
    before = site.host.everything()
    assert not site.follow().changed
    assert site.host.everything() == before
    assert not site.rule(**long(3), ipset_threshold=rules_threshold).changed


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("module", ["chain", "rule"])
def test_a_full_disk_leaves_kernel_and_store_as_they_were(
    site: Site, monkeypatch: pytest.MonkeyPatch, number: int, module: str
) -> None:
    site.chain(long(3), ipset_threshold=2, store=True)
    before, stored = site.host.everything(), site.stored

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    found = site.chain(ADMIN) if module == "chain" else site.rule(**ADMIN)
    assert found.failed
    assert "policies.json" in found.message
    assert os.strerror(number).lower() in found.message
    monkeypatch.undo()
    assert (site.host.everything(), site.stored) == (before, stored)
    assert os.listdir(site.path) == ["policies.json"]


def test_a_kernel_that_refuses_leaves_the_store_as_it_was(site: Site) -> None:
    site.chain(ADMIN, store=True)
    before, stored = site.host.everything(), site.stored
    site.host.refuse_commit = "iptables"
    assert site.chain(ADMIN, PORT).failed
    assert site.rule(**PORT).failed
    assert (site.host.everything(), site.stored) == (before, stored)
    assert os.listdir(site.path) == ["policies.json"]


def test_sets_that_cannot_be_cleared_away_do_not_part_kernel_and_store(site: Site) -> None:
    """The rules are in the kernel by then."""
    site.chain(ADMIN, store=True)

    def broken() -> None:
        raise OSError(errno.EIO, "nobody expects that")

    site.host.sets["quaywall-0000000000000000-4"] = MemorySet("hash:net", "inet", 65536)
    site.host.before_sets = [broken]
    found = site.chain(ADMIN, PORT)
    assert found.failed
    assert site.texts() == BOTH
    assert site.stored["policies"] == [ADMIN, PORT]
    assert os.listdir(site.path) == ["policies.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "settings": [], "policies": {}}'])
def test_a_store_that_is_broken_is_written_anew_by_the_whole_chain_alone(site: Site, text: str) -> None:
    site.chain(ADMIN, store=True)
    (site.path / "policies.json").write_text(text)
    before = site.host.everything()
    for check in (True, False):
        found = site.rule(check=check, **PORT)
        assert found.failed
        assert "policies.json" in found.message
        assert site.host.everything() == before
    assert site.chain(ADMIN, check=True).changed
    assert site.chain(ADMIN).changed
    assert site.stored["policies"] == [ADMIN]


def test_nothing_of_the_tables_is_there_yet(make: t.Callable[..., Site]) -> None:
    """A kernel whose tables nobody used: no chains at all, mangle included."""
    site = make({}, {})
    for command in ("iptables", "ip6tables"):
        site.host.mangle[command] = Kernel({name: [] for name in MANGLE}, "mangle")
        site.host.tables[command, "nft"].chains["FORWARD"] = []
    site.docker = DockerError("Docker does not answer.")
    site.twice(PORT, missing_targets="wait")
    assert site.texts() == [ESTABLISHED, BOTH[2], BOTH[4], RETURN]
