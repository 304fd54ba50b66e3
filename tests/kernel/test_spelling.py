# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""However a rule is spelled, our normal form of it is what the kernel's tools print."""

from __future__ import annotations

import ipaddress
import typing as t

import pytest
from hypothesis import assume, event, given, reject, settings
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Binding, Container, Inventory, Network
from ansible_collections.quaywall.docker.plugins.module_utils._plan import established_rule
from ansible_collections.quaywall.docker.plugins.module_utils._policy import Policy, PolicyError, compile_policy
from ansible_collections.quaywall.docker.plugins.module_utils._rule import FIELDS, normalise, parse

from .lab import FAMILIES, IPV4, IPV6, VARIANTS, Host, load, save, tool

if t.TYPE_CHECKING:
    from collections.abc import Iterator

Text = st.SearchStrategy[str]

SETS = ("allow", "deny-list")


@pytest.fixture(scope="module", params=[(variant, family) for variant in VARIANTS for family in FAMILIES], ids="-".join)
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Host, str, str]]:
    variant, family = request.param
    with Host() as host:
        for name in SETS:
            host.run("ipset", "create", name, "hash:ip", "family", "inet" if family == IPV4 else "inet6")
        yield host, variant, family


# Spellings of values --------------------------------------------------------------------------------------------------


def words(*choices: str) -> Text:
    return st.sampled_from(choices)


def lists_of(*choices: str) -> Text:
    """Comma lists in any order and case."""
    picked = st.lists(st.sampled_from(choices), min_size=1, max_size=4, unique=True).map(",".join)
    return st.builds(lambda text, lower: text.lower() if lower else text, picked, st.booleans())


@st.composite
def addresses(draw: st.DrawFn, family: str, prefix: bool = True) -> str:
    if family == IPV4:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = draw(st.ip_addresses(v=4))
        masks = st.one_of(
            st.just(""),
            st.integers(0, 32).map("/{}".format),
            st.integers(1, 32).map(lambda length: "/%s" % ipaddress.IPv4Network((0, length)).netmask),
            words("/255.255.0.255", "/255.0.255.0", "/0.0.0.255"),
        )
        return str(address) + (draw(masks) if prefix else "")
    special = words(
        "::1", "::", "::ffff:192.0.2.1", "::192.0.2.1", "::1:0", "::2:1", "64:ff9b::192.0.2.1", "1:0:0:2:0:0:0:3"
    )
    spelled = st.one_of(
        special,
        st.ip_addresses(v=6).map(str),
        st.ip_addresses(v=6).map(lambda address: address.exploded.upper()),
    )
    return draw(spelled) + (draw(st.one_of(st.just(""), st.integers(0, 128).map("/{}".format))) if prefix else "")


def conntrack_addresses(family: str) -> Text:
    """conntrack prints host bits as they were fed, which says the same; a mask that is no prefix it prints wrongly."""

    def spelled(address: str, length: int | None, mask: bool) -> str:
        if length is None:
            return address
        found = ipaddress.ip_network("%s/%d" % (address, length), strict=False)
        return found.with_netmask if mask and family == IPV4 and length else str(found)

    lengths = st.none() | st.integers(0, 32 if family == IPV4 else 128)
    return st.builds(spelled, addresses(family, prefix=False), lengths, st.booleans())


numbers = st.integers(0, 65535)
ports = st.one_of(
    numbers.map(str),
    st.tuples(numbers, numbers).map(lambda pair: "%d:%d" % (min(pair), max(pair))),
    numbers.map("{}:".format),
    numbers.map(":{}".format),
    words(":", "0:65535", "80:80", "0x50", "0"),
)
interfaces = words("eth0", "docker0", "br-0123456789ab", "wg+", "+", "a", "veth1a.2b", "eth0:1", "-x")
marks = st.one_of(
    st.integers(0, 2**32 - 1).map(str),
    st.integers(0, 2**32 - 1).map("{:#X}".format).map(lambda text: text.replace("X", "x")),
    st.tuples(st.integers(0, 255), st.integers(0, 255)).map(lambda pair: "%d/0x%x" % pair),
    words("010", "0x0/0xffffffff", "1/0", "0"),
)
flags = st.one_of(words("ALL", "NONE"), lists_of("FIN", "SYN", "RST", "PSH", "ACK", "URG"))


