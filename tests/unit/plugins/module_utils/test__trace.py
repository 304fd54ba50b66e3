# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who reaches what, and by which rule: the ways to a container of each engine, and everything that is no answer."""

from __future__ import annotations

import ipaddress
import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._intervals import of_network
from ansible_collections.quaywall.docker.plugins.module_utils._reach import Answer, Judge, Question, TraceError, rows
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.plugins.module_utils._trace import CLIENT_PORTS, Start
from ansible_collections.quaywall.docker.tests.unit.snapshots import (
    IPV4,
    IPV6,
    Box,
    Document,
    Net,
    fixture,
    fixtures,
    host,
    large,
    probes,
    with_rules,
    without_rules,
)

CLIENT, CLIENT6, OWN = "198.51.100.7", "2001:db8::7", "203.0.113.1"
BOXES = (Box("web", "8080:80"), Box("twin"), Box("far", "8181:81", network="other"))
NETS = (Net("other", "172.18.0.0/16"),)


def asked(document: Document, source: str, destination: str = "", port: int = 8080, **more: t.Any) -> Answer:
    return Judge(from_json(document)).answer(Question(source, destination, port, **more))


def engine(name: str, *docker_user: str, **more: t.Any) -> Document:
    return host(name, BOXES, networks=NETS, docker_user=docker_user, **more)


# The ways ------------------------------------------------------------------------------------------------------------

#: Who asks for what, whether that gets through, and whether DOCKER-USER reads it: engine by engine.
WAYS = {
    "remote, host's address": ((CLIENT, OWN, 8080), {"20.10": (1, 1), "28.5": (1, 1), "29.7": (1, 1)}),
    "host, its own address": (("host", OWN, 8080), {"20.10": (1, 0), "28.5": (1, 0), "29.7": (1, 0)}),
    "host, loopback": (("host", "127.0.0.1", 8080), {"20.10": (1, 0), "28.5": (1, 0), "29.7": (1, 0)}),
    "remote, IPv6": ((CLIENT6, "", 8080), {"20.10": (1, 0), "28.5": (1, 0), "29.7": (1, 0)}),
    "other bridge, published": (("far", OWN, 8080), {"20.10": (1, 0), "28.5": (1, 0), "29.7": (1, 1)}),
    "itself, published": (("web", OWN, 8080), {"20.10": (1, 0), "28.5": (1, 0), "29.7": (1, 0)}),
    "same bridge, published": (("twin", OWN, 8080), {"20.10": (1, 0), "28.5": (1, 0), "29.7": (1, 0)}),
    "same bridge, address": (("twin", "web", 80), {"20.10": (1, 1), "28.5": (1, 1), "29.7": (1, 1)}),
    "other bridge, address": (("far", "172.17.0.2", 80), {"20.10": (0, 1), "28.5": (0, 0), "29.7": (0, 0)}),
    "remote, address": ((CLIENT, "172.17.0.2", 80), {"20.10": (1, 1), "28.5": (0, 0), "29.7": (0, 0)}),
    "outgoing": (("web", CLIENT, 443), {"20.10": (1, 1), "28.5": (1, 1), "29.7": (1, 1)}),
}


@pytest.mark.parametrize("name", ["20.10", "28.5", "29.7"])
@pytest.mark.parametrize("way", WAYS)
def test_the_ways_to_a_container(way: str, name: str) -> None:
    question, expected = WAYS[way]
    through, read = expected[name]
    assert asked(engine(name), *question).verdict == ("delivered" if through else "blocked")
    closed = asked(engine(name, "-j DROP"), *question)
    by_docker_user = closed.decided is not None and closed.decided.chain == "DOCKER-USER"
    assert by_docker_user == bool(read)
    assert closed.verdict == ("blocked" if read or not through else "delivered")


@pytest.mark.parametrize("way", WAYS)
def test_docker_s_nftables_tables_decide_like_its_iptables_rules(way: str) -> None:
    question, expected = WAYS[way]
    answer = asked(host("29.7", BOXES, networks=NETS, backend="nftables"), *question)
    assert answer.verdict == ("delivered" if expected["29.7"][0] else "blocked")
    if answer.verdict == "blocked":
        assert answer.decided is not None and answer.decided.variant == "nftables"


@pytest.mark.parametrize(("way", "read"), [("itself, published", 1), ("same bridge, published", 1)])
def test_without_docker_proxy_bridges_send_packets_back(way: str, read: int) -> None:
    question, _expected = WAYS[way]
    options = {"options": {"userland-proxy": False}}
    assert asked(engine("28.5", **options), *question).verdict == "delivered"
    assert asked(engine("28.5", "-j DROP", **options), *question).verdict == ("blocked" if read else "delivered")


