# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One rule: parse, render, normalise.

What iptables prints was read from iptables 1.8.9 (nft and legacy, which agree on every line here unless it is said),
from the `.t` files of iptables 1.8.11, and from real hosts.
"""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils._rule import (
    IPV4,
    IPV6,
    OPAQUE,
    Rule,
    field,
    normalise,
    parse,
    quote,
    unquote,
)
from ansible_collections.quaywall.docker.tests.unit.support import (
    FAMILIES,
    absent,
    any_text,
    free_text,
    known_rules,
    shared_files,
    shared_text,
)

if t.TYPE_CHECKING:
    from pathlib import Path

# Parse ---------------------------------------------------------------------------------------------------------------


def fields_of(rule: Rule) -> t.List[t.Tuple[str, str, bool]]:
    return [(item.name, item.value, item.negated) for item in rule.fields]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", [], id="a rule without anything, which iptables-save prints as -A CHAIN"),
        pytest.param("-j RETURN", [("jump", "RETURN", False)], id="Engine 20.10: last rule of DOCKER-USER"),
        pytest.param(
            "-d 172.17.0.4/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 8080 -j ACCEPT",
            [
                ("destination", "172.17.0.4/32", False),
                ("in_interface", "docker0", True),
                ("out_interface", "docker0", False),
                ("protocol", "tcp", False),
                ("match", "tcp", False),
                ("destination_port", "8080", False),
                ("jump", "ACCEPT", False),
            ],
            id="Engine 28.5: a published port in DOCKER",
        ),
        pytest.param(
            "! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER",
            [
                ("destination", "127.0.0.0/8", True),
                ("match", "addrtype", False),
                ("destination_type", "LOCAL", False),
                ("jump", "DOCKER", False),
            ],
            id="Engine 28.5: nat OUTPUT",
        ),
        pytest.param(
            "-s 203.0.113.10/32 -d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 "
            '-m comment --comment "quaywall:admin-ui" -j ACCEPT',
            [
                ("source", "203.0.113.10/32", False),
                ("destination", "172.17.0.10/32", False),
                ("in_interface", "docker0", True),
                ("protocol", "tcp", False),
                ("match", "tcp", False),
                ("destination_port", "8080", False),
                ("match", "comment", False),
                ("comment", "quaywall:admin-ui", False),
                ("jump", "ACCEPT", False),
            ],
            id="the design's example",
        ),
        pytest.param(
            "-p udp -m conntrack --ctstate DNAT --ctorigdst 192.0.2.1 --ctorigdstport 53 --ctdir ORIGINAL -j DROP",
            [
                ("protocol", "udp", False),
                ("match", "conntrack", False),
                ("ctstate", "DNAT", False),
                ("ctorigdst", "192.0.2.1", False),
                ("ctorigdstport", "53", False),
                ("ctdir", "ORIGINAL", False),
                ("jump", "DROP", False),
            ],
            id="iptables 1.8.9: conntrack",
        ),
        pytest.param(
            "-p tcp -m multiport ! --dports 443,80,8000:8010 -j ACCEPT",
            [
                ("protocol", "tcp", False),
                ("match", "multiport", False),
                ("destination_ports", "443,80,8000:8010", True),
                ("jump", "ACCEPT", False),
            ],
            id="iptables 1.8.9: multiport keeps the order",
        ),
        pytest.param(
            "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT",
            [
                ("protocol", "tcp", False),
                ("match", "tcp", False),
                ("tcp_flags", "FIN,SYN,RST,ACK SYN", False),
                ("jump", "ACCEPT", False),
            ],
            id="iptables 1.8.9: --syn",
        ),
        pytest.param(
            "! -f -j DROP", [("fragment", "", True), ("jump", "DROP", False)], id="iptables 1.8.9: no fragment"
        ),
        pytest.param("-g QT2", [("goto", "QT2", False)], id="iptables 1.8.9: goto"),
        pytest.param(
            "-m set ! --match-set crowdsec-blacklists src -j DROP",
            [("match", "set", False), ("match_set", "crowdsec-blacklists src", True), ("jump", "DROP", False)],
            id="CrowdSec's bouncer",
        ),
        pytest.param(
            "-p tcp -m comment --comment x -m tcp --dport 80 -j ACCEPT",
            [
                ("protocol", "tcp", False),
                ("match", "comment", False),
                ("comment", "x", False),
                ("match", "tcp", False),
                ("destination_port", "80", False),
                ("jump", "ACCEPT", False),
            ],
            id="Calico: a comment between the protocol and its match",
        ),
        pytest.param(
            "-s 10.0.0.0/255.0.255.0 -j ACCEPT",
            [("source", "10.0.0.0/255.0.255.0", False), ("jump", "ACCEPT", False)],
            id="iptables 1.8.9: a mask that is no prefix",
        ),
        pytest.param(
            "-s 0.0.0.5/0.0.0.255 -j ACCEPT",
            [("source", "0.0.0.5/0.0.0.255", False), ("jump", "ACCEPT", False)],
            id="iptables 1.8.9: a mask of the last bits is no /24",
        ),
    ],
)
def test_parse_tells_the_fields(text: str, expected: t.List[t.Tuple[str, str, bool]]) -> None:
    rule = parse(text) if text else Rule(())
    assert fields_of(rule) == expected
    assert rule.understood
    assert rule.opaque == []
    assert rule.render() == text


@pytest.mark.parametrize(
    ("printed", "comment"),
    [
        pytest.param('""', "", id="empty"),
        pytest.param("plain", "plain", id="a plain word has no quotes"),
        pytest.param('"a b"', "a b", id="a blank"),
        pytest.param('"a:b"', "a:b", id="a colon"),
        pytest.param('"a\\"b"', 'a"b', id="a double quote"),
        pytest.param('"a\\\'b"', "a'b", id="a single quote"),
        pytest.param('"a\\\\b"', "a\\b", id="a backslash"),
        pytest.param('"a\\\\"', "a\\", id="a backslash at the end"),
        pytest.param('"-j ACCEPT"', "-j ACCEPT", id="an option inside quotes"),
        pytest.param("--foo", "--foo", id="a leading dash has no quotes"),
        pytest.param("-j", "-j", id="an option without quotes"),
        pytest.param("--", "--", id="two dashes"),
        pytest.param('"!"', "!", id="an exclamation mark"),
        pytest.param('"h\u00e4fen"', "h\u00e4fen", id="UTF-8"),
        pytest.param('"a\tb"', "a\tb", id="a tab"),
        pytest.param('"a\rb"', "a\rb", id="a carriage return"),
        pytest.param('"a  b"', "a  b", id="two blanks"),
        pytest.param('" a "', " a ", id="blanks at both ends"),
        pytest.param('"\udcff"', "\udcff", id="a byte that is no UTF-8"),
        pytest.param(
            '"x\nCOMMIT\n*filter\n-A DOCKER-USER -j ACCEPT"',
            "x\nCOMMIT\n*filter\n-A DOCKER-USER -j ACCEPT",
            id="newlines and a forged rule",
        ),
    ],
)
def test_comment_as_iptables_prints_it(printed: str, comment: str) -> None:
    """kernel-facts 3, and iptables 1.8.9 for the rest."""
    text = "-m comment --comment %s -j DROP" % printed
    rule = parse(text)
    assert rule.comment == comment
    assert rule.target == "DROP"
    assert rule.understood
    assert rule.render() == text
    assert quote(comment) == printed
    assert unquote(printed) == comment
    assert field("comment", comment).text == "--comment " + printed


@pytest.mark.parametrize(
    ("text", "opaque", "target"),
    [
        pytest.param(
            "-m string --string -j --algo bm -j DROP",
            ["-m string", "--string -j", "--algo bm"],
            "DROP",
            id="--string -j",
        ),
        pytest.param(
            '-m string --string "-j" --algo bm -j DROP',
            ["-m string", '--string "-j"', "--algo bm"],
            "DROP",
            id='--string "-j"',
        ),
        pytest.param(
            "-m hashlimit --hashlimit-upto 5/min --hashlimit-burst 5 --hashlimit-name -j -j ACCEPT",
            ["-m hashlimit", "--hashlimit-upto 5/min", "--hashlimit-burst 5", "--hashlimit-name -j"],
            "ACCEPT",
            id="iptables 1.8.9: hashlimit prints its name without quotes",
        ),
        pytest.param(
            "-m recent --set --name a b --mask 255.255.255.255 --rsource -j DROP",
            ["-m recent", "--set", "--name a b", "--mask 255.255.255.255", "--rsource"],
            "DROP",
            id="iptables 1.8.9: recent prints a name with a blank without quotes",
        ),
        pytest.param(
            "-m set --match-set a b src -j DROP",
            ["--match-set a b src"],
            "DROP",
            id="ipset takes a blank in a name, iptables prints no quotes",
        ),
        pytest.param(
            '-m set --match-set a"b c src -j DROP', ['--match-set a"b c src'], "DROP", id="a set name with a quote"
        ),
        pytest.param(
            "-m rpfilter --validmark --invert -j DROP", ["-m rpfilter", "--validmark", "--invert"], "DROP", id="Calico"
        ),
        pytest.param("-m rpfilter -j ACCEPT", ["-m rpfilter"], "ACCEPT", id="an unknown match without options"),
        pytest.param("-m socket -j ACCEPT", ["-m socket"], "ACCEPT", id="another one"),
        pytest.param(
            "-m mark --mark 0x1 --frob 3 -j DROP", ["--frob 3"], "DROP", id="an unknown option of a known match"
        ),
        pytest.param("-m mark --mark many -j DROP", ["--mark many"], "DROP", id="a value that is none"),
        pytest.param("-p tcp -m tcp --dport http -j DROP", ["--dport http"], "DROP", id="a port by name"),
        pytest.param("-s 300.0.0.1/32 -j DROP", ["-s 300.0.0.1/32"], "DROP", id="no address"),
        pytest.param("-m conntrack --ctstate NEU -j DROP", ["--ctstate NEU"], "DROP", id="no state"),
        pytest.param("-j", ["-j"], None, id="cut after -j"),
        pytest.param("-p tcp -m tcp --dport", ["--dport"], None, id="cut after --dport"),
        pytest.param("garbage -j DROP", ["garbage"], "DROP", id="a word in front"),
    ],
)
def test_what_is_not_known_is_carried_and_marked(text: str, opaque: t.List[str], target: t.Optional[str]) -> None:
    rule = parse(text)
    assert rule.render() == text
    assert not rule.understood
    assert rule.opaque == opaque
    assert rule.target == target
    assert [item.text for item in normalise(rule).fields if item.name == OPAQUE] == [
        item.text for item in rule.fields if item.name == OPAQUE
    ]


@pytest.mark.parametrize(
    "hostile",
    [
        'quaywall:admin-ui" -j ACCEPT',
        "x\n-A DOCKER-USER -j ACCEPT",
        "x\nCOMMIT\n*filter\n:DOCKER-USER - [0:0]\n",
        '\\" -j ACCEPT --comment "',
        "$(reboot)",
        "`reboot`;reboot",
        "' -j ACCEPT",
        "\\",
        "! -j ACCEPT",
    ],
)
def test_a_hostile_comment_stays_a_comment(hostile: str) -> None:
    rule = Rule((field("match", "comment"), field("comment", hostile), field("jump", "DROP")))
    again = parse(rule.render())
    assert again == rule
    assert again.comment == hostile
    assert again.target == "DROP"


@given(any_text)
@example("-m comment --comment a -j DROP ")
@example(" -j DROP")
@example('-m comment --comment "never closed -j RETURN')
def test_any_text_is_rendered_as_it_was(text: str) -> None:
    for family in FAMILIES:
        assert parse(text, family).render() == text


@given(any_text)
def test_no_part_of_any_text_is_lost(text: str) -> None:
    rule = parse(text)
    assert " ".join([item.text for item in rule.fields]) == text
    assert rule.understood == (rule.opaque == [])


@given(any_text)
def test_normalise_any_text_is_idempotent_and_keeps_what_it_does_not_know(text: str) -> None:
    for family in FAMILIES:
        rule = parse(text, family)
        once = normalise(rule, family)
        assert normalise(once, family) == once
        before = [item.text for item in rule.fields if item.name == OPAQUE]
        assert [item.text for item in once.fields if item.name == OPAQUE] == before


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_known_rules_survive(family: str, data: st.DataObject) -> None:
    rule = data.draw(known_rules(family))
    text = rule.render()
    again = parse(text, family) if text else Rule(())
    assert again == rule
    assert again.understood
    once = normalise(rule, family)
    assert normalise(once, family) == once
    assert (parse(once.render(), family) if once.fields else Rule(())) == once


@given(free_text)
def test_quote_and_unquote(value: str) -> None:
    assert unquote(quote(value)) == value


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_spelling_does_not_matter(family: str, data: st.DataObject) -> None:
    """The head's options in any order, as a user may write them, are one rule after normalise."""
    rule = data.draw(known_rules(family))
    names = ("source", "destination", "in_interface", "out_interface")
    head = [item for item in rule.fields if item.name in names]
    rest = [item for item in rule.fields if item.name not in names]
    shuffled = Rule(tuple(data.draw(st.permutations(head)) + rest))
    assert normalise(shuffled, family) == normalise(rule, family)


