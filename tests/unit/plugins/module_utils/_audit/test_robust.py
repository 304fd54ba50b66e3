# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Laws of the audit: whatever a snapshot holds, it answers, twice the same, in the form that is documented."""

from __future__ import annotations

import copy
import functools
import json
import shlex
import sys
import typing as t

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils._audit._checks import CHECKS, audit
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Survey
from ansible_collections.quaywall.docker.plugins.module_utils._module._edge import printable
from ansible_collections.quaywall.docker.plugins.module_utils._module.docker_user_rule import argument_spec
from ansible_collections.quaywall.docker.plugins.module_utils._policy import Policy
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.tests.unit.foreign import crowdsec, firewalld_nftables, ufw_docker
from ansible_collections.quaywall.docker.tests.unit.snapshots import (
    FAMILIES,
    IPV4,
    Box,
    Document,
    Net,
    edited,
    host,
    large,
    with_rules,
)
from ansible_collections.quaywall.docker.tests.unit.support import any_text, known_rules

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import Finding, Fix

#: The severities that a check may give, as the collection's users know them; info besides, where it does no harm.
SEVERITIES = {
    "port_only_deny": ("high", "critical"),
    "broad_deny": ("critical",),
    "port_only_allow": ("high",),
    "host_port_never_matches": ("high",),
    "neighbours_cut_off": ("medium",),
    "replies_or_egress_hit": ("high",),
    "established_missing": ("high",),
    "established_late": ("high",),
    "address_only": ("medium",),
    "jump_window": ("low",),
    "unreachable_rule": ("medium",),
    "stale_address": ("high",),
    "wrong_owner": ("critical",),
    "covers_no_container": ("medium",),
    "jump_missing": ("critical",),
    "jump_not_first": ("critical",),
    "never_read": ("medium",),
    "docker_chain_edited": ("medium",),
    "ipv6_gap": ("high",),
    "proxy_bypass": ("high",),
    "direct_routing": ("medium",),
    "backend_mixed": ("high",),
    "backend_nftables": ("critical",),
    "docker_iptables_off": ("high",),
    "not_persistent": ("medium",),
    "saved_docker_rules": ("medium",),
    "outside_this_firewall": ("info",),
    "swarm_ingress": ("info",),
    "exposed": ("info",),
    "snapshot_incomplete": ("low", "medium"),
}


def test_the_checks_are_those_that_are_documented() -> None:
    assert set(CHECKS) == set(SEVERITIES)


# What is said of any snapshot ------------------------------------------------------------------------------------


def assert_lawful(document: Document, hostile: bool = False) -> t.List[Finding]:
    """What holds for every snapshot; a hostile one may have anything in its messages."""
    found = audit(from_json(document))
    results = [finding.to_result() for finding in found]
    assert json.loads(json.dumps(results)) == results
    assert [finding.to_result() for finding in audit(from_json(copy.deepcopy(document)))] == results
    by_identity: t.Dict[str, Finding] = {}
    for finding in found:
        assert finding.severity in ("info", *SEVERITIES[finding.check]), finding
        assert printable(finding.message).isprintable()
        assert finding.message, finding
        if not hostile:
            assert finding.message.isprintable(), finding
            assert finding.message.endswith("."), finding.message
            assert all(reason.isprintable() for reason in finding.reasons), finding.reasons
        same = by_identity.setdefault(finding.identity, finding)
        assert same is finding or (same.check, same.place) == (finding.check, finding.place) or like(same, finding)
        if finding.fix is not None:
            assert_can_be_done(finding.fix)
    return found


def like(one: Finding, two: Finding) -> bool:
    """The same rule twice in a chain."""
    if one.place is None or two.place is None:
        return False
    return (one.check, one.place._replace(position=0)) == (two.check, two.place._replace(position=0))