@pytest.mark.parametrize("name", ["20.10", "28.5", "29.7"])
def test_a_container_reaches_its_own_address_without_a_rule(name: str) -> None:
    """As real engines showed: the packet never leaves the container."""
    answer = asked(engine(name, "-j DROP"), "web", "172.17.0.2", 80)
    assert answer.verdict == "delivered"
    assert answer.sentence == "Delivered: it reaches web (172.17.0.2:80)."
    assert asked(engine(name, "-j DROP"), "twin", "172.17.0.2", 80).verdict == "blocked"


def test_without_br_netfilter_no_rule_reads_what_stays_on_a_bridge() -> None:
    answer = asked(engine("28.5", "-j DROP", bridge_nf=False), "twin", "web", 80)
    assert answer.verdict == "delivered"
    assert answer.decided is None
    unread = engine("28.5", "-j DROP")
    unread["sysctls"] = None
    unsure = asked(unread, "twin", "web", 80)
    assert (unsure.verdict, unsure.reasons) == ("possible", ("whether bridge-nf-call-iptables is on",))


@pytest.mark.parametrize(("case", "variant"), fixtures())
def test_the_cases_of_real_people(case: str, variant: str) -> None:
    """What the kernel did with each probe."""
    judge = Judge(from_json(fixture(case, variant)))
    for probe in probes(case, variant)["probes"]:
        six = ":" in probe["dst"]
        source = {"C": "2001:db8:113::5" if six else "203.0.113.5", "H": "host"}.get(probe["src"], probe["src"])
        if source == probe["src"] and judge.survey.inventory.container(source) is None:
            source = "192.0.2.10"
        answer = judge.answer(Question(source, probe["dst"], probe["dport"], probe["proto"], "", probe["sport"] or 0))
        assert (answer.verdict == "delivered") == probe["observed_kernel"].startswith("OPEN"), (probe, answer.sentence)


def test_what_is_perhaps_not_tracked_goes_both_ways() -> None:
    """Found by chance (seeds 401, 74, 40): without a connection there is no DNAT, and docker-proxy takes the packet."""
    document = host("28.5", [Box("web", "8080:80")], docker_user=["-j DROP"])
    perhaps = with_rules(document, IPV4, "raw", ["-A PREROUTING -m limit --limit 5/second -j CT --notrack"])
    judge = Judge(from_json(perhaps))
    start = Start(IPV4, of_network(CLIENT), "eth0", False, "eth0")
    ends = judge.tracer.ends(start, int(ipaddress.ip_address(OWN)), 8080, "tcp", CLIENT_PORTS)
    assert {(end.kind, end.proxied) for end in ends} == {("denied", False), ("container", True)}
    assert all(end.reasons == ("whether the connection is tracked",) for end in ends)
    assert asked(perhaps, CLIENT).verdict == "possible"
    # A mark that nobody knows has nothing to do with it.
    marked = with_rules(document, IPV4, "raw", ["-A PREROUTING -m limit --limit 5/second -j MARK --set-mark 0x1"])
    assert asked(marked, CLIENT).verdict == "blocked"


# Words ---------------------------------------------------------------------------------------------------------------


def two_apps(engine_name: str = "28.5") -> Document:
    document = host(
        engine_name,
        [Box("web-a", "9000:8080"), Box("web-b", "8080:8080")],
        docker_user=["-p tcp -m tcp --dport 8080 -j DROP"],
    )
    return with_rules(document, IPV4, "filter", ["-A INPUT -p tcp -m tcp --dport 8080 -j ACCEPT"])


def test_one_sentence_says_why_and_what_to_do() -> None:
    answer = asked(two_apps(), CLIENT, OWN, 9000)
    assert answer.sentence == (
        "Blocked: rule 1 of DOCKER-USER drops it, because Docker forwards port 9000 to web-a (172.17.0.2:8080) and "
        "DOCKER-USER sees the container's port 8080; rule 1 of INPUT, which accepts port 8080, is never read, because "
        "this is forwarded; to let it in, put a policy for the container in place of that rule: docker_user_rule with "
        "container: web-a, destination_port: [8080], source: [198.51.100.7], action: accept."
    )
    assert answer.container is not None and answer.container.container.name == "web-a"
    assert answer.decided is not None
    assert (answer.decided.table, answer.decided.chain, answer.decided.position) == ("filter", "DOCKER-USER", 1)