def icmp_types(family: str) -> Text:
    return st.integers(0, 254).map(str) if family == IPV4 else st.integers(0, 255).map(str)


def ranges(family: str) -> Text:
    version = 4 if family == IPV4 else 6
    # Plain addresses only: iprange takes them as the words they are.
    plain = st.ip_addresses(network="10.0.0.0/8" if version == 4 else "2001:db8::/32")
    return st.tuples(plain, plain).map(lambda pair: "%s-%s" % (min(pair), max(pair)))


def quoted(text: str) -> str:
    """As a person writes it for iptables-restore: always in quotes."""
    return '"%s"' % text.replace("\\", "\\\\").replace('"', '\\"')


#: No newline and no NUL, which iptables-restore cannot be given; they come by argv, in test_hostile.
texts = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=29).filter(
    lambda text: len(text.encode()) <= 29
)

Values = t.Callable[[str], Text]


def same(strategy: Text) -> Values:
    return lambda family: strategy


ADDRESS_TYPES = lists_of("UNICAST", "LOCAL", "BROADCAST", "MULTICAST", "BLACKHOLE", "UNREACHABLE", "PROHIBIT")
STATES = lists_of("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")

#: How the value of each field of the table may be spelled. Fields without a value have no words.
VALUES: dict[tuple[str, str], Values] = {
    ("", "-s"): addresses,
    ("", "-d"): addresses,
    ("", "-i"): same(interfaces),
    ("", "-o"): same(interfaces),
    **{
        (protocol, option): same(ports)
        for protocol in ("tcp", "udp", "sctp", "dccp")
        for option in ("--sport", "--dport")
    },
    ("tcp", "--tcp-flags"): same(st.tuples(flags.filter("NONE".__ne__), flags).map(" ".join)),
    **{
        ("multiport", option): same(st.lists(ports, min_size=1, max_size=7).map(",".join))
        for option in ("--sports", "--dports", "--ports")
    },
    ("icmp", "--icmp-type"): icmp_types,
    ("icmp6", "--icmpv6-type"): icmp_types,
    ("conntrack", "--ctstate"): same(STATES),
    ("conntrack", "--ctproto"): same(words("tcp", "udp", "6", "sctp", "132", "1", "icmp", "47", "TCP")),
    **{("conntrack", "--ct" + name): conntrack_addresses for name in ("origsrc", "origdst", "replsrc", "repldst")},
    **{("conntrack", "--ct%sport" % name): same(ports) for name in ("origsrc", "origdst", "replsrc", "repldst")},
    ("conntrack", "--ctstatus"): same(
        st.one_of(words("NONE"), lists_of("EXPECTED", "SEEN_REPLY", "ASSURED", "CONFIRMED"))
    ),
    ("conntrack", "--ctexpire"): same(words("5", "1:10", "0")),
    ("conntrack", "--ctdir"): same(words("ORIGINAL", "REPLY", "original", "reply")),
    ("state", "--state"): same(lists_of("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED")),
    ("addrtype", "--src-type"): same(ADDRESS_TYPES),
    ("addrtype", "--dst-type"): same(ADDRESS_TYPES),
    ("addrtype", "--limit-iface-in"): same(words("")),
    ("addrtype", "--limit-iface-out"): same(words("")),
    ("iprange", "--src-range"): ranges,
    ("iprange", "--dst-range"): ranges,
    ("set", "--match-set"): same(st.tuples(words(*SETS), words("src", "dst", "src,dst", "dst,src")).map(" ".join)),
    ("mark", "--mark"): same(marks),
    ("connmark", "--mark"): same(marks),
    ("comment", "--comment"): same(st.one_of(texts.map(quoted), words("plain", "--odd", '""', "a_b-c", '"x"'))),
    ("physdev", "--physdev-is-in"): same(words("")),
    ("physdev", "--physdev-in"): same(interfaces.filter("+".__ne__)),
    ("physdev", "--physdev-is-out"): same(words("")),
    ("physdev", "--physdev-out"): same(interfaces.filter("+".__ne__)),
    ("physdev", "--physdev-is-bridged"): same(words("")),
    ("owner", "--uid-owner"): same(words("0", "1000", "5-10")),
    ("owner", "--gid-owner"): same(words("0", "1000", "5-10")),
    ("owner", "--socket-exists"): same(words("")),
    ("limit", "--limit"): same(
        st.tuples(st.integers(1, 9999), words("s", "sec", "second", "m", "min", "minute", "h", "hour", "d", "day")).map(
            lambda pair: "%d/%s" % pair
        )
    ),
    ("limit", "--limit-burst"): same(st.integers(1, 9999).map(str)),
    ("LOG", "--log-prefix"): same(texts.map(quoted)),
    ("LOG", "--log-level"): same(words("0", "4", "7", "warning", "debug", "emerg", "notice", "0x3")),
    ("MARK", "--set-xmark"): same(words("0x1/0xff", "0x1/0xffffffff")),
}