def assert_can_be_done(fix: Fix) -> None:
    """Each task is of a module that is known, with options that it takes; each command is words of a shell."""
    assert fix.description
    for task in fix.tasks:
        modules = [key for key in task if "." in key]
        assert len(modules) == 1, task
        assert task["name"]
        assert set(task) <= {"name", "changed_when", "become", "notify", "when", "register", *modules}, task
        options = task[modules[0]]
        if modules[0] == "quaywall.docker.docker_user_rule":
            valid = ArgumentSpecValidator(argument_spec()).validate(dict(options))
            assert not valid.error_messages, (valid.error_messages, task)
            if valid.validated_parameters["state"] == "present":
                Policy.from_options(valid.validated_parameters)
        else:
            assert modules[0].startswith(("ansible.builtin.", "ansible.posix.", "quaywall.docker.")), task
            assert options, task
    for line in fix.commands:
        assert shlex.split(line), line
    for words in (*fix.gains, *fix.loses):
        assert words


# Snapshots to spoil ----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def bases() -> t.Sequence[Document]:
    """Hosts of all kinds, with rules that every family of checks has something to say of."""
    boxes = [
        Box("shop", "8080:8080"),
        Box("admin", "9000:8080"),
        Box("web", "127.0.0.1:8081:80", "443:443/udp", network="front", also=["back"]),
        Box("dns", "53:53/udp", network="back", address="172.30.0.53"),
        Box("gone", "81:80", running=False),
        Box("direct", network="host", listens=[9100]),
    ]
    nets = [
        Net("front", "172.29.0.0/24", "fd00:29::/64"),
        Net("back", "172.30.0.0/24"),
        Net("inner", "172.28.0.0/24", internal=True),
        Net("open", "172.27.0.0/24", gateway_mode="routed"),
    ]
    rules = [
        "-i eth0 -p tcp --dport 8080 -j DROP",
        "-p tcp -m conntrack --ctorigdstport 9000 -j DROP",
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-d 172.17.0.2 -p tcp --dport 8080 -j DROP",
        "-d 172.17.0.99 -j REJECT",
        "-p udp -j ACCEPT",
        '-d 172.30.0.53/32 -p udp --dport 53 -m comment --comment "quaywall:dns" -j DROP',
        "-i eth0 -j DROP",
        "-j RETURN",
        "-p tcp --dport 443 -j DROP",
    ]
    saved = {"/etc/iptables/rules.v4": "*filter\n:INPUT ACCEPT [0:0]\n:DOCKER - [0:0]\n-A INPUT -j DROP\nCOMMIT\n"}
    made = [host("28.5", boxes, rules, rules[:3], nets, saved=saved, services=[("web", "8090:80")])]
    made.append(host("20.10", boxes, rules[2:], networks=nets[:3], ipv6=True, forward_policy="ACCEPT"))
    made.append(host("26.1", boxes, [rules[7]], networks=nets[:3], options={"live-restore": True}))
    made.append(host("29.7", boxes[:2], networks=nets[1:2], backend="nftables"))
    made.append(with_rules(made[-1], IPV4, "filter", [":DOCKER-USER - [0:0]", *("-A DOCKER-USER " + r for r in rules)]))
    made.append(crowdsec(ufw_docker(host("28.5", boxes, networks=nets[:2])), "DOCKER-USER", "INPUT"))
    made.append(firewalld_nftables(host("29.7", boxes, networks=nets, options={"iptables": False})))
    return tuple(made)