# Normalise -----------------------------------------------------------------------------------------------------------

SAME = "="


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("-s 10.0.0.1 -j ACCEPT", "-s 10.0.0.1/32 -j ACCEPT"),
        ("-s 10.0.0.77/24 -j ACCEPT", "-s 10.0.0.0/24 -j ACCEPT"),
        ("-s 10.0.0.0/255.255.255.0 -j ACCEPT", "-s 10.0.0.0/24 -j ACCEPT"),
        ("-s 10.0.0.0/255.0.255.0 -j ACCEPT", SAME),
        ("-s 10.1.2.3/255.0.255.0 -j ACCEPT", "-s 10.0.2.0/255.0.255.0 -j ACCEPT"),
        ("-s 10.0.0.5/0.0.0.255 -j ACCEPT", "-s 0.0.0.5/0.0.0.255 -j ACCEPT"),
        ("-s 10.0.0.0/0.0.0.0 -j ACCEPT", "-j ACCEPT"),
        ("-s 0.0.0.0/0 -j ACCEPT", "-j ACCEPT"),
        ("! -s 10.0.0.0/8 -j ACCEPT", SAME),
        ("-i + -j ACCEPT", "-j ACCEPT"),
        ("-i eth+ -o docker0 -j ACCEPT", SAME),
        (
            "-o docker0 -i eth0 -d 10.0.0.1 -s 10.0.0.2 -p tcp -j ACCEPT",
            "-s 10.0.0.2/32 -d 10.0.0.1/32 -i eth0 -o docker0 -p tcp -j ACCEPT",
        ),
        (
            "-p tcp ! -s 10.0.0.0/8 ! -d 10.0.0.0/8 ! -i eth0 ! -o eth1 -j DROP",
            "! -s 10.0.0.0/8 ! -d 10.0.0.0/8 ! -i eth0 ! -o eth1 -p tcp -j DROP",
        ),
        ("! -p tcp -j DROP", SAME),
        ("-p tcp --dport 80 -j ACCEPT", "-p tcp -m tcp --dport 80 -j ACCEPT"),
        ("-p tcp -m tcp --dport 0:65535 -j ACCEPT", "-p tcp -m tcp -j ACCEPT"),
        ("-p tcp -m tcp --dport 80:80 -j ACCEPT", "-p tcp -m tcp --dport 80 -j ACCEPT"),
        ("-p tcp -m tcp --dport 8080: -j ACCEPT", "-p tcp -m tcp --dport 8080:65535 -j ACCEPT"),
        ("-p tcp -m tcp --dport :1024 -j ACCEPT", "-p tcp -m tcp --dport 0:1024 -j ACCEPT"),
        (
            "-p tcp -m tcp --dport 80 --sport 1024:65535 -j ACCEPT",
            "-p tcp -m tcp --sport 1024:65535 --dport 80 -j ACCEPT",
        ),
        ("-p tcp -m tcp ! --dport 80 -j ACCEPT", SAME),
        ("-p udp --sport 53 -j ACCEPT", "-p udp -m udp --sport 53 -j ACCEPT"),
        ("-p 6 -j ACCEPT", "-p tcp -j ACCEPT"),
        ("-p 132 -m sctp --dport 80 -j ACCEPT", "-p sctp -m sctp --dport 80 -j ACCEPT"),
        ("-p sctp --dport 80:90 -j ACCEPT", "-p sctp -m sctp --dport 80:90 -j ACCEPT"),
        ("-p TCP -j ACCEPT", "-p tcp -j ACCEPT"),
        ("-p all -j ACCEPT", "-j ACCEPT"),
        ("-p 0 -j ACCEPT", "-j ACCEPT"),
        ("-p 58 -j ACCEPT", "-p ipv6-icmp -j ACCEPT"),
        ("-p tcp -m multiport --dports 443,80,8000:8010 -j ACCEPT", SAME),
        ("-p tcp -m tcp -m multiport --dports 80,443 -j DROP", SAME),
        (
            "-p tcp -m comment --comment x --dport 80 -j ACCEPT",
            "-p tcp -m comment --comment x -m tcp --dport 80 -j ACCEPT",
        ),
        (
            "-m conntrack --ctstate NEW -p tcp --dport 80 -j ACCEPT",
            "-p tcp -m conntrack --ctstate NEW -m tcp --dport 80 -j ACCEPT",
        ),
        (
            "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ),
        ("-m conntrack --ctstate established -j ACCEPT", "-m conntrack --ctstate ESTABLISHED -j ACCEPT"),
        (
            "-m conntrack --ctdir ORIGINAL --ctorigdstport 9000 --ctstate DNAT -j DROP",
            "-m conntrack --ctstate DNAT --ctorigdstport 9000 --ctdir ORIGINAL -j DROP",
        ),
        ("-m conntrack --ctproto tcp -j DROP", "-m conntrack --ctproto 6 -j DROP"),
        ("-m conntrack --ctorigdst 10.0.0.1/32 -j DROP", "-m conntrack --ctorigdst 10.0.0.1 -j DROP"),
        ("-m conntrack ! --ctstate DNAT -j DROP", SAME),
        ("-m conntrack --ctdir reply -j DROP", "-m conntrack --ctdir REPLY -j DROP"),
        ("-m conntrack --ctstatus CONFIRMED,EXPECTED -j DROP", "-m conntrack --ctstatus EXPECTED,CONFIRMED -j DROP"),
        ("-m conntrack --ctorigdstport 9000:9000 -j DROP", "-m conntrack --ctorigdstport 9000 -j DROP"),
        ("-m conntrack --ctstate DNAT --ctorigdstport 0:65535 -j DROP", SAME),
        (
            "-m conntrack --ctorigdstport 900 --ctorigsrcport 5 --ctreplsrc 10.0.0.0/8 --ctorigsrc 10.1.0.0/16 -j DROP",
            "-m conntrack --ctorigsrc 10.1.0.0/16 --ctreplsrc 10.0.0.0/8 --ctorigsrcport 5 --ctorigdstport 900 -j DROP",
        ),
        ("-m state --state ESTABLISHED,NEW -j ACCEPT", "-m state --state NEW,ESTABLISHED -j ACCEPT"),
        ("-m limit --limit 10/minute --limit-burst 5 -j ACCEPT", "-m limit --limit 10/min -j ACCEPT"),
        ("-m limit --limit 10/second --limit-burst 7 -j ACCEPT", "-m limit --limit 10/sec --limit-burst 7 -j ACCEPT"),
        ("-m limit --limit 3 -j ACCEPT", "-m limit --limit 3/sec -j ACCEPT"),
        ("-m limit --limit 90/min -j ACCEPT", SAME),
        ("-m limit --limit 24/hour -j ACCEPT", SAME),
        ("-m limit --limit 60/min -j ACCEPT", "-m limit --limit 1/sec -j ACCEPT"),
        ("-m limit --limit 120/min -j ACCEPT", "-m limit --limit 2/sec -j ACCEPT"),
        ("-m limit --limit 24/day -j ACCEPT", "-m limit --limit 1/hour -j ACCEPT"),
        ("-m limit --limit 300/sec -j ACCEPT", "-m limit --limit 303/sec -j ACCEPT"),
        ("-m mark --mark 16 -j ACCEPT", "-m mark --mark 0x10 -j ACCEPT"),
        ("-m mark --mark 0x10/0xff -j ACCEPT", SAME),
        ("-m mark --mark 0x10/0xffffffff -j ACCEPT", "-m mark --mark 0x10 -j ACCEPT"),
        ("-m mark ! --mark 0 -j ACCEPT", "-m mark ! --mark 0x0 -j ACCEPT"),
        (
            "-m iprange --dst-range 10.0.0.1-10.0.0.9 --src-range 10.0.0.1-10.0.0.9 -j ACCEPT",
            "-m iprange --src-range 10.0.0.1-10.0.0.9 --dst-range 10.0.0.1-10.0.0.9 -j ACCEPT",
        ),
        ("-m addrtype --dst-type MULTICAST,local -j ACCEPT", "-m addrtype --dst-type LOCAL,MULTICAST -j ACCEPT"),
        (
            "-m addrtype --dst-type LOCAL --src-type UNICAST -j ACCEPT",
            "-m addrtype --src-type UNICAST --dst-type LOCAL -j ACCEPT",
        ),
        (
            "-p tcp --tcp-flags ALL NONE -j ACCEPT",
            "-p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE -j ACCEPT",
        ),
        ("-p tcp --tcp-flags ACK,SYN SYN -j ACCEPT", "-p tcp -m tcp --tcp-flags SYN,ACK SYN -j ACCEPT"),
        ("-j REJECT", "-j REJECT --reject-with icmp-port-unreachable"),
        ("-j REJECT --reject-with port-unreach", "-j REJECT --reject-with icmp-port-unreachable"),
        ("-j REJECT --reject-with host-prohib", "-j REJECT --reject-with icmp-host-prohibited"),
        ("-j REJECT --reject-with admin-prohib", "-j REJECT --reject-with icmp-admin-prohibited"),
        ("-p tcp -j REJECT --reject-with tcp-rst", "-p tcp -j REJECT --reject-with tcp-reset"),
        ("-j LOG --log-level warning", "-j LOG"),
        ("-j LOG --log-level info", "-j LOG --log-level 6"),
        ("-j LOG --log-prefix x --log-level 4", "-j LOG --log-prefix x"),
        ('-j LOG --log-level 7 --log-prefix "a b "', '-j LOG --log-prefix "a b " --log-level 7'),
        ('-m comment --comment "plain" -j ACCEPT', "-m comment --comment plain -j ACCEPT"),
        ("-m comment --comment a:b -j ACCEPT", '-m comment --comment "a:b" -j ACCEPT'),
        ('-m comment --comment "a b" -m comment --comment c -j DROP', SAME),
        ("-g QT2", SAME),
        ("-m comment --comment x", SAME),
    ],
)
def test_normalise_writes_what_iptables_prints(text: str, printed: str) -> None:
    expected = text if printed == SAME else printed
    assert normalise(parse(text)).render() == expected
    assert normalise(parse(expected)).render() == expected


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("-s 2001:db8::1 -j ACCEPT", "-s 2001:db8::1/128 -j ACCEPT"),
        ("-s 2001:DB8:0:0::1/64 -j ACCEPT", "-s 2001:db8::/64 -j ACCEPT"),
        ("-s ::/0 -j ACCEPT", "-j ACCEPT"),
        ("-s ::ffff:10.0.0.1 -j ACCEPT", "-s ::ffff:10.0.0.1/128 -j ACCEPT"),
        ("-s 2001:db8:0:1:0:0:0:1 -j ACCEPT", "-s 2001:db8:0:1::1/128 -j ACCEPT"),
        ("-s 2001:0:0:1:0:0:0:1 -j ACCEPT", "-s 2001:0:0:1::1/128 -j ACCEPT"),
        ("-s 64:ff9b::10.0.0.1/96 -j ACCEPT", "-s 64:ff9b::/96 -j ACCEPT"),
        ("-s 1:2:3:4:5:6:0:8 -j ACCEPT", "-s 1:2:3:4:5:6:0:8/128 -j ACCEPT"),
        ("-s fe80::1/10 -j DROP", "-s fe80::/10 -j DROP"),
        ("-p icmp -j ACCEPT", SAME),
        ("-p icmpv6 -j ACCEPT", "-p ipv6-icmp -j ACCEPT"),
        ("-p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT", SAME),
        ("-j REJECT", "-j REJECT --reject-with icmp6-port-unreachable"),
        ("-j REJECT --reject-with adm-prohibited", "-j REJECT --reject-with icmp6-adm-prohibited"),
        ("-p tcp -j REJECT --reject-with tcp-reset", SAME),
        (
            "-m conntrack --ctorigdst fd00::1 --ctstate DNAT -j DROP",
            "-m conntrack --ctstate DNAT --ctorigdst fd00::1 -j DROP",
        ),
        ("-m conntrack --ctorigdst fd00::1/128 -j DROP", "-m conntrack --ctorigdst fd00::1 -j DROP"),
    ],
)
def test_normalise_writes_what_ip6tables_prints(text: str, printed: str) -> None:
    expected = text if printed == SAME else printed
    assert normalise(parse(text, IPV6), IPV6).render() == expected
    assert normalise(parse(expected, IPV6), IPV6).render() == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", "300.0.0.1"),
        ("source", "10.0.0.1/33"),
        ("source", "web"),
        ("destination_port", "70000"),
        ("destination_port", "9:5"),
        ("destination_port", "http"),
        ("destination_port", ""),
        ("destination_ports", "80,,81"),
        ("limit", "0/sec"),
        ("limit", "10001/sec"),
        ("limit", "5/week"),
        ("ctstate", "NEU"),
        ("ctstate", ""),
        ("jump", ""),
        ("in_interface", ""),
        ("match_set", "a b src"),
        ("match_set", "a sideways"),
        ("mark", "x"),
        ("log_level", "loud"),
        ("tcp_flags", "SYN"),
        ("tcp_flags", "SYN FOO"),
    ],
)
def test_field_refuses_what_is_no_value(name: str, value: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- the message is of the standard library
        field(name, value)


@given(st.lists(st.sampled_from(("a", '"', "\\", " ", "\n", "-j", "x y")), max_size=8).map("".join))
def test_a_dump_line_made_of_quotes(value: str) -> None:
    """The text that iptables prints for any comment gives that comment, and what follows it is not part of it."""
    printed = "-m comment --comment %s -j DROP" % quote(value)
    rule = parse(printed)
    assert (rule.comment, rule.target, rule.understood) == (value, "DROP", True)


# iptables' own tests -------------------------------------------------------------------------------------------------

#: What iptables looks up by name or has no need to print shorter; a dump has only the printed form.
_LOOKED_UP = (
    ":ssh",
    ":ftp-data",
    "/ftp",
    "--to-ports ssh",
    "--to-ports ftp-data",
    "--to-ports 0-0",
    "--to-ports 512-512",
    "-owner root",
    "-type mld-",
    "-type echo-reply",
    "-type destination-unreachable",
    "-type 255/0:255",
    "--set-xmark 0x0",
    "--set-xmark 4294967295",
    "-j NFQUEUE",
    "--ctexpire 3:3",
    "-p dccp -m dccp --sport :",
    "-p dccp -m dccp --dport :",
)


def netfilter_lines(path: Path) -> t.Iterator[t.Tuple[str, str]]:
    """The rules of a `.t` file that iptables takes: as they are given, and as they are printed."""
    for line in shared_text(path).split("\n"):
        if line[:1] in ("", "#", ":", "*", "@", "%"):
            continue
        given_rule, printed, verdict = line.split(";")[:3]
        if verdict == "OK":
            yield given_rule, given_rule if printed == "=" else printed


@pytest.mark.parametrize(
    "path",
    shared_files("rulesets/netfilter/libxt_*.t")
    + shared_files("rulesets/netfilter/libipt_*.t")
    + shared_files("rulesets/netfilter/libip6t_*.t"),
)
def test_iptables_own_tests(path: Path) -> None:
    name = path.name
    families = {"libipt_": [IPV4], "libip6t": [IPV6]}.get(name[:7], list(FAMILIES))
    lines = list(netfilter_lines(path))
    for given_text, printed in lines:
        for family in families:
            assert parse(printed, family).render() == printed
            rule = parse(given_text, family)
            assert rule.render() == given_text
            if rule.understood and not any(part in given_text for part in _LOOKED_UP):
                assert normalise(rule, family).render() == printed
            once = normalise(parse(printed, family), family)
            assert normalise(once, family) == once


def test_iptables_own_tests_were_all_read() -> None:
    """1,213 checks in 1.8.11; a file that is read wrongly would leave the test above with nothing to say."""
    paths = [path for part in ("xt", "ipt", "ip6t") for path in _values("rulesets/netfilter/lib%s_*.t" % part)]
    assert sum(len(list(netfilter_lines(path))) for path in paths) > 700


def _values(pattern: str) -> t.List[Path]:
    found = [parameter.values[0] for parameter in shared_files(pattern)]
    if None in found:
        pytest.skip(absent(pattern))
    return found
