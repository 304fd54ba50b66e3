# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""One iptables rule: parse, render and normalise, from one table of fields.

A rule is what C(iptables-save) prints after C(-A CHAIN). :func:`parse` keeps the text of every field, so that
``parse(text).render() == text`` for any rule, whatever modules it uses; what the table of fields does not know is
carried verbatim in fields named :data:`OPAQUE`. :func:`normalise` writes the known fields the way the kernel's tools
print them, so that two rules that differ only in spelling become equal.

Sources: the printing code of iptables 1.8 (C(xtables_save_string), C(*_save) of each extension) and its C(.t) files.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import typing as t

#: Name of a field that the table does not know: its text is carried, its meaning is not judged.
OPAQUE = ""

#: Family names as the modules use them.
IPV4 = "ipv4"
IPV6 = "ipv6"


class Field(t.NamedTuple):
    """One match, option or target of a rule.

    ``name`` is the field's name in the table below or :data:`OPAQUE`, ``value`` its normalised value (the words of an
    opaque field), ``text`` the words as they were printed, with the C(!) of a negation.
    """

    name: str
    value: str
    negated: bool
    text: str


class Rule(t.NamedTuple):
    """One rule without its chain. ``counters`` are packets and bytes where the dump had them."""

    fields: t.Tuple[Field, ...]
    counters: t.Optional[t.Tuple[int, int]] = None

    def render(self) -> str:
        """The rule as it was parsed, without C(-A CHAIN) and counters."""
        return " ".join([field.text for field in self.fields])

    def get(self, name: str) -> t.Optional[Field]:
        """The first field of that name, or None."""
        for field in self.fields:
            if field.name == name:
                return field
        return None

    def value(self, name: str) -> t.Optional[str]:
        """The value of the first field of that name if it is not negated, or None."""
        for field in self.fields:
            if field.name == name:
                return None if field.negated else field.value
        return None

    @property
    def target(self) -> t.Optional[str]:
        """What the rule jumps or goes to, or None for a rule that only counts."""
        return self.value("jump") or self.value("goto")

    @property
    def comment(self) -> t.Optional[str]:
        return self.value("comment")

    @property
    def understood(self) -> bool:
        """True if no field is opaque."""
        return all(field.name != OPAQUE for field in self.fields)

    @property
    def opaque(self) -> t.List[str]:
        """The texts that the table of fields does not know."""
        return [field.text for field in self.fields if field.name == OPAQUE]


# Words ---------------------------------------------------------------------------------------------------------------

_WORD = re.compile(r'[ ]*("(?:[^"\\]|\\.)*"(?= |\Z)|[^ ]+)', re.DOTALL)


def quote(value: str) -> str:
    """A word as iptables prints it: in double quotes unless it is of C([A-Za-z0-9_-]) only (C(xtables_save_string))."""
    if value.isascii() and value.replace("_", "a").replace("-", "a").isalnum():
        return value
    if not ('"' in value or "\\" in value or "'" in value):
        return '"' + value + '"'
    # Patterns that most runs do not need are compiled where they are: a module's start is most of what it costs.
    return '"' + re.sub(r'(["\\\'])', r"\\\1", value) + '"'


def unquote(word: str) -> str:
    """The value of a printed word."""
    if len(word) >= 2 and word[0] == '"' and word[-1] == '"':
        return re.sub(r"\\(.)", r"\1", word[1:-1], flags=re.DOTALL) if "\\" in word else word[1:-1]
    return word


def arguments(text: str) -> t.List[str]:
    """A rule's printed text as the arguments of the command iptables."""
    if '"' not in text:
        return text.split(" ")
    return [unquote(word) for word in _WORD.findall(text)]


# Normalisers: from the words of a value to its normal form; ValueError where the words are not such a value. ----------


def _string(value: str, family: str) -> str:
    return unquote(value)


def _as_is(value: str, family: str) -> str:
    if not value or value[0] == '"':
        raise ValueError(value)
    return value


def _lower(value: str, family: str) -> str:
    return _as_is(value, family).lower()