HOSTILE = (
    "",
    "x\ny",
    "\x1b[31mred",
    "a\u202eb",
    "\udcff",
    '"; rm -rf / #',
    "$(id)",
    "{{ lookup('pipe', 'id') }}",
    "-j ACCEPT",
    "quaywall:shop",
    "x" * 5000,
    "a, b and c",
    "'",
    "\u00e4",
)
#: What iptables takes and few expect, and what somebody may have written into a dump.
ODD = (
    "-s 172.0.0.2/255.0.0.255 -j DROP",
    "-s 172.17.0.2/255.255.0.255 -d 172.17.0.0/255.0.255.0 -i docker0 -o docker0 -j DROP",
    "-d 172.17.0.2/255.255.0.255 -p tcp -m tcp --dport 8080 -j DROP",
    "! -d 172.17.0.2/255.255.0.255 -i eth0 -p tcp -m tcp --dport 8080 -j ACCEPT",
    "-s 172.0.0.2/255.0.0.255 -i eth0 -p tcp -m multiport --dports 80,443:445 -j RETURN",
    "-s shop.example -d ::1 -j DROP",
    "-p tcp -m conntrack --ctorigdst ::1 --ctorigdstport 8080 -j DROP",
    "-p tcp -m conntrack --ctorigdst 203.0.113.0/255.255.0.255 --ctorigdstport 8080 -j DROP",
    "-p tcp -m tcp --dport 8080 -j DROP -s 192.0.2.1",
    "-m iprange --src-range 10.0.0.9-10.0.0.1 -j DROP",
    "-m set --match-set nobody src,dst -j DROP",
    "-m set ! --match-set crowdsec-blacklists-0 src -j DROP",
    "-p tcp -m multiport ! --dports 80,8080 -j DROP",
    "-p tcp -m tcp --dport 0:65535 -j REJECT --reject-with tcp-reset",
    "-i eth+ ! -o docker+ -j DROP",
    "-i docker0 -o docker0 -j DROP",
    "-p 6 -j DROP",
    "-j NFQUEUE --queue-num 1",
    "-p tcp -m tcp --dport 8080 -j DNAT --to-destination [::1]:99999",
    "-p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2-172.17.0.9:80-90",
    "-p tcp -m tcp --dport 8080 -j REDIRECT --to-ports 9000",
    "-d 203.0.0.1/255.0.0.255 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:8080",
    "-s 172.0.0.2/255.0.0.255 -j MASQUERADE",
)
hostile_texts = st.sampled_from(HOSTILE)
table_names = st.sampled_from(("filter", "nat", "raw", "mangle", "x"))
chain_names = st.sampled_from(
    ("DOCKER-USER", "FORWARD", "INPUT", "OUTPUT", "DOCKER", "DOCKER-FORWARD", "MINE", "OTHER", "PREROUTING", "A", "B")
)


@st.composite
def more_rules(draw: t.Any) -> t.Tuple[str, str, t.List[str]]:
    """Lines for a table: any rules that can be written, and jumps from anywhere to anywhere."""
    family = draw(st.sampled_from(FAMILIES))
    lines = []
    for _number in range(draw(st.integers(1, 6))):
        chain = draw(chain_names)
        kind = draw(st.sampled_from(("rule", "rule", "jump", "goto", "empty", "comment", "odd", "words")))
        if kind == "rule":
            rule = draw(known_rules(family)).render()
        elif kind == "empty":
            rule = ""
        elif kind == "odd":
            rule = draw(st.sampled_from(ODD))
        elif kind == "words":
            rule = draw(any_text).replace("\n", " ")
        elif kind == "comment":
            rule = '-p tcp -m tcp --dport 8080 -m comment --comment "x\nCOMMIT\n*filter\n-A y" -j DROP'
        else:
            rule = "%s %s" % ("-g" if kind == "goto" else "-j", draw(chain_names))
        lines.append("-A %s %s" % (chain, rule))
    return family, draw(st.sampled_from(("filter", "filter", "nat", "raw", "mangle"))), lines


def _with_lines(document: Document, family: str, table: str, lines: t.Sequence[str]) -> Document:
    """The lines at the end of a table, even where iptables would refuse them (a jump to nowhere, a loop)."""
    dumps = document["iptables"][family]
    text = dumps["nft"] or ""
    block = "*%s\n" % table
    if block not in text:
        text += block + "COMMIT\n"
    head, _block, tail = text.partition(block)
    inside, _commit, rest = tail.partition("COMMIT\n")
    dumps["nft"] = head + block + inside + "".join(line + "\n" for line in lines) + "COMMIT\n" + rest
    return document


def _without_table(text: str, table: str) -> str:
    head, block, tail = text.partition("*%s\n" % table)
    return head + tail.partition("COMMIT\n")[2] if block else text