REJECTS = {
    IPV4: words(
        "icmp-port-unreachable", "port-unreach", "icmp-net-unreachable", "host-unreach", "icmp-admin-prohibited"
    ),
    IPV6: words("icmp6-port-unreachable", "port-unreach", "icmp6-no-route", "adm-prohibited", "addr-unreach"),
}
VALUES["REJECT", "--reject-with"] = REJECTS.__getitem__

#: Fields that this test does not spell, and why.
LEFT_OUT = {
    ("", "-p"): "drawn with the rule",
    ("", "-f"): "drawn with the rule",
    ("", "-m"): "drawn with the rule",
    ("", "-j"): "drawn with the rule",
    ("", "-g"): "drawn with the rule",
    ("udplite", "--sport"): "no iptables of Debian has this match",
    ("udplite", "--dport"): "no iptables of Debian has this match",
    ("DNAT", "--to-destination"): "only in nat, where we never write: test_round_trip has it",
    ("SNAT", "--to-source"): "only in nat, where we never write: test_round_trip has it",
    ("MASQUERADE", "--to-ports"): "only in nat, where we never write: test_round_trip has it",
    ("REDIRECT", "--to-ports"): "only in nat, where we never write: test_round_trip has it",
}

NOT_NEGATED = {
    ("limit", "--limit"), ("limit", "--limit-burst"), ("comment", "--comment"), ("addrtype", "--limit-iface-in"),
    ("addrtype", "--limit-iface-out"), ("conntrack", "--ctdir"),
}  # fmt: skip


def test_no_field_of_the_table_is_forgotten() -> None:
    assert set(FIELDS) == set(VALUES) | set(LEFT_OUT)


MATCHES = (
    "multiport",
    "conntrack",
    "state",
    "addrtype",
    "iprange",
    "set",
    "mark",
    "connmark",
    "comment",
    "physdev",
    "owner",
    "limit",
)
PROTOCOLS = ("tcp", "TCP", "6", "udp", "17", "sctp", "132", "dccp", "33", "all", "0", "50", "esp", "")


@st.composite
def options(draw: st.DrawFn, context: str, family: str) -> list[str]:
    """Some options of a match or target, each once, in any order."""
    names = [key for key in VALUES if key[0] == context]
    chosen = draw(
        st.lists(st.sampled_from(names), min_size=1, max_size=4 if context == "conntrack" else 2, unique=True)
    )
    if context == "limit" and ("limit", "--limit") not in chosen:
        chosen.append(("limit", "--limit"))
    found = []
    for key in chosen:
        value = draw(VALUES[key](family))
        negated = key not in NOT_NEGATED and key[0].islower() and draw(st.integers(0, 4)) == 0
        # tcp and udp print "no port at all" as nothing, that is, as every port; nft turns "not 0:9" into 10:65535.
        low, colon, high = value.partition(":")
        open_end = colon and (low in ("", "0") or high in ("", "65535"))
        negated = negated and not (key[0] in ("tcp", "udp") and open_end)
        found.append(("! " if negated else "") + key[1] + (" " + value if value else ""))
    return found