def address_text(address: t.Union[ipaddress.IPv4Address, ipaddress.IPv6Address]) -> str:
    """An address as iptables prints it (inet_ntop): addresses in C(::ffff:0:0/96) and C(::/96) end in dotted form."""
    text = str(address)
    if text.startswith("::") and address.version == 6:
        number = int(address)
        if number >> 32 == 0xFFFF or 0xFFFF < number < 1 << 32:
            return "%s%s" % ("::ffff:" if number >> 32 else "::", ipaddress.IPv4Address(number & 0xFFFFFFFF))
    return text


_OCTETS = frozenset(map(str, range(256)))


def network(value: str, family: str = IPV4) -> str:
    """An address or network with its prefix length and without host bits, as iptables prints C(-s) and C(-d)."""
    head, slash, mask = value.partition("/")
    if (mask == "32" or not slash) and head.count(".") == 3 and _OCTETS.issuperset(head.split(".")):
        return head + "/32"  # the common case by far
    if not slash:
        address = ipaddress.ip_address(value)
        return "%s/%d" % (address_text(address), address.max_prefixlen)
    if "." in mask:
        bits = int(ipaddress.IPv4Address(mask))
        rest = bits ^ 0xFFFFFFFF
        if rest & (rest + 1):
            # A mask that is no prefix is legal for iptables and printed as it is; ip_network takes 0.0.0.255 for a /24.
            return "%s/%s" % (ipaddress.IPv4Address(int(ipaddress.IPv4Address(head)) & bits), mask)
    found = ipaddress.ip_network(value, strict=False)
    return "%s/%d" % (address_text(found.network_address), found.prefixlen)


def _conntrack_address(value: str, family: str) -> str:
    # conntrack prints a host without its prefix length, unlike -s and -d.
    text = network(value)
    head, _slash, length = text.partition("/")
    return head if length == ("128" if ":" in head else "32") else text


_PROTOCOL_NAMES = {
    "1": "icmp",
    "6": "tcp",
    "17": "udp",
    "33": "dccp",
    "50": "esp",
    "51": "ah",
    "58": "ipv6-icmp",
    "132": "sctp",
    "135": "ipv6-mh",
    "136": "udplite",
}
_PROTOCOL_NUMBERS = {name: number for number, name in _PROTOCOL_NAMES.items()}


def _protocol(value: str, family: str) -> str:
    name = _lower(value, family)
    if name == "icmpv6":
        return "ipv6-icmp"
    if name == "mh":
        return "ipv6-mh"
    if name == "0":
        return "all"
    return _PROTOCOL_NAMES.get(name, name)


def _conntrack_protocol(value: str, family: str) -> str:
    name = _protocol(value, family)
    return _PROTOCOL_NUMBERS.get(name, name)


def _number(value: str, family: str) -> str:
    return str(int(value, 0))


def port_range(value: str) -> t.Tuple[int, int]:
    """First and last port of C(80) or C(8000:8010); an open end means 0 or 65535."""
    first, colon, last = value.partition(":")
    if not colon:
        if not first:
            raise ValueError(value)
        last = first
    low, high = int(first or "0"), int(last or "65535")
    if not 0 <= low <= high <= 65535:
        raise ValueError(value)
    return low, high


def _port(value: str, family: str) -> str:
    low, high = port_range(value)
    return str(low) if low == high else "%d:%d" % (low, high)


def port_ranges(value: str) -> t.List[t.Tuple[int, int]]:
    """First and last ports of a multiport list such as C(80,8000:8010)."""
    return [port_range(part) for part in value.split(",")]


def _ports(value: str, family: str) -> str:
    return ",".join([_port(part, family) for part in value.split(",")])


def _choices(*order: str) -> t.Callable[[str, str], str]:
    """A comma list of known words, printed by iptables in the order given here."""

    def normaliser(value: str, family: str) -> str:
        words = value.upper().split(",")
        if not set(words) <= set(order):
            raise ValueError(value)
        return ",".join([word for word in order if word in words])

    return normaliser


