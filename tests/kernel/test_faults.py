# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What goes wrong on real machines: each fault gives its sentence, and changes nothing."""

from __future__ import annotations

import fcntl
import os
import re
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._iptables import FirewallError

from .lab import (
    FAMILIES,
    IPV4,
    IPV6,
    LEGACY,
    NFT,
    VARIANTS,
    Host,
    counted,
    docker_table,
    find,
    firewall,
    listed,
    load,
    run_command,
    save,
    tool,
)
from .planners import parsed, policy_planner

if t.TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

WANTED = {
    IPV4: [
        '-s 203.0.113.7/32 -d 172.17.0.10/32 -p tcp -m comment --comment "quaywall:admin-ui" -j ACCEPT',
        '-d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 -m comment --comment "quaywall:admin-ui" -j DROP',
    ],
    IPV6: [
        '-d fd00:17::10/128 ! -i docker0 -p tcp -m tcp --dport 8080 -m comment --comment "quaywall:admin-ui" -j DROP'
    ],
}
BOTH = policy_planner("admin-ui", parsed(WANTED))
ONLY4 = policy_planner("admin-ui", parsed({IPV4: WANTED[IPV4]}))
AWAY = policy_planner("admin-ui", {})

ESTABLISHED = '-m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "quaywall: established" -j ACCEPT'
FOREIGN = ["-i eth9 -j DROP", "-i eth8 -j ACCEPT", "-j RETURN"]


def after(family: str) -> list[str]:
    return [ESTABLISHED, FOREIGN[0], *WANTED[family], *FOREIGN[1:]]


def specs(host: Host, variant: str, family: str, chain: str = "DOCKER-USER") -> list[str]:
    return [rule.spec for rule in counted(save(host, variant, family, "-c"), chain)]


def everything(host: Host) -> dict[str, t.Any]:
    """All that a careless reader or writer would leave on a machine."""
    found: dict[str, t.Any] = {
        "nft": host.run("nft", "list", "ruleset"),
        "run": host.call(os.listdir, "/run"),
    }
    for name in ("ip_tables_names", "ip6_tables_names"):
        found[name] = host.read("/proc/thread-self/net/" + name)
    for family, name in ((IPV4, "ip_tables_names"), (IPV6, "ip6_tables_names")):
        if found[name]:
            found["legacy " + family] = re.sub(
                rb"# (Generated|Completed) [^\n]*", b"", host.run(tool(family, LEGACY, "save"), "-c")
            )
    return found


def docker(host: Host, variant: str, families: Sequence[str] = FAMILIES) -> None:
    for family in families:
        load(host, variant, family, docker_table(FOREIGN))