def test_a_container_by_name_is_asked_for_by_the_port_that_it_publishes() -> None:
    answer = asked(two_apps(), CLIENT, "web-a", 8080)
    assert "forwards port 9000 to web-a" in answer.sentence
    assert asked(two_apps(), "web-b", "web-a", 8080).steps[0].text.startswith("tcp from web-b to 172.17.0.2:8080")


_MARKED = '-m comment --comment "quaywall: guard" -j '
_ADMIN = '-m comment --comment "quaywall:admin" '
_PORT = "-p tcp -m conntrack --ctstate DNAT --ctorigdstport 9000 --ctdir ORIGINAL "
#: What docker_user_chain leaves on a host with default: drop.
_GUARD = (
    "-N QUAYWALL-DENY",
    "-N QUAYWALL-GUARD",
    "-A FORWARD %sQUAYWALL-GUARD" % _MARKED,
    "-A POSTROUTING -m mark --mark 0x51574744 %sDROP" % _MARKED,
    "-A QUAYWALL-DENY -j MARK --set-xmark 0x51574744/0xffffffff",
    "-A QUAYWALL-GUARD %s%s-g QUAYWALL-DENY" % (_PORT, _ADMIN),
    "-A QUAYWALL-GUARD -i docker0 -j RETURN",
    "-A QUAYWALL-GUARD -o docker0 -g QUAYWALL-DENY",
)


@pytest.mark.parametrize("jump", [True, False])
def test_what_our_own_rules_do_is_told_by_the_policy(jump: bool) -> None:
    """In the guard's moments POSTROUTING drops; else DOCKER-USER does it before, and says more."""
    ours = (_PORT + _ADMIN + "-j DROP", '-m comment --comment "quaywall: default drop" -j QUAYWALL-DEFAULT')
    document = host("26.1", [Box("admin", "9000:80"), Box("db", "5432:80")], docker_user=ours)
    default = (
        "-N QUAYWALL-DEFAULT",
        "-A QUAYWALL-DEFAULT -i docker0 -j RETURN",
        "-A QUAYWALL-DEFAULT -o docker0 -j DROP",
    )
    document = with_rules(document, IPV4, "filter", default)
    document = with_rules(document, IPV4, "mangle", _GUARD)
    if not jump:
        document = without_rules(document, IPV4, lambda rule: rule == "-A FORWARD -j DOCKER-USER", "filter")
    admin, db = asked(document, CLIENT, OWN, 9000), asked(document, CLIENT, OWN, 5432)
    assert {admin.verdict, db.verdict} == {"blocked"}
    if jump:
        assert admin.sentence.startswith("Blocked: rule 1 of DOCKER-USER, policy admin, drops it on the way to admin")
        assert admin.advice == "to let it in, change the policy admin"
        assert db.sentence.startswith(
            "Blocked: no policy lets it in, so rule 2 of QUAYWALL-DEFAULT drops it on the way to db (172.17.0.3:80)"
        )
        assert db.advice.startswith(
            "to let it in, add a policy for the container: docker_user_rule with container: db,"
        )
    else:
        for answer in (admin, db):
            assert "rule 1 of POSTROUTING (table mangle), the policies' guard, drops it on" in answer.sentence
            assert answer.advice.startswith("to let it in, change the policies")


def test_a_drop_in_input_that_nobody_reads() -> None:
    document = host("28.5", [Box("web", "8080:80")])
    document = with_rules(document, IPV4, "filter", ["-A INPUT -p tcp -m tcp --dport 8080 -j DROP"])
    answer = asked(document, CLIENT)
    assert answer.verdict == "delivered"
    assert "rule 1 of INPUT, which drops port 8080, is never read" in answer.sentence


def test_the_answer_is_looked_at_too() -> None:
    document = host("28.5", [Box("web", "8080:80")], docker_user=["-i docker0 -j DROP"])
    answer = asked(document, CLIENT)
    assert answer.verdict == "blocked"
    assert answer.reply
    assert "drops its answer" in answer.sentence
    assert "established" in answer.advice.lower()


def test_what_is_not_known_is_named() -> None:
    document = host("28.5", [Box("web", "8080:80")], docker_user=["-m limit --limit 5/second -j DROP"])
    answer = asked(document, CLIENT)
    assert answer.verdict == "possible"
    assert answer.reasons == ("the rate limit",)
    document = host("28.5", [Box("web", "8080:80")], docker_user=["-m limit --limit 5/second -j ACCEPT"])
    # Docker lets it in anyway.
    assert asked(document, CLIENT).verdict == "delivered"