def _without_chain(text: str, chain: str) -> str:
    """No head and no rules; what jumps there jumps nowhere."""
    return "".join(
        line + "\n" for line in text.split("\n")[:-1] if not line.startswith((":%s " % chain, "-A %s " % chain))
    )


@st.composite
def documents(draw: t.Any) -> Document:
    """A host's snapshot that was changed in ways that keep its shape."""
    document: Document = copy.deepcopy(draw(st.sampled_from(bases())))
    for family, table, lines in draw(st.lists(more_rules(), max_size=3)):
        document = _with_lines(document, family, table, lines)
    for _number in range(draw(st.integers(0, 3))):
        _spoil(document, draw)
    return document


def _spoil(document: Document, draw: t.Any) -> None:
    family = draw(st.sampled_from(FAMILIES))
    dumps = document["iptables"][family] if document["iptables"] else {}
    docker = document["docker"] or {}
    how = draw(
        st.sampled_from(
            ("table", "chain", "dump", "variant", "part", "docker", "container", "network", "name", "nft", "port")
        )
    )
    if how == "table" and dumps.get("nft"):
        dumps["nft"] = _without_table(dumps["nft"], draw(table_names))
    elif how == "chain" and dumps.get("nft"):
        dumps["nft"] = _without_chain(dumps["nft"], draw(chain_names))
    elif how == "dump" and dumps:
        dumps["nft"] = draw(st.sampled_from((None, "", "# Table `filter' is incompatible, use 'nft' tool.\n")))
    elif how == "variant" and dumps:
        dumps["legacy"] = draw(
            st.sampled_from((dumps["nft"], "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j A\nCOMMIT\n"))
        )
        document["iptables"]["default"] = {family: draw(st.sampled_from(("nft", "legacy")))}
    elif how == "part":
        part = draw(st.sampled_from([key for key in document if key not in ("quaywall_snapshot", "collected")]))
        document[part] = None
    elif how == "docker" and docker:
        docker[draw(st.sampled_from(sorted(docker)))] = None
    elif how == "container" and docker.get("containers"):
        container = draw(st.sampled_from(docker["containers"]))
        container[draw(st.sampled_from([key for key in container if key != "Id"]))] = None
    elif how == "network" and docker.get("networks"):
        if draw(st.booleans()):
            docker["networks"].remove(draw(st.sampled_from(docker["networks"])))
        else:
            network = draw(st.sampled_from(docker["networks"]))
            network[draw(st.sampled_from([key for key in network if key not in ("Id", "Name")]))] = None
    elif how == "name":
        _rename(document, draw(hostile_texts), draw)
    elif how == "nft" and document["nft"]:
        chains = ["filter " + draw(chain_names) for _number in range(3)]
        document["nft"]["misprinted"] = {family: chains}
        document["nft"]["docker"] = draw(st.sampled_from(([], [{}], [{"rule": {}}], [{"chain": {"name": "x"}}])))
    elif how == "port" and docker.get("containers"):
        port = {"IP": draw(st.sampled_from(("", "0.0.0.0", "::", "127.0.0.1", "192.0.2.1", "2001:db8::1")))}
        numbers = st.sampled_from((0, 1, 53, 8080, 65535))
        port.update(
            {"PrivatePort": draw(numbers), "PublicPort": draw(numbers), "Type": draw(st.sampled_from(("tcp", "x")))}
        )
        container = draw(st.sampled_from(docker["containers"]))
        container["Ports"] = [*(container["Ports"] or ()), port]


