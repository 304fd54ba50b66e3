# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a fix says of itself: its tasks, its commands, and whom it lets in and keeps out."""

from __future__ import annotations

import shlex
import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit import _fixes
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Family, Survey
from ansible_collections.quaywall.docker.plugins.module_utils._chain import Table
from ansible_collections.quaywall.docker.plugins.module_utils._plan import plan, with_policy
from ansible_collections.quaywall.docker.plugins.module_utils._policy import Policy, compile_policy
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, parse, quote
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.plugins.module_utils._walk import Site
from ansible_collections.quaywall.docker.tests.unit.snapshots import Box, host, with_rules

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import Fix

FIRST = Site("DOCKER-USER", 1, 1)
CLOSE_SHOP = {"name": "shop-8080", "container": "shop", "destination_port": ["8080"], "action": "drop"}


def family(rule: str) -> Family:
    boxes = (Box("admin", "9000:8080"), Box("shop", "8080:8080"))
    return Survey(from_json(host("28.5", containers=boxes, docker_user=[rule]))).family(IPV4)


def made(found: Family, *policies: t.Mapping[str, t.Any]) -> Fix:
    fix = _fixes.fix(found, "", policies, [FIRST], found.published)
    assert fix is not None
    return fix


def test_a_policy_in_place_of_a_rule() -> None:
    fix = made(family("-p tcp -m tcp --dport 8080 -j DROP"), CLOSE_SHOP)
    assert [set(task) - {"name", "changed_when"} for task in fix.tasks] == [
        {"quaywall.docker.docker_user_rule"},
        {"ansible.builtin.command"},
    ]
    assert fix.tasks[0]["quaywall.docker.docker_user_rule"] == CLOSE_SHOP
    # The policy is there before the old rule goes.
    assert fix.commands[-1] == "iptables -w 10 -D DOCKER-USER -p tcp -m tcp --dport 8080 -j DROP"
    assert fix.commands[0].startswith("iptables -w 10 -I DOCKER-USER 1 -m conntrack --ctstate RELATED,ESTABLISHED")
    # Docker guards the host port on [::] too.
    assert any(command.startswith("ip6tables ") and "--ctorigdstport 8080" in command for command in fix.commands)
    assert fix.gains == ("anyone: admin (9000->8080/tcp) over IPv4",)
    assert fix.loses == ()


def test_who_loses_is_said_with_the_addresses() -> None:
    found = family("-s 192.0.2.1/32 -j DROP")
    close = {**CLOSE_SHOP, "source": ["203.0.113.0/24"], "action": "return", "otherwise": "drop"}
    fix = made(found, close)
    assert fix.gains == ("192.0.2.1: admin (9000->8080/tcp) over IPv4",)
    (loses,) = fix.loses
    assert "shop (8080->8080/tcp) over IPv4" in loses
    assert loses.startswith("anyone but ")


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("-j DROP", "admin and shop"),
        ("! -s 203.0.113.10/32 -d 172.17.0.2/32 -j DROP", "admin"),
        ("-i eth0 ! -s 203.0.113.10/32 -j DROP", "admin and shop"),
        # Bans, and denies of what comes in, cut no container off from other machines.
        ("-s 192.0.2.0/24 -j DROP", None),
        ("-p tcp -m tcp --dport 8080 -j DROP", None),
    ],
)
def test_containers_that_reach_other_machines_again_are_told(rule: str, names: t.Optional[str]) -> None:
    """As measured: such a rule stops the answers (or all) of what containers connect to, and a policy does not."""
    told = [line for line in made(family(rule), CLOSE_SHOP).gains if "other machines" in line]
    assert told == ([] if names is None else ["%s: other machines over IPv4" % names])


@pytest.mark.parametrize(
    ("comment", "words"),
    [
        ('"it\\\'s $(id) \\"here\\""', 'it\'s $(id) "here"'),
        ('"`reboot`; rm -rf /"', "`reboot`; rm -rf /"),
        ('"two\nlines"', "two\nlines"),
    ],
)
def test_a_shell_reads_the_rule_and_nothing_else(comment: str, words: str) -> None:
    fix = made(family("-s 192.0.2.1/32 -m comment --comment %s -j DROP" % comment))
    arguments = shlex.split(fix.commands[-1])
    assert arguments[:6] == ["iptables", "-w", "10", "-D", "DOCKER-USER", "-s"]
    assert arguments[arguments.index("--comment") + 1] == words
    assert fix.tasks[-1]["ansible.builtin.command"]["argv"] == arguments


