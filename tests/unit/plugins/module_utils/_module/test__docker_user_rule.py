# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module docker_user_rule from its options to its results, on a host in memory."""

from __future__ import annotations

import json
import os
import sys
import types
import typing as t

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.quaywall.docker.plugins.module_utils import _iptables
from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER
from ansible_collections.quaywall.docker.plugins.module_utils._docker import Docker, DockerError, DockerSdkMissing
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Binding, Inventory
from ansible_collections.quaywall.docker.plugins.module_utils._ipset import Ipset
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import TRIES, Firewall
from ansible_collections.quaywall.docker.plugins.module_utils._module import docker_user_rule
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4
from ansible_collections.quaywall.docker.plugins.module_utils._store import Store
from ansible_collections.quaywall.docker.tests.unit.memory import (
    ADMIN,
    BRIDGE,
    DOCKER_29,
    ESTABLISHED,
    INVENTORY,
    FakeDocker,
    Host,
    isolate,
    one,
)
from ansible_collections.quaywall.docker.tests.unit.support import Kernel, Refused

DUAL_UI = {**ADMIN, "container": "dual", "source": ["203.0.113.10", "2001:db8::1"]}
DESIGN = [
    ESTABLISHED,
    (
        "-s 203.0.113.10/32 -d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 "
        '-m comment --comment "quaywall:admin-ui" -j ACCEPT'
    ),
    '-d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 -m comment --comment "quaywall:admin-ui" -j DROP',
    "-j RETURN",
]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: t.Any) -> None:
    isolate(monkeypatch, tmp_path)


class Answer(t.NamedTuple):
    failed: bool
    result: t.Dict[str, t.Any]
    warnings: t.List[str]

    @property
    def message(self) -> str:
        return str(self.result["msg"])