_CTSTATES = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")
_CTSTATUS = ("EXPECTED", "SEEN_REPLY", "ASSURED", "CONFIRMED")
_ADDRESS_TYPES = (
    "UNSPEC",
    "UNICAST",
    "LOCAL",
    "BROADCAST",
    "ANYCAST",
    "MULTICAST",
    "BLACKHOLE",
    "UNREACHABLE",
    "PROHIBIT",
    "THROW",
    "NAT",
    "XRESOLVE",
)
_TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")


def _tcp_flags(value: str, family: str) -> str:
    def flags(word: str) -> str:
        names = {"ALL": ",".join(_TCP_FLAGS), "NONE": ""}.get(word.upper(), word.upper())
        given = [name for name in names.split(",") if name]
        if not set(given) <= set(_TCP_FLAGS):
            raise ValueError(value)
        return ",".join([name for name in _TCP_FLAGS if name in given]) or "NONE"

    mask, compare = value.split(" ")
    return "%s %s" % (flags(mask), flags(compare))


def _set_name(value: str, family: str) -> str:
    name, flags = value.split(" ")
    if not name or not flags or not set(flags.split(",")) <= {"src", "dst"}:
        raise ValueError(value)
    return value


def _mark(value: str, family: str) -> str:
    mark, _slash, mask = value.partition("/")
    text = "0x%x" % int(mark, 0)
    return text if not mask or int(mask, 0) == 0xFFFFFFFF else "%s/0x%x" % (text, int(mask, 0))


_RATE_UNITS = (("sec", 1), ("min", 60), ("hour", 3600), ("day", 86400))
_RATE_WORDS = {"sec": "second", "min": "minute", "hour": "hour", "day": "day"}
_RATE_SCALE = 10000