def test_the_variant_that_docker_uses_is_named_where_it_is_not_the_default() -> None:
    document = host("20.10", containers=(Box("admin", "9000:8080"),), docker_user=["-s 192.0.2.1/32 -j DROP"])
    tables = document["iptables"]["ipv4"]
    tables["nft"], tables["legacy"] = None, tables["nft"]
    found = Survey(from_json(document)).family(IPV4)
    assert found.variant == "legacy"
    assert made(found).commands == ("iptables-legacy -w 10 -D DOCKER-USER -s 192.0.2.1/32 -j DROP",)


def test_no_fix_for_a_container_that_is_not_there() -> None:
    found = family("-s 192.0.2.1/32 -j DROP")
    assert _fixes.fix(found, "", [{**CLOSE_SHOP, "container": "gone"}], [FIRST]) is None


def test_a_chain_below_docker_user_is_edited_too() -> None:
    boxes = (Box("admin", "9000:8080"),)
    rules = [":web - [0:0]", "-A web -p tcp -m tcp --dport 8080 -j DROP", "-A DOCKER-USER -p tcp -j web"]
    document = with_rules(host("28.5", containers=boxes), IPV4, "filter", rules)
    found = Survey(from_json(document)).family(IPV4)
    fix = _fixes.fix(found, "", (), [Site("web", 1, 1)], found.published)
    assert fix is not None
    assert fix.commands == ("iptables -w 10 -D web -p tcp -m tcp --dport 8080 -j DROP",)
    assert fix.gains == ("anyone: admin (9000->8080/tcp) over IPv4",)


POLICY = '-m comment --comment "quaywall:%s" -j %s'


@pytest.mark.parametrize(
    "present",
    [
        [],
        ["-j RETURN"],
        ["-s 198.51.100.1/32 -j DROP", "-p tcp -j RETURN", "-j RETURN"],
        ["-d 172.17.0.9/32 " + POLICY % ("a", "RETURN"), "-d 172.17.0.9/32 " + POLICY % ("z priority 9", "DROP")],
        ["-s 198.51.100.1/32 -j ACCEPT", "-d 172.17.0.9/32 " + POLICY % ("shop-8080", "DROP"), "-j RETURN"],
    ],
)
def test_commands_bring_about_what_the_module_would(present: t.List[str]) -> None:
    boxes = (Box("admin", "9000:8080"), Box("shop", "8080:8080"))
    found = Survey(from_json(host("29.7", containers=boxes, docker_user=present))).family(IPV4)
    policies = [{**CLOSE_SHOP, "source": ["192.0.2.0/24"], "action": "return", "otherwise": "drop"}]
    policies.append({"name": "port-9000", "published_port": "9000", "action": "drop", "priority": 10})
    fix = _fixes.fix(found, "", policies)
    assert fix is not None
    # The module's own plan, policy after policy, on the chain as it would be then.
    assert found.docker_user is not None
    table = found.filter
    for options in policies:
        policy = Policy.from_options(options)
        compiled = compile_policy(policy, found.survey.inventory, _fixes._bindings, ip6_dnat=True)
        chain = table.chains["DOCKER-USER"]
        block = with_policy(chain, policy.name, compiled.rules[IPV4])
        after = plan(table, block, established=True, add_return=True).after
        rules = tuple(parse(rule) for rule in after)
        table = Table("filter", {**table.chains, "DOCKER-USER": chain._replace(rules=rules)})
    kernel = [rule.render() for rule in found.docker_user.rules]
    for text in fix.commands:
        words = shlex.split(text)
        if words[0] == "iptables":
            _carry_out(kernel, words[3:])
    assert kernel == list(after)


def _carry_out(rules: t.List[str], words: t.List[str]) -> None:
    """What iptables does to a chain."""
    own = words[3 if words[0] == "-I" else 2 :]
    spec = " ".join(quote(word) if "quaywall" in word else word for word in own)
    if words[0] == "-I":
        rules.insert(int(words[2]) - 1, spec)
    elif words[0] == "-A":
        rules.append(spec)
    else:
        rules.remove(spec)