def _rename(document: Document, name: str, draw: t.Any) -> None:
    """A container, a network, an interface, a service or a file has another name."""
    docker = document["docker"] or {}
    what = draw(
        st.sampled_from(("container", "network", "bridge", "label", "interface", "saved", "service", "hole", "sysctl"))
    )
    if what in ("container", "label") and docker.get("containers"):
        container = draw(st.sampled_from(docker["containers"]))
        if what == "container":
            container["Names"] = ["/" + name]
        else:
            container["Labels"] = {"com.docker.compose.service": name, "com.docker.compose.project": name}
    elif what in ("network", "bridge") and docker.get("networks"):
        network = draw(st.sampled_from(docker["networks"]))
        if what == "network":
            network["Name"] = name
        else:
            network["Options"] = {"com.docker.network.bridge.name": name}
    elif what == "interface" and document["interfaces"]:
        draw(st.sampled_from(document["interfaces"]))["name"] = name
    elif what == "saved":
        text = draw(st.sampled_from(("", "*filter\n:DOCKER-USER - [0:0]\n-A DOCKER-USER -j DROP\nCOMMIT\n", "x")))
        document["saved"] = {name or "/etc/iptables/rules.v6": text}
    elif what == "service":
        ports = [{"protocol": "tcp", "published_port": 8080, "target_port": 80, "mode": "ingress"}]
        document["services"] = [{"name": name, "ports": ports}]
    elif what == "hole":
        document["holes"] = [{"part": name, "reason": name}]
    elif document["sysctls"]:
        document["sysctls"] = {"net.bridge.bridge-nf-call-iptables": name, name: "1"}


EMPTY: Document = {"quaywall_snapshot": 1}


def _nothing() -> Document:
    """Every part is there, and nothing is in any."""
    document = host("28.5")
    for key, value in document.items():
        if isinstance(value, list):
            document[key] = []
        elif isinstance(value, dict):
            document[key] = {}
    return document


def _deep(count: int) -> Document:
    """A chain that jumps to a chain that jumps to a chain, and the last one drops a port; as long as one likes."""
    lines = [":DOCKER-USER - [0:0]"]
    lines += [":C%d - [0:0]" % number for number in range(count)]
    lines += ["-A C%d -j C%d" % (number, number + 1) for number in range(count - 1)]
    lines += ["-A C%d -p tcp -m tcp --dport 8080 -j DROP" % (count - 1), "-A DOCKER-USER -j C0"]
    return with_rules(host("28.5", [Box("a", "9000:8080"), Box("b", "8080:8080")]), IPV4, "filter", lines)


def _diamonds(count: int) -> Document:
    """Chains that each jump twice to the next: so many ways lead to the last that none can be walked one by one."""
    lines = [":DOCKER-USER - [0:0]"]
    lines += [":C%d - [0:0]" % number for number in range(count + 1)]
    for number in range(count):
        lines += ["-A C%d -s 198.51.100.0/24 -j C%d" % (number, number + 1), "-A C%d -j C%d" % (number, number + 1)]
    lines += ["-A C%d -p tcp -m tcp --dport 8080 -j DROP" % count, "-A DOCKER-USER -j C0"]
    return with_rules(host("28.5", [Box("a", "9000:8080"), Box("b", "8080:8080")]), IPV4, "filter", lines)


def _circle() -> Document:
    """Chains that lead back to themselves, DOCKER-USER and FORWARD too."""
    document = copy.deepcopy(bases()[0])
    lines = ["-A DOCKER-USER -j A", "-A A -j B", "-A B -p tcp -g A", "-A A -j DOCKER-USER", "-A B -j FORWARD"]
    lines += ["-A A -p tcp -m tcp --dport 8080 -j DROP", "-A INPUT -j INPUT"]
    return _with_lines(document, IPV4, "filter", lines)


@settings(
    max_examples=settings.default.max_examples // 2,  # each is two audits
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
)
@example(EMPTY)
@example(_nothing())
@example(_circle())
@given(documents())
def test_any_snapshot(document: Document) -> None:
    assert_lawful(document, hostile=True)


@pytest.mark.parametrize("chain", ["DOCKER-USER", "FORWARD", "INPUT", "DOCKER", "MINE"])
@pytest.mark.parametrize("rule", ODD)
def test_odd_rules(rule: str, chain: str) -> None:
    lines = [":MINE - [0:0]", "-A %s %s" % (chain, rule), "-A DOCKER-USER -j MINE"]
    table = "nat" if "--to-" in rule or "MASQUERADE" in rule else "filter"
    document = _with_lines(copy.deepcopy(bases()[0]), IPV4, table, lines)
    text = "*%s\n:DOCKER-USER - [0:0]\n:MINE - [0:0]\n-A %s %s\nCOMMIT\n" % (table, chain, rule)
    assert_lawful(edited(document, saved={"/etc/iptables/rules.v4": text}))