def fails(host: Host, function: Callable[..., t.Any], *args: t.Any, **kwargs: t.Any) -> str:
    with pytest.raises(FirewallError) as caught:
        host.call(function, *args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and "Traceback" not in text
    return text


# Reading never writes -------------------------------------------------------------------------------------------------


def test_reading_an_empty_machine_leaves_it_empty(host: Host) -> None:
    before = everything(host)
    assert before == {"nft": b"", "run": [], "ip_tables_names": "", "ip6_tables_names": ""}
    code = firewall()
    assert "no chain DOCKER-USER" in fails(host, code.read)
    assert "start Docker" in fails(host, code.change, BOTH, dry=True)
    assert everything(host) == before


def test_a_change_of_an_empty_machine_leaves_its_rules_empty(host: Host) -> None:
    before = everything(host)
    assert "start Docker" in fails(host, firewall().change, BOTH, dry=False)
    assert {**everything(host), "run": []} == before


@pytest.mark.parametrize("wanted", [BOTH, AWAY, ONLY4], ids=["both", "away", "only IPv4"])
def test_check_mode_changes_nothing(host: Host, variant: str, wanted: t.Any) -> None:
    for family in FAMILIES:
        rules = [rule + " -c 7 700" for rule in FOREIGN[:2]] + [WANTED[family][-1] + " -c 3 300"]
        load(host, variant, family, docker_table(rules))
    # iptables-legacy itself leaves its lock file behind.
    host.call(Path("/run/xtables.lock").unlink, missing_ok=True)
    before = everything(host)
    changes = host.call(firewall().change, wanted, dry=True)
    assert changes[IPV4].changed
    found = everything(host)
    if variant == LEGACY:
        found["run"] = [name for name in found["run"] if name != "xtables.lock"]
    assert found == before


def test_reading_tables_of_one_variant_does_not_make_those_of_the_other(host: Host, variant: str) -> None:
    docker(host, variant)
    before = everything(host)
    state = host.call(firewall().read)
    assert dict(state.variants) == dict.fromkeys(FAMILIES, variant)
    assert everything(host) == before


# Locks ----------------------------------------------------------------------------------------------------------------


class Lock:
    """Somebody else who holds a lock file on a machine."""

    def __init__(self, host: Host, path: str) -> None:
        self._descriptor = host.call(os.open, path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __enter__(self) -> t.Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._descriptor)


@pytest.mark.parametrize("dry", [False, True], ids=["change", "check mode"])
def test_the_xtables_lock_is_held_for_too_long(host: Host, dry: bool) -> None:
    docker(host, LEGACY)
    code = firewall(xtables_wait=1.0)
    before = everything(host)
    with Lock(host, "/run/xtables.lock"):
        started = time.monotonic()
        text = fails(host, code.change, BOTH, dry=dry)
        waited = time.monotonic() - started
    assert 0.9 < waited < 5
    assert text.startswith(
        "Another program that uses iptables has held the lock /run/xtables.lock for longer than 1 sec"
    )
    assert "fuser -v /run/xtables.lock" in text and "run again" in text
    assert {**everything(host), "run": before["run"]} == before
    assert host.call(code.change, BOTH, dry=False)[IPV4].changed
    assert specs(host, LEGACY, IPV4) == after(IPV4)


def test_the_xtables_lock_does_not_matter_to_nft(host: Host) -> None:
    docker(host, NFT)
    with Lock(host, "/run/xtables.lock"):
        assert host.call(firewall(xtables_wait=1.0).change, BOTH, dry=False)[IPV4].changed
    assert specs(host, NFT, IPV4) == after(IPV4)


def test_our_own_lock_is_held_for_too_long(host: Host, variant: str) -> None:
    docker(host, variant)
    before = everything(host)
    code = firewall(own_wait=1.0)
    with Lock(host, "/run/quaywall.lock"):
        started = time.monotonic()
        text = fails(host, code.change, BOTH, dry=False)
        waited = time.monotonic() - started
        # Check mode reads only, so it need not wait.
        assert host.call(code.change, BOTH, dry=True)[IPV4].changed
    assert 0.9 < waited < 5
    assert text.startswith(
        "Another run of quaywall.docker has held the lock /run/quaywall.lock for longer than 1 seconds"
    )
    assert {**everything(host), "run": before["run"]} == before
    assert host.call(code.change, BOTH, dry=False)[IPV4].changed


def test_our_lock_is_no_file_of_somebody_else(host: Host) -> None:
    docker(host, NFT)
    host.call(Path("/run/precious").write_text, "precious", encoding="ascii")
    host.call(os.symlink, "/run/precious", "/run/quaywall.lock")
    assert "cannot be opened" in fails(host, firewall().change, BOTH, dry=False)
    assert host.read("/run/precious") == "precious"
    assert specs(host, NFT, IPV4) == FOREIGN


# What is not there, or not as it should be ----------------------------------------------------------------------------


def test_docker_user_was_removed(host: Host, variant: str) -> None:
    for family in FAMILIES:
        load(host, variant, family, docker_table([], ["-j DOCKER-FORWARD"]).replace(":DOCKER-USER - [0:0]\n", ""))
    before = everything(host)
    text = fails(host, firewall().change, BOTH, dry=False)
    assert "somebody removed it" in text and "Restart Docker" in text
    assert {**everything(host), "run": before["run"]} == before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chain", ["INPUT", "DOCKER-USER"])
def test_native_rules_in_the_filter_table(host: Host, chain: str, family: str) -> None:
    docker(host, NFT)
    table = "ip" if family == IPV4 else "ip6"
    host.run("nft", "add rule %s filter %s ct state new drop" % (table, chain))
    # The trap: it says so in a comment, with return code 0.
    assert b"is incompatible, use 'nft' tool." in host.run(tool(family, NFT, "save"), "-t", "filter")
    before = everything(host)
    for dry in (True, False):
        text = fails(host, firewall().change, BOTH, dry=dry)
        assert "written with nft" in text and "nft list table %s filter" % table in text
    assert {**everything(host), "run": before["run"]} == before
    if family == IPV6:
        # Its containers with IPv4 addresses are guarded nevertheless.
        host.call(firewall().change, ONLY4, dry=False)
        assert specs(host, NFT, IPV4) == after(IPV4)
        assert host.run("nft", "list", "table", "ip6", "filter") in before["nft"]


def test_native_rules_that_iptables_cannot_even_skip(host: Host) -> None:
    docker(host, NFT)
    host.run("nft", "add rule ip filter DOCKER-USER meta mark set 5")
    assert host.attempt("iptables-nft-save", "-t", "filter").returncode == 3
    before = everything(host)
    assert "cannot read the filter table" in fails(host, firewall().change, BOTH, dry=False)
    assert {**everything(host), "run": before["run"]} == before


NATIVE = (
    "ip saddr { 192.0.2.1, 192.0.2.2 } drop",
    "ip saddr @bans drop",
    'iifname { "eth0", "eth1" } return',
    "tcp dport vmap { 80 : drop, 443 : accept }",
    "ip saddr 192.0.2.0-192.0.2.9 accept",
)


def test_native_rules_that_iptables_shows_as_something_else_stay_what_they_are(host: Host) -> None:
    """iptables 1.8.9 shows the first of these as C(-j DROP): what we never write back cannot be spoiled."""
    load(host, NFT, IPV4, docker_table([]))
    load(host, NFT, IPV6, docker_table([]))
    host.run("nft", "add set ip filter bans { type ipv4_addr; }")
    for rule in NATIVE:
        host.run("nft", "add rule ip filter DOCKER-USER " + rule)

    def natives() -> list[str]:
        found = host.run("nft", "list", "chain", "ip", "filter", "DOCKER-USER").decode().splitlines()
        return [line.strip() for line in found if line.strip() in NATIVE]

    assert natives() == list(NATIVE)
    for planner in (BOTH, AWAY, BOTH):
        host.call(firewall().change, planner, dry=False)
        assert natives() == list(NATIVE)


def test_both_variants_hold_dockers_chains(host: Host) -> None:
    for variant in VARIANTS:
        docker(host, variant)
    before = everything(host)
    text = fails(host, firewall().change, BOTH, dry=False)
    assert "both variants" in text and "reboot" in text
    assert {**everything(host), "run": before["run"]} == before


def test_the_other_variant_has_rules_that_are_not_dockers(host: Host, variant: str) -> None:
    """ufw or an administrator in the variant that Docker does not use: Docker's is the one that counts."""
    (other,) = set(VARIANTS) - {variant}
    docker(host, variant)
    foreign = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n"
    for family in FAMILIES:
        load(host, other, family, foreign)
    changes = host.call(firewall().change, BOTH, dry=False)
    assert {change.variant for change in changes.values()} == {variant}
    for family in FAMILIES:
        assert specs(host, variant, family) == after(family)
        assert b"DOCKER" not in save(host, other, family)


def tools_in(folder: Path, variant: str, names: Sequence[str]) -> Callable[[str], str | None]:
    """A PATH where the programs of one variant have no suffix, as on Alpine; nothing else is found."""
    for name in names:
        target = find("xtables-%s-multi" % variant)
        assert target is not None
        (folder / name).symlink_to(target)
    return lambda program: str(folder / program) if (folder / program).exists() else None


PLAIN = ("iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore")


def test_programs_without_a_suffix(host: Host, variant: str, tmp_path: Path) -> None:
    docker(host, variant)
    code = firewall(finder=tools_in(tmp_path, variant, PLAIN))
    changes = host.call(code.change, BOTH, dry=False)
    assert {change.variant for change in changes.values()} == {variant}
    for family in FAMILIES:
        assert specs(host, variant, family) == after(family)


def test_iptables_on_the_path_is_the_other_variant(host: Host, variant: str, tmp_path: Path) -> None:
    """C(iptables) points to one variant, Docker was started with the other, whose programs have their suffix."""
    (other,) = set(VARIANTS) - {variant}
    docker(host, variant)
    plain = tools_in(tmp_path, other, PLAIN)
    code = firewall(finder=lambda program: find(program) if variant in program else plain(program))
    changes = host.call(code.change, BOTH, dry=False)
    assert {change.variant for change in changes.values()} == {variant}
    assert specs(host, variant, IPV4) == after(IPV4)
    assert b"DOCKER" not in save(host, other, IPV4)


def test_only_programs_of_the_variant_that_docker_does_not_use(host: Host, variant: str, tmp_path: Path) -> None:
    (other,) = set(VARIANTS) - {variant}
    docker(host, variant)
    before = everything(host)
    text = fails(host, firewall(finder=tools_in(tmp_path, other, PLAIN)).change, BOTH, dry=False)
    assert "no chain DOCKER-USER" in text
    assert {**everything(host), "run": before["run"]} == before


def test_without_ip6tables(host: Host, variant: str, tmp_path: Path) -> None:
    docker(host, variant)
    finder = tools_in(tmp_path, variant, PLAIN[:3])
    assert host.call(firewall(finder=finder).change, ONLY4, dry=False)[IPV4].changed
    assert specs(host, variant, IPV4) == after(IPV4)
    assert specs(host, variant, IPV6) == FOREIGN


def test_without_iptables(host: Host) -> None:
    assert "not installed" in fails(host, firewall(finder=lambda program: None).change, BOTH, dry=False)


def test_dockers_nftables_backend(host: Host, shared: Path) -> None:
    ruleset = (shared / "captures" / "docker-29.7-nftables" / "nft-ruleset.nft").read_bytes()
    # nft 1.0.6 does not know that name there.
    host.run("nft", "-f", "-", data=ruleset.replace(b"hook output priority dstnat", b"hook output priority -100"))
    before = everything(host)
    for dry in (True, False):
        text = fails(host, firewall().change, BOTH, dry=dry)
        assert "backend on this host is nftables" in text and "firewall-backend" in text
    assert {**everything(host), "run": before["run"]} == before


def test_a_docker_user_chain_that_is_left_from_before_the_nftables_backend(host: Host) -> None:
    load(host, NFT, IPV4, "*filter\n:FORWARD ACCEPT [0:0]\n:DOCKER-USER - [0:0]\n-A DOCKER-USER -j RETURN\nCOMMIT\n")
    host.run("nft", "add table ip docker-bridges")
    assert "backend on this host is nftables" in fails(host, firewall().change, BOTH, dry=False)


def test_dockers_nftables_backend_on_a_machine_with_legacy_tables(host: Host) -> None:
    load(host, LEGACY, IPV4, "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n")
    host.run("nft", "add table ip docker-bridges")
    assert "backend on this host is nftables" in fails(host, firewall().change, BOTH, dry=False)


# IPv6 and the jump ----------------------------------------------------------------------------------------------------

EMPTY = (
    "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A FORWARD -i eth9 -j ACCEPT\nCOMMIT\n"
)


@pytest.mark.parametrize("table", [EMPTY, ""], ids=["other rules", "no table at all"])
def test_the_chain_of_ipv6_is_made_where_it_is_needed(host: Host, variant: str, table: str) -> None:
    docker(host, variant, [IPV4])
    if table:
        load(host, variant, IPV6, table)
    changes = host.call(firewall().change, BOTH, dry=False)
    assert changes[IPV6].changed and changes[IPV6].variant == variant
    assert specs(host, variant, IPV6) == [ESTABLISHED, *WANTED[IPV6], "-j RETURN"]
    forward = ["-j DOCKER-USER", "-i eth9 -j ACCEPT"] if table else ["-j DOCKER-USER"]
    assert specs(host, variant, IPV6, "FORWARD") == forward
    assert specs(host, variant, IPV4) == after(IPV4)


def test_the_chain_of_ipv6_is_not_made_where_it_is_not_needed(host: Host, variant: str) -> None:
    docker(host, variant, [IPV4])
    for planner in (ONLY4, AWAY):
        assert host.call(firewall().change, planner, dry=False)[IPV4].changed
    assert b"DOCKER-USER" not in host.run("nft", "list", "ruleset").partition(b"table ip6")[2]
    assert host.read("/proc/thread-self/net/ip6_tables_names") == ""
    if variant == NFT:
        assert b"table ip6" not in host.run("nft", "list", "ruleset")


def test_a_jump_that_is_missing_is_put_back(host: Host, variant: str) -> None:
    for family in FAMILIES:
        load(host, variant, family, docker_table(after(family), ["-j DOCKER-FORWARD"]))
    changes = host.call(firewall().change, BOTH, dry=False)
    for family in FAMILIES:
        assert changes[family].changed
        assert specs(host, variant, family, "FORWARD") == ["-j DOCKER-USER", "-j DOCKER-FORWARD"]
        assert specs(host, variant, family) == after(family)


# Others who write at the same time ------------------------------------------------------------------------------------


class Meddler:
    """Runs commands for the code under test, and does something else in front of chosen ones."""

    def __init__(self, when: Callable[[Sequence[str]], bool], what: Callable[[int], None], times: int) -> None:
        self.when, self.what, self.left, self.done = when, what, times, 0

    def __call__(
        self, args: Sequence[str], data: bytes | None, extra: Mapping[str, str], fds: Sequence[int]
    ) -> tuple[int, bytes, bytes]:
        if self.left and self.when(args):
            self.left -= 1
            self.what(self.done)
            self.done += 1
        return run_command(args, data, extra, fds)


def commits(args: Sequence[str]) -> bool:
    return args[0].endswith("-restore") and "--test" not in args


def trials(args: Sequence[str]) -> bool:
    return args[0].endswith("-restore") and "--test" in args


def direct(variant: str, *command: str) -> None:
    """A tool that takes no lock: on legacy one that the lock does not stop (another lock file, as in a container)."""
    rc, _out, err = run_command([tool(IPV4, variant), *command], None, {"XTABLES_LOCKFILE": "/run/elsewhere.lock"})
    assert rc == 0, err


MEDDLING: dict[str, tuple[Sequence[str], Callable[[list[str]], list[str]]]] = {
    "inserts": (("-I", "DOCKER-USER", "-i", "eth7", "-j", "DROP"), lambda rules: ["-i eth7 -j DROP", *rules]),
    "appends": (("-A", "DOCKER-USER", "-i", "eth7", "-j", "DROP"), lambda rules: [*rules, "-i eth7 -j DROP"]),
    "inserts an ACCEPT": (
        ("-I", "DOCKER-USER", "-i", "eth7", "-j", "ACCEPT"),
        lambda rules: ["-i eth7 -j ACCEPT", *rules],
    ),
    "deletes": (("-D", "DOCKER-USER", "1"), lambda rules: rules[1:]),
    "flushes": (("-F", "DOCKER-USER"), lambda rules: []),
}


def expected(foreign: list[str]) -> list[str]:
    """ESTABLISHED, foreign rules that deny, the policy, the other foreign rules; RETURN."""
    lead = 0
    while lead < len(foreign) and foreign[lead].endswith("DROP"):
        lead += 1
    tail = foreign[lead:] if "-j RETURN" in foreign else [*foreign[lead:], "-j RETURN"]
    return [ESTABLISHED, *foreign[:lead], *WANTED[IPV4], *tail]


@pytest.mark.parametrize("when", [commits, trials])
@pytest.mark.parametrize("name", MEDDLING)
def test_somebody_writes_between_our_reading_and_our_commit(
    host: Host, variant: str, name: str, when: Callable[[Sequence[str]], bool]
) -> None:
    docker(host, variant)
    command, what = MEDDLING[name]
    meddler = Meddler(when, lambda number: direct(variant, *command), times=1)
    changes = host.call(firewall(meddler).change, BOTH, dry=False)
    assert meddler.done == 1
    assert specs(host, variant, IPV4) == list(changes[IPV4].after) == expected(what(FOREIGN))
    assert specs(host, variant, IPV6) == after(IPV6)


def test_somebody_takes_rules_of_ours_between_our_reading_and_our_commit(host: Host, variant: str) -> None:
    """The policy goes while its rules are being deleted by hand: gone is gone."""
    for family in FAMILIES:
        load(host, variant, family, docker_table(after(family)))
    meddler = Meddler(commits, lambda number: direct(variant, "-D", "DOCKER-USER", "3"), times=1)
    host.call(firewall(meddler).change, AWAY, dry=False)
    assert meddler.done == 1
    assert specs(host, variant, IPV4) == FOREIGN


@pytest.mark.parametrize("name", ["inserts an ACCEPT", "flushes"])
def test_somebody_writes_each_time(host: Host, variant: str, name: str) -> None:
    docker(host, variant)
    command, what = MEDDLING[name]
    # After our commit too, as our verifying look would otherwise find nothing to do.
    meddler = Meddler(
        lambda args: commits(args) or args[0].endswith("-save"), lambda number: direct(variant, *command), -1
    )
    text = fails(host, firewall(meddler).change, BOTH, dry=False)
    assert "changed by somebody else each of the 10 times" in text
    assert meddler.done >= 20
    found = specs(host, variant, IPV4)
    # No policy is half there: all its rules in their order, or none.
    assert [spec for spec in found if '"quaywall:admin-ui"' in spec] in ([], WANTED[IPV4])
    assert specs(host, variant, IPV6) in (FOREIGN, after(IPV6))
    if name != "flushes":
        assert [spec for spec in found if "eth7" in spec] == what([])[:1] * meddler.done
        assert [spec for spec in found if spec in FOREIGN] == FOREIGN


def test_bans_that_come_each_time_are_no_obstacle(host: Host, variant: str) -> None:
    """Denials in front of ours are where they belong; so with every commit a ban may come, and the policy is there."""
    docker(host, variant)
    command, what = MEDDLING["appends"]
    meddler = Meddler(commits, lambda number: direct(variant, *command), -1)
    host.call(firewall(meddler).change, BOTH, dry=False)
    assert specs(host, variant, IPV4) == [*after(IPV4), *what([]) * meddler.done]
    assert specs(host, variant, IPV6) == after(IPV6)


# Two families, one of which fails -------------------------------------------------------------------------------------


@pytest.mark.parametrize("present", [True, False], ids=["policy was there", "policy is new"])
@pytest.mark.parametrize("chain6", [True, False], ids=["IPv6 chain", "no IPv6 chain"])
@pytest.mark.parametrize("broken", [IPV4, IPV6])
def test_the_second_family_fails_after_the_first_was_committed(
    host: Host, variant: str, present: bool, chain6: bool, broken: str
) -> None:
    """As when the kernel runs out of memory: the trial was fine, the commit is not."""
    for family in FAMILIES:
        if family == IPV6 and not chain6:
            load(host, variant, family, EMPTY)
        else:
            load(
                host,
                variant,
                family,
                docker_table([*FOREIGN[:1], *(WANTED[family][-1:] if present else []), *FOREIGN[1:]]),
            )
    before = {family: save(host, variant, family) for family in FAMILIES}

    def run(
        args: Sequence[str], data: bytes | None, extra: Mapping[str, str], fds: Sequence[int]
    ) -> tuple[int, bytes, bytes]:
        if commits(args) and ("ip6tables" in args[0]) == (broken == IPV6):
            return 4 if broken == IPV4 else 1, b"", b"iptables-restore: line 4 failed: Cannot allocate memory.\n"
        return run_command(args, data, extra, fds)

    text = fails(host, firewall(run).change, BOTH, dry=False)
    assert "refused the rules: iptables-restore: line 4 failed: Cannot allocate memory" in text or broken == IPV4
    assert {family: save(host, variant, family) for family in FAMILIES} == before


def test_a_family_that_fails_its_trial_keeps_the_other_from_being_written(host: Host, variant: str) -> None:
    docker(host, variant)
    bad = policy_planner(
        "admin-ui",
        parsed(
            {IPV4: WANTED[IPV4], IPV6: [WANTED[IPV6][0].replace("-m tcp", "-m set --match-set missing src -m tcp")]}
        ),
    )
    for dry in (True, False):
        text = fails(host, firewall().change, bad, dry=dry)
        assert "refused the rules" in text and "missing" in text and "Nothing was changed" in text
    assert [specs(host, variant, family) for family in FAMILIES] == [FOREIGN, FOREIGN]
    assert listed(host, variant, IPV4) == b"".join(b"-A DOCKER-USER %s\n" % rule.encode() for rule in FOREIGN)


def test_a_legacy_iptables_that_does_not_know_the_lock_file(host: Host) -> None:
    """Older ones ignore XTABLES_LOCKFILE, and would wait for the lock that we hold ourselves."""
    docker(host, LEGACY)

    def run(
        args: Sequence[str], data: bytes | None, extra: Mapping[str, str], fds: Sequence[int]
    ) -> tuple[int, bytes, bytes]:
        return run_command(args, data, {"LC_ALL": extra["LC_ALL"]}, fds)

    changes = host.call(firewall(run).change, BOTH, dry=False)
    assert all(change.changed for change in changes.values())
    assert {family: tuple(specs(host, LEGACY, family)) for family in FAMILIES} == {
        family: change.after for family, change in changes.items()
    }
    assert not any(change.changed for change in host.call(firewall(run).change, BOTH, dry=False).values())


def test_programs_that_are_killed_are_an_error(host: Host, variant: str) -> None:
    docker(host, variant)

    def run(
        args: Sequence[str], data: bytes | None, extra: Mapping[str, str], fds: Sequence[int]
    ) -> tuple[int, bytes, bytes]:
        return (-9, b"", b"") if commits(args) else run_command(args, data, extra, fds)

    assert "gave no reason" in fails(host, firewall(run).change, BOTH, dry=False)
    assert [specs(host, variant, family) for family in FAMILIES] == [FOREIGN, FOREIGN]