def _rate(value: str, family: str) -> str:
    """A rate as iptables prints it: the kernel keeps the time between two packets, in ten-thousandths of a second."""
    count, _slash, unit = value.partition("/")
    seconds = [length for name, length in _RATE_UNITS if _RATE_WORDS[name].startswith(unit.lower() or "s")]
    if not seconds or not 0 < int(count) <= _RATE_SCALE * seconds[0]:
        raise ValueError(value)
    period = _RATE_SCALE * seconds[0] // int(count)
    # The largest unit that says it well enough (print_rate in libxt_limit.c, which starts with days).
    chosen, length = _RATE_UNITS[-1]
    for name, candidate in _RATE_UNITS[-2::-1]:
        whole = _RATE_SCALE * candidate
        if period > whole or whole // period < whole % period:
            break
        chosen, length = name, candidate
    return "%d/%s" % (_RATE_SCALE * length // period, chosen)


_LOG_LEVELS = {"emerg": 0, "alert": 1, "crit": 2, "error": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7}


def _log_level(value: str, family: str) -> str:
    return str(_LOG_LEVELS[value] if value in _LOG_LEVELS else int(value))


_REJECTS = {
    IPV4: {
        "net-unreach": "icmp-net-unreachable",
        "host-unreach": "icmp-host-unreachable",
        "proto-unreach": "icmp-proto-unreachable",
        "port-unreach": "icmp-port-unreachable",
        "net-prohib": "icmp-net-prohibited",
        "host-prohib": "icmp-host-prohibited",
        "admin-prohib": "icmp-admin-prohibited",
        "tcp-rst": "tcp-reset",
    },
    IPV6: {
        "no-route": "icmp6-no-route",
        "adm-prohibited": "icmp6-adm-prohibited",
        "addr-unreach": "icmp6-addr-unreachable",
        "port-unreach": "icmp6-port-unreachable",
    },
}
DEFAULT_REJECT = {IPV4: "icmp-port-unreachable", IPV6: "icmp6-port-unreachable"}


def _reject(value: str, family: str) -> str:
    return _REJECTS[family].get(value, value)


# The table -----------------------------------------------------------------------------------------------------------

Normaliser = t.Callable[[str, str], str]


class FieldSpec(t.NamedTuple):
    """How one option of iptables is read and written.

    ``context`` is the match or target that the option belongs to (C("") for options of iptables itself), ``arity`` the
    number of words that follow it, ``order`` its place among the options of its context as iptables prints them.
    """

    name: str
    context: str
    option: str
    arity: int
    normalise: Normaliser
    order: int


def _table() -> t.Dict[t.Tuple[str, str], FieldSpec]:
    table: t.Dict[t.Tuple[str, str], FieldSpec] = {}

    def add(context: str, *options: t.Tuple[str, str, int, Normaliser]) -> None:
        for order, (option, name, arity, normaliser) in enumerate(options):
            spec = FieldSpec(name, context, option, arity, normaliser, order)
            table[context, option] = spec

    add(
        "",
        ("-s", "source", 1, network),
        ("-d", "destination", 1, network),
        ("-i", "in_interface", 1, _as_is),
        ("-o", "out_interface", 1, _as_is),
        ("-p", "protocol", 1, _protocol),
        ("-f", "fragment", 0, _as_is),
        ("-m", "match", 1, _as_is),
        ("-j", "jump", 1, _as_is),
        ("-g", "goto", 1, _as_is),
    )
    for protocol in ("tcp", "udp", "sctp", "dccp", "udplite"):
        add(protocol, ("--sport", "source_port", 1, _port), ("--dport", "destination_port", 1, _port))
    table["tcp", "--tcp-flags"] = FieldSpec("tcp_flags", "tcp", "--tcp-flags", 2, _tcp_flags, 3)
    add(
        "multiport",
        ("--sports", "source_ports", 1, _ports),
        ("--dports", "destination_ports", 1, _ports),
        ("--ports", "ports", 1, _ports),
    )
    add("icmp", ("--icmp-type", "icmp_type", 1, _as_is))
    add("icmp6", ("--icmpv6-type", "icmpv6_type", 1, _as_is))
    add(
        "conntrack",
        ("--ctstate", "ctstate", 1, _choices(*_CTSTATES)),
        ("--ctproto", "ctproto", 1, _conntrack_protocol),
        ("--ctorigsrc", "ctorigsrc", 1, _conntrack_address),
        ("--ctorigdst", "ctorigdst", 1, _conntrack_address),
        ("--ctreplsrc", "ctreplsrc", 1, _conntrack_address),
        ("--ctrepldst", "ctrepldst", 1, _conntrack_address),
        ("--ctorigsrcport", "ctorigsrcport", 1, _port),
        ("--ctorigdstport", "ctorigdstport", 1, _port),
        ("--ctreplsrcport", "ctreplsrcport", 1, _port),
        ("--ctrepldstport", "ctrepldstport", 1, _port),
        ("--ctstatus", "ctstatus", 1, _choices("NONE", *_CTSTATUS)),
        ("--ctexpire", "ctexpire", 1, _as_is),
        ("--ctdir", "ctdir", 1, _choices("ORIGINAL", "REPLY")),
    )
    add("state", ("--state", "state", 1, _choices("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED")))
    add(
        "addrtype",
        ("--src-type", "source_type", 1, _choices(*_ADDRESS_TYPES)),
        ("--dst-type", "destination_type", 1, _choices(*_ADDRESS_TYPES)),
        ("--limit-iface-in", "limit_interface_in", 0, _as_is),
        ("--limit-iface-out", "limit_interface_out", 0, _as_is),
    )
    add("iprange", ("--src-range", "source_range", 1, _as_is), ("--dst-range", "destination_range", 1, _as_is))
    add("set", ("--match-set", "match_set", 2, _set_name))
    add("mark", ("--mark", "mark", 1, _mark))
    add("connmark", ("--mark", "connmark", 1, _mark))
    add("comment", ("--comment", "comment", 1, _string))
    add(
        "physdev",
        ("--physdev-is-in", "physdev_is_in", 0, _as_is),
        ("--physdev-in", "physdev_in", 1, _as_is),
        ("--physdev-is-out", "physdev_is_out", 0, _as_is),
        ("--physdev-out", "physdev_out", 1, _as_is),
        ("--physdev-is-bridged", "physdev_is_bridged", 0, _as_is),
    )
    add(
        "owner",
        ("--socket-exists", "socket_exists", 0, _as_is),
        ("--uid-owner", "uid_owner", 1, _as_is),
        ("--gid-owner", "gid_owner", 1, _as_is),
    )
    add("limit", ("--limit", "limit", 1, _rate), ("--limit-burst", "limit_burst", 1, _number))
    add("REJECT", ("--reject-with", "reject_with", 1, _reject))
    add("LOG", ("--log-prefix", "log_prefix", 1, _string), ("--log-level", "log_level", 1, _log_level))
    add("DNAT", ("--to-destination", "to_destination", 1, _as_is))
    add("SNAT", ("--to-source", "to_source", 1, _as_is))
    add("MASQUERADE", ("--to-ports", "to_ports", 1, _as_is))
    add("REDIRECT", ("--to-ports", "to_ports", 1, _as_is))
    add("MARK", ("--set-xmark", "set_xmark", 1, _as_is))
    return table


FIELDS: t.Dict[t.Tuple[str, str], FieldSpec] = _table()

# Options of modules outside the table whose one value is free text. They are opaque, but their value must not be taken
# for an option: `--string -j --algo bm` is legal and printed without quotes.
_TEXT_OPTIONS = frozenset(
    (
        "--string",
        "--hex-string",
        "--nflog-prefix",
        "--name",
        "--hashlimit-name",
        "--helper",
        "--label",
        "--path",
        "--nfacct-name",
        "--genre",
        "--led-trigger-id",
        "--rateest-name",
        "--rateest1",
        "--rateest2",
        "--u32",
        "--timer",
        "--del-set",
        "--add-set",
        "--map-set",
        "--bytecode",
        "--object-pinned",
        "--ulog-prefix",
        "--log-prefix",
        "--comment",
    )
)

# A match outside the table is opaque even where it has no options (`-m socket`), as it decides too.
_CONTEXTS = frozenset(context for context, _option in FIELDS)

_SPECS_BY_NAME: t.Dict[str, FieldSpec] = {}
_SPECS_BY_CONTEXT: t.Dict[t.Tuple[str, str], FieldSpec] = {}
for _spec in FIELDS.values():
    _SPECS_BY_NAME.setdefault(_spec.name, _spec)
    _SPECS_BY_CONTEXT[_spec.context, _spec.name] = _spec


# Parse ---------------------------------------------------------------------------------------------------------------


def _is_option(word: str) -> bool:
    return len(word) > 1 and word[0] == "-" and (word[1].isalpha() or (word[1] == "-" and len(word) > 2))


#: Between one option of a printed rule and the next, where neither has words that look like options.
_UNITS = re.compile(r"(?<!!) (?=(?:! )?-(?:[A-Za-z]|-[^ ]))")


class _Place:
    """Where a parser is in a rule, which decides what options mean: in a match or target, and behind a protocol.

    ``moves`` are the options met here so far: what each says, and where it leads.
    """

    __slots__ = ("context", "moves", "protocol")

    def __init__(self, context: str, protocol: str) -> None:
        self.context = context
        self.protocol = protocol
        self.moves: t.Dict[str, t.Tuple[Field, _Place]] = {}

    def spec(self, option: str) -> t.Optional[FieldSpec]:
        return FIELDS.get((self.context, option)) or FIELDS.get(("", option)) or FIELDS.get((self.protocol, option))


class _Memory:
    """What parsers of one family met: rules come again in each dump, options of theirs in each table."""

    def __init__(self) -> None:
        self.places: t.Dict[t.Tuple[str, str], _Place] = {("", ""): _Place("", "")}
        self.start = self.places["", ""]
        self.rules: t.Dict[str, Rule] = {}
        self.size = 0

    def place(self, context: str, protocol: str) -> _Place:
        found = self.places.get((context, protocol))
        if found is None:
            found = self.places[context, protocol] = _Place(context, protocol)
        return found


#: Rules and options that are remembered before all are forgotten: a process that lives long meets ever new ones.
_MOST_REMEMBERED = 65536
_MEMORIES: t.Dict[str, _Memory] = {}


def _memory(family: str) -> _Memory:
    found = _MEMORIES.get(family)
    if found is None or found.size > _MOST_REMEMBERED:
        found = _MEMORIES[family] = _Memory()
    return found


class Parser:
    """Parses rules of one family; rules and fields that recur are made once."""

    def __init__(self, family: str = IPV4) -> None:
        self.family = family
        self._memory = _memory(family)

    def parse(self, text: str, counters: t.Optional[t.Tuple[int, int]] = None) -> Rule:
        """The rule printed as ``text``, which is what follows C(-A CHAIN). Never fails: see :data:`OPAQUE`."""
        memory = self._memory
        rule = memory.rules.get(text)
        if rule is None:
            if memory.size > _MOST_REMEMBERED:
                memory = self._memory = _memory(self.family)
            fields = self._simple(text)
            rule = self._any(text) if fields is None else Rule(fields)
            memory.rules[text] = rule
            memory.size += 1
        return rule if counters is None else Rule(rule.fields, counters)

    def _simple(self, text: str) -> t.Optional[t.Tuple[Field, ...]]:
        """The fields of a rule whose options are all known and spelt as usual; None for any other."""
        place = self._memory.start
        fields: t.List[Field] = []
        for unit in _UNITS.split(text):
            move = place.moves.get(unit)
            if move is None:
                field = self._known_field(place, unit)
                if field is None:
                    return None
                context, protocol = place.context, place.protocol
                if field.name in ("match", "jump", "goto"):
                    context = field.value
                elif field.name == "protocol" and not field.negated:
                    protocol = field.value
                move = place.moves[unit] = (field, self._memory.place(context, protocol))
                self._memory.size += 1
            fields.append(move[0])
            place = move[1]
        return tuple(fields)

    def _known_field(self, place: _Place, unit: str) -> t.Optional[Field]:
        """The field of one option with its values, if it is in the table and nothing in its text needs a closer look.

        What is taken here is read the same way whatever stands around it: quotes are closed in it, no blank is part of
        a word without them, and the option has as many values as it takes.
        """
        head, quote_mark, quoted = unit.partition('"')
        if quote_mark and (
            head[-1:] != " " or quoted[-1:] != '"' or quoted.find('"') != len(quoted) - 1 or "\\" in quoted
        ):
            return None
        words = head.split(" ")
        if quote_mark:
            words[-1] = '"' + quoted
        negated = words[0] == "!"
        spec = place.spec(words[1]) if negated and len(words) > 1 else place.spec(words[0])
        if spec is None or "" in words or len(words) != spec.arity + (2 if negated else 1):
            return None
        field = self._field(spec, words, unit, negated)
        return None if field.name == OPAQUE else field

    def _any(self, text: str) -> Rule:
        words = text.split(" ") if '"' not in text else [match.group(0) for match in _WORD.finditer(text)]
        if '"' in text:
            # finditer keeps the blanks in front of each word: one of them separates, the others belong to the word.
            words = [word[1:] if index and word[0] == " " else word for index, word in enumerate(words)]
            if " ".join(words) != text:
                return Rule((Field(OPAQUE, text, False, text),))
        fields: t.List[Field] = []
        place = self._memory.start
        index, count = 0, len(words)
        while index < count:
            start = index
            negated = words[index] == "!"
            if negated and index + 1 < count:
                index += 1
            option = words[index]
            spec = place.spec(option)
            index += 1
            if spec is not None:
                index += spec.arity
            elif option in _TEXT_OPTIONS:
                index += 1
            # Words left over before the next option belong to this one; a known field cannot have any.
            end = index
            while end < count and not (_is_option(words[end]) or words[end] == "!"):
                end += 1
            if spec is not None and (end != index or end > count):
                spec = None
            index = min(end, count)
            unit = words[start:index]
            field = self._field(spec, unit, " ".join(unit), negated)
            fields.append(field)
            if field.name in ("match", "jump", "goto"):
                place = self._memory.place(field.value, place.protocol)
            elif field.name == OPAQUE and option == "-m":
                place = self._memory.place("", place.protocol)
            elif field.name == "protocol" and not negated:
                place = self._memory.place(place.context, field.value)
        return Rule(tuple(fields))

    def _field(self, spec: t.Optional[FieldSpec], words: t.List[str], text: str, negated: bool) -> Field:
        value = " ".join(words[2:] if negated else words[1:])
        if spec is not None and not (spec.name == "match" and value not in _CONTEXTS):
            try:
                normal = spec.normalise(value, self.family) if spec.arity else ""
            except (ValueError, KeyError):
                pass
            else:
                return Field(spec.name, normal, negated, text)
        return Field(OPAQUE, text, negated, text)


def parse(text: str, family: str = IPV4) -> Rule:
    """The rule printed as ``text`` (what follows C(-A CHAIN)). Never fails: what is not known is carried as it is."""
    return Parser(family).parse(text)


# Build and normalise -------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8192)
def field(name: str, value: str = "", negated: bool = False, family: str = IPV4) -> Field:
    """A field of the table, with the text that iptables prints for it.

    :raises ValueError: the value is none of this field.
    """
    spec = _SPECS_BY_NAME[name]
    normal = spec.normalise(value if spec.normalise is not _string else quote(value), family) if spec.arity else ""
    return Field(name, normal, negated, _text(spec.option, spec, normal, negated))


def _text(option: str, spec: FieldSpec, normal: str, negated: bool) -> str:
    words = [option]
    if spec.arity:
        words.append(quote(normal) if spec.normalise is _string else normal)
    return ("! " if negated else "") + " ".join(words)


def _says_nothing(item: Field, context: str = "") -> bool:
    """True for a field that iptables does not print, since it matches everything or is the default."""
    if item.name in ("source", "destination"):
        return not item.negated and item.value in ("0.0.0.0/0", "::/0")
    if item.name == "protocol":
        return not item.negated and item.value == "all"
    if item.name in ("source_port", "destination_port"):
        # sctp and dccp print it.
        return not item.negated and item.value == "0:65535" and context in ("tcp", "udp")
    if item.name in ("in_interface", "out_interface"):
        return not item.negated and item.value == "+"
    if item.name == "limit_burst":
        return item.value == "5"
    return item.name == "log_level" and item.value == "4"


_PORT_FIELDS = ("source_port", "destination_port", "tcp_flags")


def normalise(rule: Rule, family: str = IPV4) -> Rule:
    """The rule as the kernel's tools would print it, as far as the table of fields knows; opaque fields stay verbatim.

    Idempotent. Counters are dropped, as they are no part of what a rule says.
    """
    head: t.List[Field] = []
    groups: t.List[t.List[Field]] = []  # one per match, the target's last
    context = ""
    for item in rule.fields:
        if item.name in ("source", "destination", "in_interface", "out_interface", "protocol", "fragment"):
            if not _says_nothing(item):
                head.append(_retext(item, "", family))
            continue
        if item.name in ("match", "jump", "goto"):
            context = item.value
            groups.append([item])
            continue
        if item.name in _PORT_FIELDS and context not in ("tcp", "udp", "sctp", "dccp", "udplite"):
            # `-p tcp --dport 80` loads the match of the protocol by itself, and prints it.
            protocol = next((known.value for known in rule.fields if known.name == "protocol"), "tcp")
            context = protocol
            groups.append([field("match", protocol)])
        if not groups:
            groups.append([])
        if not _says_nothing(item, context):
            groups[-1].append(_retext(item, context, family))
    head.sort(key=lambda item: _SPECS_BY_NAME[item.name].order)
    fields = head
    for group in groups:
        first, rest = group[:1], group[1:]
        if all(item.name != OPAQUE for item in rest):
            rest = sorted(rest, key=lambda item: _SPECS_BY_NAME[item.name].order)
        fields = fields + first + rest
    target = groups[-1][0] if groups and groups[-1] else None
    if target is not None and target.name == "jump" and target.value == "REJECT" and len(groups[-1]) == 1:
        fields.append(field("reject_with", DEFAULT_REJECT[family], family=family))
    return Rule(tuple(fields))


@functools.lru_cache(maxsize=8192)
def _retext(item: Field, context: str, family: str) -> Field:
    if item.name == OPAQUE:
        return item
    spec = _SPECS_BY_CONTEXT.get((context, item.name)) or _SPECS_BY_NAME[item.name]
    normal = item.value
    if spec.name == "reject_with":
        normal = _reject(normal, family)
    return Field(item.name, normal, item.negated, _text(spec.option, spec, normal, item.negated))