@pytest.mark.parametrize("number", range(len(bases())))
def test_hosts_that_were_not_spoilt(number: int) -> None:
    assert_lawful(bases()[number])


def test_nothing_can_be_said_of_nothing() -> None:
    """Holes, and no more."""
    assert {finding.check for finding in assert_lawful(EMPTY)} == {"snapshot_incomplete"}


@pytest.mark.parametrize(
    "part", [key for key in host("28.5") if key not in ("quaywall_snapshot", "collected", "holes")]
)
@pytest.mark.parametrize("number", range(len(bases())))
def test_a_part_that_is_missing(number: int, part: str) -> None:
    document = dict(bases()[number])
    del document[part]
    assert_lawful(document)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", range(len(bases())))
def test_a_family_without_rules(number: int, family: str) -> None:
    assert_lawful(edited(bases()[number], iptables={family: {"nft": None}}))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(name: str) -> None:
    document = copy.deepcopy(bases()[0])
    for container in document["docker"]["containers"]:
        container["Names"] = ["/" + name]
    for interface in document["interfaces"]:
        interface["name"] += name[:4]
    for network in document["docker"]["networks"]:
        network["Name"] += name
    assert_lawful(document, hostile=True)


@pytest.mark.big
@pytest.mark.parametrize("count", [15, 200, 1000])
def test_chains_nested_deeply(count: int) -> None:
    assert_lawful(_deep(count))


@pytest.mark.parametrize("count", [4, 12, 40])
def test_many_ways_to_one_rule(count: int) -> None:
    assert_lawful(_diamonds(count))


def test_a_rule_that_is_there_twice() -> None:
    """Both are found, and they are one for who compares two runs."""
    rule = "-i eth0 -p tcp -m tcp --dport 8080 -j DROP"
    document = host("28.5", [Box("a", "9000:8080"), Box("b", "8080:8080")], [rule, rule])
    found = assert_lawful(document)
    assert {finding.check for finding in found} >= {"port_only_deny", "unreachable_rule"}


def test_identities_do_not_change_with_what_is_not_meant() -> None:
    """A rule more above, another container: the finding is the same one."""
    boxes = [Box("a", "9000:8080"), Box("b", "8080:8080")]
    rule = "-i eth0 -p tcp -m tcp --dport 8080 -j DROP"

    def identity(document: Document) -> t.Set[str]:
        return {item.identity for item in audit(from_json(document)) if item.check == "port_only_deny"}

    before = identity(host("28.5", boxes, [rule]))
    assert len(before) == 1
    assert identity(host("28.5", [*boxes, Box("c", "9001:8080")], ["-s 192.0.2.1 -j ACCEPT", rule])) == before
    assert identity(host("28.5", boxes[::-1], [rule])) == before


# Growth ----------------------------------------------------------------------------------------------------------


def _calls(document: Document) -> t.Dict[str, int]:
    """How many calls each check makes: what no clock and no other process can change.

    What checks share is counted for the first that asks.
    """
    survey = Survey(from_json(document))
    count = 0

    def profile(_frame: t.Any, event: str, _argument: t.Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    found = {}
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        for name, check in CHECKS.items():
            start = count
            list(check(survey))
            found[name] = count - start
    finally:
        sys.setprofile(before)
    return found


@pytest.mark.big
def test_growth() -> None:
    """Twice the containers and twice the rules: about twice the work, where the one times the other were four times."""
    small, big = _calls(large(100, 1000)), _calls(large(200, 2000))
    shown = {name: (small[name], big[name]) for name in CHECKS if big[name] > 20000}
    assert sum(big.values()) <= 2.6 * sum(small.values()), shown