Run = t.Callable[..., Answer]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: t.Any) -> Run:
    """Runs the module and reads what it printed."""

    def runner(host: Host, options: t.Mapping[str, t.Any], docker: t.Any = None, check: bool = False) -> Answer:
        def create_docker() -> t.Any:
            if isinstance(docker, Exception):
                raise docker
            return docker or FakeDocker(INVENTORY)

        made = docker_user_rule.Host(
            Firewall(host.run, host.find, 0.1, 0.1, str(tmp_path)),
            Ipset(host.run, host.find, is_loaded=lambda: False),
            create_docker,
            lambda: pytest.fail("connections were asked for"),
        )
        host.read_only = check
        arguments = {**options, "_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(arguments):
            module = AnsibleModule(argument_spec=docker_user_rule.argument_spec(), supports_check_mode=True)
            # Ansible keeps warnings for the process, and this process runs many modules.
            warned: t.List[str] = []
            module.warn = warned.append
            with pytest.raises(SystemExit) as caught:
                docker_user_rule.run_module(module, lambda module: made, Store(str(tmp_path), str(tmp_path)))
        result = json.loads(capsys.readouterr().out)
        assert bool(result.get("failed")) == bool(caught.value.code)
        return Answer(bool(result.get("failed")), result, warned)

    return runner


def one_sentence(text: str) -> str:
    assert text.isprintable()
    assert text.endswith((".", "?"))
    assert "Unexpected error" not in text
    assert "Traceback" not in text
    return text


# Apply, check, again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [ADMIN, DUAL_UI, {"name": "p", "published_port": "9000", "action": "drop"}])
def test_check_apply_check_apply(run: Run, options: t.Dict[str, t.Any]) -> None:
    host = Host()
    before = host.saved()
    first = run(host, options, check=True)
    assert host.saved() == before
    second = run(host, options)
    assert host.saved() != before
    written = host.saved()
    third = run(host, options, check=True)
    fourth = run(host, options)
    assert host.saved() == written
    assert [found.result["changed"] for found in (first, second, third, fourth)] == [True, True, False, False]
    assert not any(found.failed for found in (first, second, third, fourth))
    # What check mode shows is what happens.
    for key in ("diff", "chains", "endpoints"):
        assert first.result[key] == second.result[key]
        assert third.result[key] == fourth.result[key]
    for diff in fourth.result["diff"]:
        assert diff["before"] == diff["after"]


def test_the_designs_example(run: Run) -> None:
    host = Host()
    found = run(host, ADMIN)
    assert host.four.texts(DOCKER_USER) == tuple(DESIGN)
    assert host.six.texts(DOCKER_USER) == ()
    assert found.result["chains"][IPV4]["after"] == ["-A DOCKER-USER " + rule for rule in DESIGN]
    assert found.result["chains"][IPV4]["before"] == []
    assert found.result["chains"][IPV4]["variant"] == "nft"
    assert found.result["diff"][0]["after"] == "".join("-A DOCKER-USER %s\n" % rule for rule in DESIGN)
    assert found.result["endpoints"] == [
        {
            "container": "admin",
            "container_id": "admin".ljust(64, "0"),
            "network": "bridge",
            "bridge": "docker0",
            "address": "172.17.0.10",
            "family": "ipv4",
        }
    ]
    assert found.warnings == []


def test_what_engine_20_10_left_there_is_taken_over(run: Run) -> None:
    host = Host({**DOCKER_29, DOCKER_USER: ["-j RETURN"]})
    run(host, ADMIN)
    assert host.four.texts(DOCKER_USER) == tuple(DESIGN)


def test_absent_leaves_what_was_there_and_needs_no_docker(run: Run) -> None:
    foreign = ["-s 203.0.113.66/32 -j DROP", "-s 10.9.0.0/16 -j ACCEPT", "-j RETURN"]
    host = Host({**DOCKER_29, DOCKER_USER: foreign})
    run(host, ADMIN)
    docker = DockerError("must not be asked")
    absent = {"name": "admin-ui", "state": "absent"}
    assert run(host, absent, docker, check=True).result["changed"] is True
    assert run(host, absent, docker).result["changed"] is True
    assert host.four.texts(DOCKER_USER) == tuple(foreign)
    again = run(host, absent, docker)
    assert (again.failed, again.result["changed"], again.result["endpoints"]) == (False, False, [])


def test_absent_of_one_of_two_policies_keeps_the_other_and_the_baseline(run: Run) -> None:
    host = Host()
    run(host, ADMIN)
    other = {"name": "dual", "container": "dual", "action": "drop"}
    run(host, other)
    serials = {rule.text: rule.serial for rule in host.four.chains[DOCKER_USER]}
    run(host, {"name": "dual", "state": "absent"})
    assert host.four.texts(DOCKER_USER) == tuple(DESIGN)
    assert {rule.text: rule.serial for rule in host.four.chains[DOCKER_USER]}.items() <= serials.items()
    assert ESTABLISHED not in host.six.texts(DOCKER_USER)


def test_a_policy_that_changes_keeps_other_rules_and_their_counters(run: Run) -> None:
    host = Host({**DOCKER_29, DOCKER_USER: ["-s 10.9.0.0/16 -j ACCEPT"]})
    run(host, ADMIN)
    serials = {rule.text: rule.serial for rule in host.four.chains[DOCKER_USER]}
    found = run(host, {**ADMIN, "source": ["203.0.113.10/32", "203.0.113.11"]})
    assert found.result["changed"] is True
    now = {rule.text: rule.serial for rule in host.four.chains[DOCKER_USER]}
    assert {text: now[text] for text in serials} == serials
    assert len(now) == len(serials) + 1


def test_without_the_baseline(run: Run) -> None:
    host = Host()
    run(host, {**ADMIN, "baseline": False})
    assert host.four.texts(DOCKER_USER) == tuple(DESIGN[1:3])


def test_both_families(run: Run) -> None:
    host = Host()
    run(host, DUAL_UI)
    rest = '! -i br-dddddddddddd -p tcp -m tcp --dport 8080 -m comment --comment "quaywall:admin-ui"'
    assert host.six.texts(DOCKER_USER) == (
        ESTABLISHED,
        "-s 2001:db8::1/128 -d fd00:31::2/128 %s -j ACCEPT" % rest,
        "-d fd00:31::2/128 %s -j DROP" % rest,
        "-j RETURN",
    )
    assert len(host.four.texts(DOCKER_USER)) == 4


def test_ip6tables_gets_the_chain_and_the_jump_where_docker_made_none(run: Run) -> None:
    """Engines up to 26 leave ip6tables alone unless they are told to use it."""
    host = Host(DOCKER_29, {"INPUT": [], "FORWARD": ["-i lo -j ACCEPT"], "OUTPUT": []})
    run(host, DUAL_UI)
    assert host.six.texts("FORWARD") == ("-j DOCKER-USER", "-i lo -j ACCEPT")
    assert len(host.six.texts(DOCKER_USER)) == 4
    assert run(host, DUAL_UI).result["changed"] is False


def test_everything_is_tried_before_anything_is_written(run: Run) -> None:
    host = Host()
    run(host, DUAL_UI)
    restores = [command[-1] == "--test" for command in host.commands if command[0].endswith("-restore")]
    assert restores == [True, True, False, False]


def test_a_policy_whose_address_moved_follows_it(run: Run) -> None:
    host = Host()
    run(host, ADMIN)
    moved = Inventory((one("admin", BRIDGE, "172.17.0.11"),), INVENTORY.networks)
    assert run(host, ADMIN, FakeDocker(moved)).result["changed"] is True
    assert host.four.texts(DOCKER_USER) == tuple(rule.replace("172.17.0.10/", "172.17.0.11/") for rule in DESIGN)


def test_a_hostile_comment_of_another_tool_is_kept_and_shown_on_one_line(run: Run) -> None:
    hostile = '-m comment --comment "x\n-A DOCKER-USER -m comment --comment quaywall:admin-ui -j ACCEPT" -j DROP'
    host = Host({**DOCKER_29, DOCKER_USER: [hostile]})
    found = run(host, ADMIN)
    assert hostile in host.four.texts(DOCKER_USER)
    assert all("\n" not in line for line in found.result["chains"][IPV4]["after"])
    assert any("\\n-A DOCKER-USER" in line for line in found.result["chains"][IPV4]["after"])


# Warnings ------------------------------------------------------------------------------------------------------------


def test_dead_rules_are_told(run: Run) -> None:
    host = Host({**DOCKER_29, DOCKER_USER: ["-j RETURN", "-i eth9 -j DROP"]})
    found = run(host, ADMIN)
    assert len(found.warnings) == 1
    assert "-i eth9 -j DROP" in found.warnings[0]
    assert "RETURN" in found.warnings[0]


def test_a_late_jump_is_told(run: Run) -> None:
    host = Host({**DOCKER_29, "FORWARD": ["-i eth0 -j ACCEPT", "-j DOCKER-USER"]})
    found = run(host, ADMIN)
    assert len(found.warnings) == 1
    assert "IPv4 FORWARD" in found.warnings[0]


# Two writers ---------------------------------------------------------------------------------------------------------


def test_the_second_family_fails_and_the_first_is_undone(run: Run) -> None:
    host = Host()
    host.refuse_commit = "ip6tables"
    before = host.saved()
    found = run(host, DUAL_UI)
    assert found.failed
    assert host.saved() == before
    assert "ip6tables" in one_sentence(found.message)
    assert "Operation not permitted" in found.message
    assert found.result["rc"] == 1
    assert found.result["stderr"]


def test_rules_that_the_kernel_refuses_are_written_to_no_family(run: Run) -> None:
    """The trial run fails for IPv6, so IPv4 is not begun."""
    host = Host()
    before = host.saved()
    host.six.restore = None  # type: ignore[assignment, method-assign]

    def refuse(transaction: str, test: bool = False) -> None:
        raise Refused("ip6tables-nft-restore v1.8.9 (nf_tables): unknown option")

    host.six.restore = refuse  # type: ignore[method-assign]
    found = run(host, DUAL_UI)
    assert found.failed
    assert host.saved() == before
    assert all(command[-1] == "--test" for command in host.commands if command[0].endswith("restore"))


def test_somebody_else_writes_between_reading_and_commit(run: Run) -> None:
    """nft applies our transaction to the new state without a word (kernel-facts 2), so it is read again."""
    host = Host({**DOCKER_29, DOCKER_USER: ["-s 10.9.0.0/16 -j ACCEPT"]})
    host.before_commit = [lambda: host.four.insert(DOCKER_USER, 0, "-s 10.8.0.0/16 -j ACCEPT")]
    found = run(host, ADMIN)
    assert not found.failed
    assert found.result["changed"] is True
    assert host.four.texts(DOCKER_USER) == (
        *DESIGN[:3],
        "-s 10.8.0.0/16 -j ACCEPT",
        "-s 10.9.0.0/16 -j ACCEPT",
        "-j RETURN",
    )
    assert run(host, ADMIN).result["changed"] is False


def test_somebody_else_flushes_the_chain_between_reading_and_commit(run: Run) -> None:
    host = Host({**DOCKER_29, DOCKER_USER: ["-s 10.9.0.0/16 -j ACCEPT", "-s 10.8.0.0/16 -j ACCEPT"]})
    host.before_commit = [host.four.chains[DOCKER_USER].clear]
    found = run(host, ADMIN)
    assert not found.failed
    assert host.four.texts(DOCKER_USER) == tuple(DESIGN)


def test_somebody_else_takes_our_rules_out_right_after_the_commit(run: Run) -> None:
    host = Host()

    def take_one() -> None:
        host.four.chains[DOCKER_USER].pop(1)

    host.after_commit = [take_one]
    assert not run(host, ADMIN).failed
    assert host.four.texts(DOCKER_USER) == tuple(DESIGN)


def test_giving_up_says_why(run: Run) -> None:
    host = Host()

    def always() -> None:
        host.four.chains[DOCKER_USER].clear()
        host.after_commit.append(always)

    host.after_commit = [always]
    found = run(host, ADMIN)
    assert found.failed
    assert "%d times" % TRIES in one_sentence(found.message)
    assert "somebody else" in found.message
    commits = [command for command in host.commands if command[0].endswith("restore") and command[-1] != "--test"]
    assert len(commits) == TRIES


def test_another_run_of_ours_holds_the_lock(run: Run, tmp_path: t.Any) -> None:
    host = Host()
    with _iptables._locked(str(tmp_path / "quaywall.lock"), 1, "the test"):
        found = run(host, ADMIN)
        assert run(host, ADMIN, check=True).failed is False
    assert found.failed
    assert "quaywall.lock" in one_sentence(found.message)
    assert not run(host, ADMIN).failed


# What a host may lack ------------------------------------------------------------------------------------------------


def test_no_docker_user(run: Run) -> None:
    without = {name: rules for name, rules in DOCKER_29.items() if name != DOCKER_USER}
    found = run(Host({**without, "FORWARD": []}), ADMIN)
    assert found.failed
    assert "DOCKER-USER" in one_sentence(found.message)
    assert "Restart Docker" in found.message
    found = run(Host({"INPUT": [], "FORWARD": [], "OUTPUT": []}), ADMIN)
    assert "start Docker" in one_sentence(found.message)
    assert '"iptables": false' in found.message


def test_no_docker_user_and_a_policy_that_is_to_go(run: Run) -> None:
    """There is nothing to take away, whatever the reason; the chain is not made for it."""
    host = Host({"INPUT": [], "FORWARD": [], "OUTPUT": []})
    before = host.saved()
    run(host, {"name": "x", "state": "absent"})
    assert host.saved() == before


def test_both_variants_hold_dockers_chains(run: Run, tmp_path: t.Any) -> None:
    host = Host()
    host.tables["iptables", "legacy"] = Kernel(DOCKER_29)
    (tmp_path / "ip_tables_names").write_text("nat\nfilter\n")
    before = host.saved()
    found = run(host, ADMIN)
    assert found.failed
    assert "both variants" in one_sentence(found.message)
    assert host.saved() == before


def test_legacy_is_used_where_docker_uses_it(run: Run, tmp_path: t.Any) -> None:
    host = Host({"INPUT": [], "FORWARD": [], "OUTPUT": []}, {"INPUT": [], "FORWARD": [], "OUTPUT": []})
    host.tables["iptables", "legacy"] = Kernel(DOCKER_29)
    (tmp_path / "ip_tables_names").write_text("filter\n")
    first = run(host, ADMIN, check=True)
    found = run(host, ADMIN)
    assert not found.failed, found.result
    assert found.result["chains"][IPV4]["variant"] == "legacy"
    assert first.result["diff"] == found.result["diff"]
    assert host.tables["iptables", "legacy"].texts(DOCKER_USER) == tuple(DESIGN)
    # We hold the lock that iptables-legacy would wait for.
    for command, environment in zip(host.commands, host.environments):
        if command[0].endswith("legacy-restore") and command[-1] != "--test":
            assert environment["XTABLES_LOCKFILE"] == "/run/quaywall-xtables.lock"
        assert "--wait" not in command or int(command[command.index("--wait") + 1]) > 0


def test_the_xtables_lock_is_held_by_somebody(run: Run, tmp_path: t.Any) -> None:
    host = Host({"INPUT": [], "FORWARD": [], "OUTPUT": []})
    host.tables["iptables", "legacy"] = Kernel(DOCKER_29)
    (tmp_path / "ip_tables_names").write_text("filter\n")
    with _iptables._locked(str(tmp_path / "xtables.lock"), 1, "the test"):
        found = run(host, ADMIN)
    assert found.failed
    assert "xtables.lock" in one_sentence(found.message)


def test_legacy_tables_that_are_not_there_are_not_read(run: Run) -> None:
    """Asking for them makes them (kernel-facts 2); the host in memory fails the test that does."""
    host = Host()
    run(host, DUAL_UI)
    assert not any("legacy" in word for command in host.commands for word in command)


def test_an_incompatible_table_is_no_empty_one(run: Run) -> None:
    host = Host()
    host.incompatible = {"iptables"}
    before = host.saved()
    found = run(host, ADMIN)
    assert found.failed
    assert "nft list table ip filter" in one_sentence(found.message)
    assert host.saved() == before


def test_an_incompatible_ip6_table_stops_only_policies_with_ipv6(run: Run) -> None:
    host = Host()
    host.incompatible = {"ip6tables"}
    found = run(host, ADMIN)
    assert not found.failed
    assert host.four.texts(DOCKER_USER) == tuple(DESIGN)
    assert "IPv6" in found.warnings[0]
    found = run(host, DUAL_UI)
    assert found.failed
    assert "nft list table ip6 filter" in one_sentence(found.message)


@pytest.mark.parametrize("there", [True, False])
def test_dockers_nftables_backend(run: Run, there: bool) -> None:
    chains: t.Dict[str, t.Sequence[str]] = {"INPUT": [], "FORWARD": [], "OUTPUT": []}
    if there:
        chains[DOCKER_USER] = []
    host = Host(chains)
    host.nft_tables = "table ip docker-bridges\ntable ip6 docker-bridges\ntable ip filter\n"
    found = run(host, ADMIN)
    assert found.failed
    assert "nftables" in one_sentence(found.message)
    assert '"firewall-backend": "iptables"' in found.message


def test_no_iptables(run: Run) -> None:
    host = Host()
    host.programs = set()
    found = run(host, ADMIN)
    assert found.failed
    assert "iptables is not installed" in one_sentence(found.message)


def test_no_ip6tables(run: Run) -> None:
    host = Host()
    host.programs = {name for name in host.programs if not name.startswith("ip6tables")}
    assert not run(host, ADMIN).failed
    found = run(host, DUAL_UI)
    assert found.failed
    assert "ip6tables is not installed" in one_sentence(found.message)


def test_programs_without_a_suffix(run: Run) -> None:
    """Alpine and others have one variant, and no suffix in its programs' names."""
    host = Host()
    host.programs = {"iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore"}
    assert not run(host, DUAL_UI).failed
    assert len(host.six.texts(DOCKER_USER)) == 4


def test_iptables_save_fails(run: Run) -> None:
    host = Host()
    host.broken = {
        "iptables": "iptables-save v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied\n"
    }
    found = run(host, ADMIN)
    assert found.failed
    assert "Permission denied" in one_sentence(found.message)
    assert found.result["rc"] == 1
    assert found.result["cmd"][0].endswith("iptables-nft-save")


def test_no_root(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    host = Host()
    found = run(host, ADMIN)
    assert found.failed
    assert "become: true" in one_sentence(found.message)
    assert host.commands == []


def test_no_docker_sdk(run: Run) -> None:
    host = Host()
    found = run(host, ADMIN, DockerSdkMissing("Traceback: No module named docker"))
    assert found.failed
    assert "Failed to import the required Python library (docker)" in found.message
    assert sys.executable in found.message
    assert host.commands == []
    # A host port needs no look-up.
    port = {"name": "p", "published_port": "9000", "action": "drop"}
    assert not run(host, port, DockerSdkMissing("x")).failed


def test_docker_is_down(run: Run) -> None:
    host = Host()
    before = host.saved()
    found = run(host, ADMIN, DockerError("Docker does not answer at unix:///var/run/docker.sock (no such file)."))
    assert found.failed
    assert one_sentence(found.message).startswith("Docker does not answer")
    assert host.saved() == before


@pytest.mark.parametrize("check", [True, False])
def test_a_bad_policy_changes_nothing(run: Run, check: bool) -> None:
    host = Host()
    before = host.saved()
    found = run(host, {**ADMIN, "container": "admim"}, check=check)
    assert found.failed
    assert "did you mean 'admin'" in one_sentence(found.message)
    found = run(host, {**ADMIN, "destination_port": ["http;reboot"]}, check=check)
    assert "'http;reboot'" in one_sentence(found.message)
    assert host.saved() == before


@pytest.mark.parametrize("check", [True, False])
def test_policies_that_disagree_are_both_named(run: Run, check: bool) -> None:
    host = Host()
    run(host, ADMIN)
    before = host.saved()
    found = run(host, {**ADMIN, "name": "second", "otherwise": "reject"}, check=check)
    assert found.failed
    assert "Policies second and admin-ui disagree" in found.message
    assert "second says reject and admin-ui says drop" in found.message
    assert found.message.isprintable()
    assert host.saved() == before


def test_two_policies_for_one_container_add_up(run: Run) -> None:
    host = Host()
    run(host, ADMIN)
    run(host, {**ADMIN, "name": "zz", "source": ["198.51.100.0/24"]})
    targets = [rule.rpartition("-j ")[2] for rule in host.four.texts(DOCKER_USER)]
    assert targets == ["ACCEPT", "ACCEPT", "ACCEPT", "DROP", "DROP", "RETURN"]


def test_an_error_of_our_own_is_no_traceback_in_the_message(run: Run) -> None:
    found = run(Host(), ADMIN, RuntimeError("boom"))
    assert found.failed
    assert found.message == "Unexpected error in docker_user_rule: boom. Please report it."


# The module's own edges ----------------------------------------------------------------------------------------------


def test_make_firewall_runs_and_finds_programs_as_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    with patch_module_args({"name": "x", "state": "absent"}):
        module = AnsibleModule(argument_spec=docker_user_rule.argument_spec(), supports_check_mode=True)
    firewall = docker_user_rule.make_host(module).firewall
    cat = firewall._find("cat")
    assert cat is not None
    data = b"\xff\xfe \xc3\xa4\n\n"
    assert firewall._run([cat], data, {"LC_ALL": "C"}, ()) == (0, data, b"")
    shell = firewall._find("sh")
    assert shell is not None
    rc, out, err = firewall._run([shell, "-c", "echo $LC_ALL; echo no >&2; exit 3"], None, {"LC_ALL": "C"}, ())
    assert (rc, out, err) == (3, b"C\n", b"no\n")
    assert firewall._find("no-such-program-anywhere") is None


# The Docker SDK ------------------------------------------------------------------------------------------------------


class ApiError(Exception):
    explanation = "page not found"


class NotFound(ApiError):
    pass


def sdk(monkeypatch: pytest.MonkeyPatch, client: t.Any) -> None:
    module = types.ModuleType("docker")
    module.errors = types.SimpleNamespace(APIError=ApiError, NotFound=NotFound)  # type: ignore[attr-defined]
    module.APIClient = client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "docker", module)


def test_sdk_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(DockerSdkMissing) as caught:
        Docker()
    assert "import docker" in caught.value.trace


@pytest.mark.parametrize(
    ("environment", "socket"),
    [
        (None, "unix:///var/run/docker.sock"),
        ("unix:///run/user/1000/docker.sock", "unix:///run/user/1000/docker.sock"),
        ("tcp://elsewhere:2375", "unix:///var/run/docker.sock"),
        ("ssh://elsewhere", "unix:///var/run/docker.sock"),
    ],
)
def test_the_engine_asked_is_this_hosts(
    monkeypatch: pytest.MonkeyPatch, environment: t.Optional[str], socket: str
) -> None:
    asked: t.List[t.Dict[str, t.Any]] = []
    sdk(monkeypatch, lambda **options: asked.append(options))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    if environment is not None:
        monkeypatch.setenv("DOCKER_HOST", environment)
    Docker()
    assert [(item["base_url"], item["version"]) for item in asked] == [(socket, "auto")]


def test_docker_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: t.Any) -> None:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError as error:
            raise RuntimeError("Error while fetching server API version: ('Connection aborted.', ...)") from error

    sdk(monkeypatch, refuse)
    with pytest.raises(DockerError) as caught:
        Docker("unix:///var/run/docker.sock")
    text = one_sentence(str(caught.value))
    assert "connection refused" in text
    assert "systemctl start docker" in text