def test_a_policy_is_named() -> None:
    rule = '-d 172.17.0.2/32 ! -i docker0 -p tcp -m tcp --dport 80 -m comment --comment "quaywall:shop" -j DROP'
    answer = asked(host("28.5", [Box("web", "8080:80")], docker_user=[rule]), CLIENT)
    assert "rule 1 of DOCKER-USER, policy shop," in answer.sentence
    assert answer.advice == "to let it in, change the policy shop"


def test_marks_and_untracked_packets_are_carried_from_table_to_table() -> None:
    document = host("28.5", [Box("web", "8080:80")], docker_user=["-m mark --mark 0x7 -j DROP"])
    marking = ["-A PREROUTING -s %s/32 -j MARK --set-xmark 0x7/0xffffffff" % CLIENT]
    marked = with_rules(document, IPV4, "mangle", marking)
    assert asked(document, CLIENT).verdict == "delivered"
    assert asked(marked, CLIENT).verdict == "blocked"
    assert asked(marked, "198.51.100.8").verdict == "delivered"
    untracked = with_rules(document, IPV4, "raw", ["-I PREROUTING 1 -s %s/32 -j CT --notrack" % CLIENT])
    answer = asked(untracked, CLIENT)
    # DNAT needs conntrack: docker-proxy gets it.
    assert [step.text for step in answer.steps if "docker-proxy" in step.text]


def test_the_other_variant_of_iptables_is_read_too() -> None:
    document = host("28.5", [Box("web", "8080:80")])
    document["iptables"][IPV4]["legacy"] = (
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
        "-A FORWARD -p tcp -m tcp --dport 80 -j DROP\nCOMMIT\n"
    )
    answer = asked(document, CLIENT)
    assert answer.decided is not None
    assert (answer.verdict, answer.decided.variant) == ("blocked", "legacy")
    assert "rule 1 of FORWARD of the legacy iptables" in answer.sentence


def test_what_is_masqueraded_on_loopback_comes_in_from_another_address() -> None:
    """As the kernel showed: loopback's own address is for the host alone, so the first one of another interface."""
    for source, verdict in (("203.0.113.1", "blocked"), ("172.17.0.1", "delivered")):
        rule = "-A INPUT -s %s/32 -m conntrack --ctdir ORIGINAL -j DROP" % source
        # Docker masquerades what comes from its networks, the host's own address there too.
        document = with_rules(host("28.5", BOXES, networks=NETS), IPV4, "filter", [rule])
        assert asked(document, "host", "172.17.0.1", 22).verdict == verdict


def test_icmp_types() -> None:
    document = host("28.5", [Box("web", "8080:80")])
    no_ping = with_rules(document, IPV4, "filter", ["-A INPUT -p icmp -m icmp --icmp-type 8 -j DROP"])
    assert asked(document, CLIENT, OWN, 0, protocol="icmp").verdict == "delivered"
    assert asked(no_ping, CLIENT, OWN, 0, protocol="icmp").verdict == "blocked"
    other = with_rules(document, IPV4, "filter", ["-A INPUT -p icmp -m icmp --icmp-type 13 -j DROP"])
    assert asked(other, CLIENT, OWN, 0, protocol="icmp").verdict == "delivered"


def test_rules_about_the_owner_of_the_host_s_own_packets_are_not_guessed() -> None:
    document = with_rules(two_apps(), IPV4, "filter", ["-A OUTPUT -m owner --uid-owner 1000 -j DROP"])
    assert asked(document, "host", OWN, 9000).verdict == "possible"
    assert asked(document, CLIENT, OWN, 22).verdict == "possible"  # whose answer is it?


# What is no answer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (Question(CLIENT, "198.51.100.99", 80), "neither an address of this host nor of one of its containers"),
        (Question(CLIENT, "172.17.0.99", 80), "no container that runs has 172.17.0.99"),
        (Question(CLIENT, "nobody", 80), "'nobody' is neither an address nor a container"),
        (Question("nobody", OWN, 80), "the containers that run are"),
        (Question(CLIENT, "stopped", 80), "the container stopped does not run"),
        (Question(CLIENT, OWN, 0), "give one between 1 and 65535"),
        (Question(CLIENT, OWN, 70000), "give one between 1 and 65535"),
        (Question(CLIENT6, OWN, 80), "name two of one family"),
        (Question(CLIENT, OWN, 80, "tcp", "eth7"), "the host has no interface eth7; it has lo, eth0"),
        (Question(CLIENT, OWN, 80, "icmp"), "icmp has no ports"),
        (Question(" ", OWN, 80), "source is empty"),
    ],
)
def test_questions_that_make_no_sense(question: Question, words: str) -> None:
    document = host("28.5", [Box("web", "8080:80"), Box("stopped", running=False)])
    with pytest.raises(TraceError) as caught:
        Judge(from_json(document)).answer(question)
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_port_that_nobody_listens_on() -> None:
    answer = asked(host("28.5", [Box("web", "8080:80")]), CLIENT, OWN, 80)
    assert answer.verdict == "blocked"
    assert "nothing is published there, but web publishes its port 80 as port 8080" in answer.sentence