@st.composite
def spellings(draw: st.DrawFn, family: str) -> str:
    head = []
    protocol = draw(st.sampled_from((*PROTOCOLS, "icmp" if family == IPV4 else "icmpv6")))
    for option in draw(st.lists(st.sampled_from(("-s", "-d", "-i", "-o")), max_size=3, unique=True)):
        value = draw(VALUES["", option](family))
        # Never to match is a rule that no variant of iptables prints as it was fed.
        everything = value == "+" or value.endswith("/0")
        head.append(("! " if not everything and draw(st.integers(0, 3)) == 0 else "") + "%s %s" % (option, value))
    number = FIELD_PROTOCOLS.get(protocol.lower(), "")
    if protocol:
        negated = not number and protocol not in ("all", "0") and draw(st.booleans())
        head.append(("! " if negated else "") + "-p " + protocol)
    if family == IPV4 and not number and draw(st.integers(0, 5)) == 0:
        head.append(draw(st.sampled_from(("-f", "! -f"))))
    matches: list[list[str]] = []
    if number and draw(st.booleans()):
        # With or without -m: the protocol loads its match by itself.
        named = [["-m " + number]] if draw(st.booleans()) or number in ("icmp", "icmp6") else [[]]
        matches.append([*named[0], *draw(options(number, family))])
    for name in draw(st.lists(st.sampled_from(MATCHES), max_size=3, unique=True)):
        if name == "multiport" and number not in ("tcp", "udp", "sctp", "dccp"):
            continue
        matches.append(["-m " + name, *draw(options(name, family))])
    target = draw(st.sampled_from(("ACCEPT", "DROP", "RETURN", "REJECT", "LOG", "OTHER", "GOTO", "")))
    tail = {"": [], "GOTO": ["-g OTHER"]}.get(target, ["-j " + target])
    if target in ("LOG", "REJECT") and draw(st.booleans()):
        tail += draw(options(target, family))
    # Options of iptables itself may stand anywhere behind the protocol, if a match of it is used.
    first = [item for item in head if item.startswith(("-p", "! -p"))]
    others = draw(st.permutations([item for item in head if item not in first]))
    cut = draw(st.integers(0, len(others)))
    middle = [item for match in draw(st.permutations(matches)) for item in match]
    return " ".join([*first, *others[:cut], *middle, *others[cut:], *tail])


FIELD_PROTOCOLS = {
    "tcp": "tcp", "6": "tcp", "udp": "udp", "17": "udp", "sctp": "sctp", "132": "sctp", "dccp": "dccp", "33": "dccp",
    "icmp": "icmp", "icmpv6": "icmp6",
}  # fmt: skip


def table_with(rules: list[str]) -> str:
    return "*filter\n:T - [0:0]\n:OTHER - [0:0]\n%sCOMMIT\n" % "".join(
        "-A T%s\n" % (" " + rule if rule else "") for rule in rules
    )


def printed(host: Host, variant: str, family: str) -> list[str]:
    text = save(host, variant, family).decode("utf-8", "surrogateescape")
    return [line[5:] for line in text.split("\n") if line.startswith("-A T ") or line == "-A T"]


@settings(max_examples=120)
@given(data=st.data())
def test_the_normal_form_is_what_the_kernel_prints(place: tuple[Host, str, str], data: st.DataObject) -> None:
    host, variant, family = place
    rule = data.draw(spellings(family))
    done = host.attempt(tool(family, variant, "restore"), "--wait", "10", data=table_with([rule]).encode())
    event("accepted" if done.returncode == 0 else "refused by %s" % tool(family, variant))
    assume(done.returncode == 0)
    (shown,) = printed(host, variant, family)
    read = parse(shown, family)
    assert read.render() == shown
    assert normalise(read, family).render() == shown
    fed = parse(rule, family)
    event("understood" if fed.understood else "not understood")
    if fed.understood:
        assert normalise(fed, family).render() == shown
    assert read.understood or not shown


# What policies make ---------------------------------------------------------------------------------------------------