class Client:
    """One engine's answers; ``error`` is raised in place of an inspection."""

    def __init__(self, error: t.Optional[Exception] = None) -> None:
        self.error = error

    def containers(self, **options: t.Any) -> t.List[t.Dict[str, t.Any]]:
        assert options == {"all": True}
        return [{"Id": "a" * 64, "Names": ["/admin"], "State": "running"}]

    def networks(self) -> t.List[t.Dict[str, t.Any]]:
        return [{"Name": "bridge", "Id": "b" * 64, "Driver": "bridge"}]

    def inspect_container(self, identity: str) -> t.Dict[str, t.Any]:
        if self.error is not None:
            raise self.error
        assert identity == "a" * 64
        return {"HostConfig": {"PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}}}


def test_docker_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    sdk(monkeypatch, lambda **options: Client())
    docker = Docker()
    inventory = docker.inventory()
    assert [item.name for item in inventory.containers] == ["admin"]
    assert docker.bindings(inventory.containers[0]) == (Binding("tcp", 80, 8080, "", True),)


@pytest.mark.parametrize(
    ("error", "words"),
    [(NotFound("404"), "Container admin was removed"), (ApiError("500"), "page not found"), (OSError(5, "I/O"), "i/o")],
)
def test_docker_answers_with_an_error(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    sdk(monkeypatch, lambda **options: Client(error))
    docker = Docker()
    with pytest.raises(DockerError, match=words) as caught:
        docker.bindings(docker.inventory().containers[0])
    one_sentence(str(caught.value))