def test_chains_that_lead_back_to_themselves() -> None:
    document = host("28.5", [Box("web", "8080:80")])
    lines = [":A - [0:0]", ":B - [0:0]", "-A DOCKER-USER -j A", "-A A -j B", "-A B -j A", "-A B -j DROP"]
    answer = asked(with_rules(document, IPV4, "filter", lines), CLIENT)
    assert answer.verdict in ("possible", "blocked")


@pytest.mark.parametrize("part", ["routes", "interfaces", "sysctls", "proxies", "listening", "nft", "ipsets", "docker"])
def test_a_snapshot_with_holes(part: str) -> None:
    document = host("28.5", [Box("web", "8080:80")])
    document[part] = None
    answer = asked(document, CLIENT, OWN, 8080)
    unsure = {"routes", "interfaces", "nft"}
    assert answer.verdict == ("possible" if part in unsure else "delivered")
    assert bool(answer.reasons) == (part in unsure)


def test_rules_that_were_not_read_are_named() -> None:
    document = host("28.5", [Box("web", "8080:80")])
    document["iptables"] = None
    document["holes"] = [{"part": "iptables", "reason": "Reading iptables needs root."}]
    answer = asked(document, CLIENT, OWN, 22)
    assert answer.verdict == "possible"
    assert any("Reading iptables needs root" in reason for reason in answer.reasons)


# Tables --------------------------------------------------------------------------------------------------------------


def test_a_table_says_the_same_as_single_questions() -> None:
    document = engine(
        "28.5",
        "-s 198.51.100.0/28 -d 172.17.0.2/32 -j DROP",
        "-m limit --limit 1/second -s 198.51.100.64/26 -j DROP",
        "-s 198.51.100.7/32 -j ACCEPT",
    )
    judge = Judge(from_json(document))
    sources = [CLIENT, "198.51.100.70", "198.51.100.200", "host", "far", CLIENT6]
    table = judge.table(sources)
    assert {answer.question.port for answer in table} == {8080, 8181}
    for cell in table:
        alone = judge.answer(cell.question._replace(destination=cell.destination))
        assert (cell.verdict, cell.reasons, cell.decided) == (alone.verdict, alone.reasons, alone.decided), cell
    verdicts = {(answer.question.source, answer.question.port): answer.verdict for answer in table}
    assert verdicts[CLIENT, 8080] == "blocked"
    assert verdicts["198.51.100.70", 8080] == "possible"
    assert verdicts["198.51.100.200", 8080] == "delivered"
    lines = rows(table)
    assert lines[0].split() == ["port", "at", "container", *sources]


def test_a_network_of_which_some_get_through() -> None:
    document = engine("28.5", "-s 198.51.100.0/25 -j DROP")
    answer = asked(document, "198.51.100.0/24")
    assert answer.verdict == "possible"
    assert answer.reasons == ("which of the addresses it comes from",)
    assert asked(document, "198.51.100.128/25").verdict == "delivered"
    assert asked(document, "198.51.100.0/26").verdict == "blocked"


@pytest.mark.big
def test_a_big_host() -> None:
    judge = Judge(from_json(large(60, 2000)))
    ports = [("tcp", item.binding.host_port) for item in judge.survey.family(IPV4).published if not item.loopback][:20]
    sources = ["198.18.%d.%d" % (number, number + 1) for number in range(20)]
    table = judge.table(sources, ports, OWN)
    assert len(table) == len(sources) * len(ports)
    for cell in table[::37]:
        alone = judge.answer(cell.question)
        assert (cell.verdict, cell.decided) == (alone.verdict, alone.decided)


def test_ipv6_has_rules_of_its_own() -> None:
    boxes = [Box("six", "8080:80", network="dual")]
    nets = [Net("dual", "172.20.0.0/16", "fd00:20::/64")]
    document = host("28.5", boxes, networks=nets, docker_user=["-j DROP"])
    assert asked(document, CLIENT).verdict == "blocked"
    answer = asked(document, CLIENT6)
    assert (answer.verdict, answer.family) == ("delivered", IPV6)