NETWORKS = {
    "bridge": Network("bridge", "b" * 64, "bridge", "docker0", False, ("172.17.0.0/16",)),
    "shop": Network("shop", "5" * 64, "bridge", "br-555555555555", True, ("172.18.0.0/16", "fd00:18::/64")),
}

CONTAINERS = (
    Container(
        "admin", "a" * 64, True, "bridge", {"role": "web"}, {"bridge": ("172.17.0.10",)}, {"bridge": "b" * 64},
        (Binding("tcp", 8080, 9000, "", False),),
    ),
    Container(
        "db", "d" * 64, True, "shop", {"role": "web"},
        {"shop": ("172.18.0.3", "fd00:18::3"), "bridge": ("172.17.0.11",)}, {"shop": "5" * 64, "bridge": "b" * 64}, (),
    ),
)  # fmt: skip
INVENTORY = Inventory(CONTAINERS, NETWORKS)

BINDINGS = st.lists(
    st.builds(
        Binding,
        st.sampled_from(("tcp", "udp", "sctp")),
        st.integers(1, 65535),
        st.integers(1, 65535),
        st.sampled_from(("", "192.0.2.5", "2001:db8::5")),
        st.just(True),
    ),
    max_size=6,
).map(tuple)

PORTS = st.one_of(
    st.integers(1, 65535).map(str), st.tuples(st.integers(1, 300), st.integers(300, 65535)).map(lambda p: "%d:%d" % p)
)
SOURCES = st.one_of(addresses(IPV4), addresses(IPV6)).filter(
    lambda text: "/255.0.255" not in text and "/255.255.0" not in text
)


@st.composite
def policies(draw: st.DrawFn) -> dict[str, t.Any]:
    found: dict[str, t.Any] = {"name": draw(st.text("abcXYZ019._-", min_size=1, max_size=64))}
    target, value = draw(
        st.sampled_from(
            (
                ("container", "admin"), ("container", "db"), ("labels", {"role": "web"}), ("network", "shop"),
                ("network", "bridge"), ("destination", "172.17.0.10"), ("destination", "fd00:18::/64"),
                ("published_port", "9000"), ("published_port", "9000:9010"),
            )
        )
    )  # fmt: skip
    found[target] = value
    found["protocol"] = draw(st.sampled_from(("tcp", "udp", "sctp", "icmp", "all")))
    found["action"] = draw(st.sampled_from(("accept", "return", "drop", "reject")))
    choices: dict[str, Text | st.SearchStrategy[t.Any]] = {
        "source": st.lists(SOURCES, min_size=1, max_size=3),
        "in_interface": st.sampled_from(("eth0", "!wg0", "br-+", "docker0")),
        "otherwise": st.sampled_from(("drop", "reject", "return", "none")),
        "same_network": st.sampled_from(("allow", "filter")),
        "match": st.sampled_from(("both", "address", "published_port")),
        "priority": st.integers(0, 999),
        "log": st.fixed_dictionaries(
            {"prefix": texts, "limit": st.sampled_from(("10/minute", "1/s", "5/hour", "100/day"))}
        ),
    }
    if found["protocol"] in ("tcp", "udp", "sctp") and target != "published_port":
        choices["destination_port"] = st.lists(PORTS, min_size=1, max_size=20)
    for name, strategy in choices.items():
        if draw(st.booleans()):
            found[name] = draw(strategy)
    return found


@settings(max_examples=80)
@given(options=policies(), bindings=BINDINGS)
def test_the_kernel_prints_what_policies_make_letter_for_letter(
    place: tuple[Host, str, str], options: dict[str, t.Any], bindings: tuple[Binding, ...]
) -> None:
    host, variant, family = place
    try:
        compiled = compile_policy(Policy.from_options(options), INVENTORY, lambda container: bindings, ip6_dnat=True)
    except PolicyError:
        event("refused by us")
        reject()
    rules = [rule.render() for rule in (established_rule(), *compiled.rules.get(family, ()))]
    assume(len(rules) > 1)
    load(host, variant, family, table_with(rules))
    assert printed(host, variant, family) == rules
    # A second time, by what is read: the same identity.
    assert [normalise(parse(line, family), family).render() for line in rules] == rules
