# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Who reaches what, and why: a person's question about a host, answered from its snapshot in one plain sentence."""

from __future__ import annotations

import functools
import ipaddress
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._passage import names_port
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Endpoint, Published, is_dockers
from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    DEFAULT_CHAIN,
    DENYING,
    GUARD_COMMENT,
    is_default,
    mark_of,
)
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    Intervals,
    covers,
    join,
    of_network,
    overlaps,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Rule, parse
from ansible_collections.quaywall.docker.plugins.module_utils._trace import (
    BLOCKED,
    CLIENT_PORTS,
    DELIVERED,
    POSSIBLE,
    Decided,
    End,
    Start,
    Step,
    Tracer,
    address_text,
    with_port,
)

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Container
    from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import Snapshot

HOST = "host"
_MOST_NAMED = 8
_FAMILY_TEXTS = {IPV4: "IPv4", IPV6: "IPv6"}


class TraceError(ValueError):
    """A question that makes no sense on this host, as one sentence."""


class Question(t.NamedTuple):
    """What is asked. ``source`` and ``destination`` are addresses or containers; C(host) is the host itself."""

    source: str
    destination: str = ""
    port: int = 0
    protocol: str = "tcp"
    in_interface: str = ""
    source_port: int = 0


class Answer(t.NamedTuple):
    """What becomes of a connection. ``container`` is the one that it gets to, or would have got to."""

    question: Question
    verdict: str
    sentence: str
    advice: str
    reasons: t.Tuple[str, ...]
    decided: t.Optional[Decided]
    steps: t.Tuple[Step, ...]
    container: t.Optional[Endpoint]
    container_port: int
    family: str
    destination: str
    reply: bool
    fuzzy: bool


class _Target(t.NamedTuple):
    family: str
    number: int
    port: int
    #: Where the question named a container: what is sent to, in words.
    note: str = ""


class Judge:
    """Answers questions about one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.tracer = Tracer(snapshot)
        self.survey = self.tracer.survey
        self._own_numbers: t.Dict[str, t.Optional[int]] = {}
        self._outside_starts: t.Dict[t.Tuple[str, str, str], t.List[Start]] = {}

    # One question

    def answer(self, question: Question) -> Answer:
        """What becomes of one connection.

        :raises TraceError: it makes no sense on this host.
        """
        self._checked(question)
        target = self._target(question)
        starts = self._starts(question, target)
        ends = [end for start in starts for end in self._ends(start, target, question)]
        clients = join(piece for start in starts for piece in start.region)
        return self._answer(question, target, ends, clients, starts)

    def _ends(self, start: Start, target: _Target, question: Question) -> t.List[End]:
        ports = (question.source_port,) * 2 if question.source_port else CLIENT_PORTS
        protocol = question.protocol
        if protocol == "icmp" and target.family == IPV6:
            protocol = "ipv6-icmp"
        return self.tracer.ends(start, target.number, target.port, protocol, ports)

    def _checked(self, question: Question) -> None:
        if not question.source.strip():
            raise TraceError("source is empty: name an address, a network, a container, or host for the host itself.")
        if question.protocol == "icmp":
            if question.port:
                raise TraceError("port: icmp has no ports; leave it out, or choose protocol tcp, udp or sctp.")
        elif not 1 <= question.port <= 65535:
            raise TraceError("port: %d is none; give one between 1 and 65535." % question.port)
        if not question.in_interface:
            return
        names = [item.name for item in self.snapshot.interfaces]
        if names and question.in_interface not in names:
            raise TraceError(
                "in_interface: the host has no interface %s; it has %s."
                % (question.in_interface, ", ".join(names[:_MOST_NAMED]))
            )

    # Ends of a connection

    def _container(self, where: str, name: str) -> t.Optional[Container]:
        """The container of that name; None if the text is none's."""
        container = self.survey.inventory.container(name)
        if container is None:
            return None
        if not container.running:
            raise TraceError("%s: the container %s does not run, so it has no address." % (where, container.name))
        return container

    def _nobody(self, where: str, text: str) -> TraceError:
        if self.snapshot.inventory is None:
            return TraceError(
                "%s: %r is no address, and the snapshot does not know the host's containers." % (where, text)
            )
        names = [container.name for container in self.survey.running]
        listed = ", ".join(names[:_MOST_NAMED]) + (" and %d more" % (len(names) - 8) if len(names) > 8 else "")
        return TraceError(
            "%s: %r is neither an address nor a container; the containers that run are %s."
            % (where, text, listed or "none")
        )

    def _endpoints(self, container: Container, family: str = "") -> t.List[Endpoint]:
        return [
            endpoint
            for name in (IPV4, IPV6)
            if family in ("", name)
            for endpoint in self.survey.family(name).endpoints
            if endpoint.container.id == container.id
        ]

    def _target(self, question: Question) -> _Target:
        text = question.destination.strip()
        family = self._family_of(question.source)
        if not text or text == HOST:
            return self._own(question, family)
        address = _parsed(text)
        if address is not None:
            found = IPV6 if address.version == 6 else IPV4
            if family and family != found:
                raise TraceError(
                    "destination: %s is %s and source %s is %s; name two of one family."
                    % (text, _FAMILY_TEXTS[found], question.source, _FAMILY_TEXTS[family])
                )
            self._reachable(question, text, found, int(address))
            return _Target(found, int(address), question.port)
        container = self._container("destination", text)
        if container is None:
            raise self._nobody("destination", text)
        return self._of_container(question, container, family)

    def _own(self, question: Question, family: str) -> _Target:
        for wanted in (IPV4, IPV6):
            if family in ("", wanted):
                if wanted not in self._own_numbers:
                    self._own_numbers[wanted] = self._own_number(wanted)
                number = self._own_numbers[wanted]
                if number is not None:
                    return _Target(wanted, number, question.port)
        raise TraceError(
            "destination: the snapshot has no %s address of the host; give the address that is asked for."
            % _FAMILY_TEXTS.get(family, "")
        )

    def _own_number(self, family: str) -> t.Optional[int]:
        """The host's address that others connect to: of the first interface that leads outside, else of any."""
        names = [*self.survey.outside, *(item.name for item in self.snapshot.interfaces)]
        found = (self.tracer.address_of(family, name) for name in dict.fromkeys(names) if name != "lo")
        return next((number for number in found if number is not None), None)

    def _reachable(self, question: Question, text: str, family: str, number: int) -> None:
        """Raise unless the address is the host's or a container's, or somebody inside asks for one outside."""
        if self.tracer.routes[family].local(number) or number in self.survey.family(family).endpoints_by_number:
            return
        if not self.snapshot.interfaces:
            return
        if overlaps(self.survey.family(family).subnets, ((number, number),)):
            raise TraceError("destination: no container that runs has %s." % text)
        source = _parsed(question.source)
        routes = self.tracer.routes[family]
        inside = source is None or str(source) in self.survey.owners or routes.local(int(source))
        if not inside and "/" not in question.source and self._same_side(question, family, int(source or 0), number):
            own = sorted(
                address.partition("/")[0]
                for item in self.snapshot.interfaces
                for address in item.addresses
                if item.name != "lo" and (":" in address) == (family == IPV6)
            )
            raise TraceError(
                "destination: %s is neither an address of this host nor of one of its containers; the host has %s."
                % (text, ", ".join(own[:_MOST_NAMED]) or "none of that family")
            )

    def _same_side(self, question: Question, family: str, source: int, number: int) -> bool:
        """True if a packet between these two has no reason to come by this host."""
        routes = self.tracer.routes[family]
        there, here = routes.to(number)[0], routes.to(source)[0]
        if there is None or there.interface == "":
            return not question.in_interface
        return there.interface == (question.in_interface or (here.interface if here is not None else ""))

    def _of_container(self, question: Question, container: Container, family: str) -> _Target:
        """A container by name: by the port that it publishes, as clients do, or its own address from inside."""
        own = self._endpoints(container, family)
        source = None if _parsed(question.source) else self.survey.inventory.container(question.source)
        if source is None and question.source != HOST:
            for wanted in (IPV4, IPV6):
                if family in ("", wanted):
                    published = self._published(container, question, wanted)
                    if published is not None:
                        host = self._published_address(question, published, wanted)
                        note = "%s publishes port %d of the host" % (container.name, published.binding.host_port)
                        return _Target(wanted, host, published.binding.host_port, note)
        if source is not None:
            bridges = {endpoint.bridge for endpoint in self._endpoints(source)}
            own = [item for item in own if item.bridge in bridges] + own
        if container.network_mode == "host":
            return self._own(question, family)
        if not own:
            raise TraceError(
                "destination: the container %s has no address%s on a network of Docker's."
                % (container.name, " of %s" % _FAMILY_TEXTS[family] if family else "")
            )
        return _Target(own[0].family, own[0].number, question.port)

    def _published(self, container: Container, question: Question, family: str) -> t.Optional[Published]:
        found = [
            item
            for item in self.survey.family(family).published
            if item.container.id == container.id
            and item.binding.protocol == question.protocol
            and not item.loopback
            and not item.routed
        ]
        for port in ("host_port", "container_port"):
            for item in found:
                if getattr(item.binding, port) == question.port:
                    return item
        return None

    def _published_address(self, question: Question, published: Published, family: str) -> int:
        address = published.binding.host_address
        if address in ("", "0.0.0.0", "::"):
            return self._own(question, family).number
        return of_network(address)[0][0]

    def _family_of(self, source: str) -> str:
        """The family that a source has; empty where it may be either."""
        address = _parsed(source)
        return "" if address is None else IPV6 if address.version == 6 else IPV4

    def _starts(self, question: Question, target: _Target) -> t.List[Start]:
        """Where a source's packets come from; a network may come in by several interfaces."""
        text, family = question.source.strip(), target.family
        address = _parsed(text)
        if address is None:
            container = self._container("source", text)
            if container is None and text == HOST:
                return [self._of_host(family, target.number)]
            if container is None:
                raise self._nobody("source", text)
            if container.network_mode == "host":
                return [self._of_host(family, target.number)]
            return [self._of_endpoint(container, target)]
        key = (text, family, question.in_interface)
        if key not in self._outside_starts:
            self._outside_starts[key] = self._of_addresses(question, family)
        return self._outside_starts[key]

    def _of_addresses(self, question: Question, family: str) -> t.List[Start]:
        routes = self.tracer.routes[family]
        region = of_network(question.source.strip())
        if len(region) == 1 and region[0][0] == region[0][1]:
            number = region[0][0]
            if routes.local(number) and question.in_interface in ("", "lo"):
                return [Start(family, region, "", True, "")]
            endpoint = self.survey.family(family).endpoints_by_number.get(number)
            if endpoint is not None and endpoint.bridge and not question.in_interface:
                return [Start(family, region, endpoint.bridge, False, endpoint.bridge)]
        found: t.List[Start] = []
        for route, part in routes.split(region):
            interface = route.interface if route is not None else ""
            back = interface if interface != "lo" else ""
            way = question.in_interface or back
            reasons: t.Tuple[str, ...] = ()
            if not way:
                way, reasons = self.survey.outside[0], ("the interface that it comes in by: give in_interface",)
            found.append(Start(family, part, way, False, back or way, reasons))
        return found

    def _of_host(self, family: str, destination: int) -> Start:
        own = self.tracer.own_address(family, destination)
        if own is None:
            raise TraceError("source: the host has no %s address to send from." % _FAMILY_TEXTS[family])
        return Start(family, ((own, own),), "", True, "")

    def _of_endpoint(self, container: Container, target: _Target) -> Start:
        own = self._endpoints(container, target.family)
        if not own:
            raise TraceError(
                "source: the container %s has no %s address on a network of Docker's."
                % (container.name, _FAMILY_TEXTS[target.family])
            )
        reached = self.survey.family(target.family).endpoints_by_number.get(target.number)
        same = [item for item in own if reached is not None and item.bridge == reached.bridge]
        chosen = (same or own)[0]
        if not chosen.bridge:
            raise TraceError(
                "source: the container %s is on the network %s, whose packets do not pass this host's rules."
                % (container.name, chosen.network)
            )
        reasons = () if same or len(own) == 1 else ("which of its networks the container sends by",)
        number = ((chosen.number, chosen.number),)
        return Start(target.family, number, chosen.bridge, False, chosen.bridge, reasons)

    # The answer

    def _answer(
        self,
        question: Question,
        target: _Target,
        ends: t.Sequence[End],
        clients: Intervals,
        starts: t.Sequence[Start],
        brief: t.Optional[t.Dict[t.Any, str]] = None,
    ) -> Answer:
        verdict, reasons, end = judged(ends, clients)
        endpoint = self.tracer.endpoint(end) if end.kind != "host" else None
        inside = endpoint is not None
        words = _Words(self, question, target, end, endpoint, starts)
        if brief is None:
            sentence, advice = words.sentence(verdict, reasons)
        else:
            # What a cell says does not name its source, so it is said once.
            key = (id(end.steps), end.kind, verdict, reasons, starts[0].local)
            if key not in brief:
                brief[key] = words.sentence(verdict, reasons, advise=False)[0]
            sentence, advice = brief[key], ""
        steps = end.steps
        sent = "%s to %s" % (question.source, with_port(address_text(target.family, target.number), target.port))
        origin = starts[0]
        how = "from the host itself" if origin.local else "in by %s" % origin.in_interface
        first = Step(
            "start", "%s from %s, %s%s" % (question.protocol, sent, how, "; " + target.note if target.note else "")
        )
        return Answer(
            question,
            verdict,
            sentence,
            advice,
            reasons,
            end.decided,
            (first, *steps),
            endpoint,
            end.port if inside else 0,
            end.family,
            address_text(target.family, target.number),
            end.reply and not end.delivered,
            end.fuzzy,
        )

    # Tables

    def table(
        self,
        sources: t.Sequence[str],
        ports: t.Sequence[t.Tuple[str, int]] = (),
        destination: str = "",
        in_interface: str = "",
    ) -> t.List[Answer]:
        """Who reaches what: for each port (default: every published one) an answer to each source.

        All sources that come in by one interface are walked at once.
        """
        asked: t.List[t.Tuple[str, str, int]] = [(destination, protocol, port) for protocol, port in ports]
        if not asked:
            asked = self._all_published(destination)
        found: t.List[Answer] = []
        # All that is one group but for its addresses.
        alike: t.Dict[int, t.Tuple[t.List[Start], t.List[Start], Intervals]] = {}
        for where, protocol, port in asked:
            said: t.Dict[t.Any, str] = {}
            prepared: t.List[t.Tuple[Question, _Target, t.List[Start], t.List[Start], Intervals]] = []
            groups: t.Dict[t.Tuple[_Target, Start], t.List[Intervals]] = {}
            known = _parsed(where) if where else None
            for source in sources:
                question = Question(source, where, port, protocol, in_interface)
                self._checked(question)
                address = _parsed(source)
                if address is not None and known is not None and address.version != known.version:
                    continue
                target = self._target(question)
                starts = self._starts(question, target)
                if id(starts) not in alike:
                    clients = join(piece for start in starts for piece in start.region)
                    alike[id(starts)] = starts, [start._replace(region=()) for start in starts], clients
                starts, keys, clients = alike[id(starts)]
                prepared.append((question, target, starts, keys, clients))
                for start, key in zip(starts, keys):
                    groups.setdefault((target, key), []).append(start.region)
            ends: t.Dict[t.Tuple[_Target, Start], t.List[End]] = {}
            for (target, start), regions in groups.items():
                region = join(piece for one in regions for piece in one)
                asking = Question("", where, port, protocol)
                ends[target, start] = self._ends(start._replace(region=region), target, asking)
            for question, target, starts, keys, clients in prepared:
                own = [end for key in keys for end in ends[target, key]]
                found.append(self._answer(question, target, own, clients, starts, said))
        return found

    def _all_published(self, destination: str) -> t.List[t.Tuple[str, str, int]]:
        asked: t.Dict[t.Tuple[str, str, int], None] = {}
        for family in self.survey.families:
            for item in family.published:
                if item.loopback:
                    continue
                where = destination
                if item.routed and item.endpoint is not None:
                    where = item.endpoint.address
                elif not where and item.binding.host_address not in ("", "0.0.0.0", "::"):
                    where = item.binding.host_address
                asked[where, item.binding.protocol, item.binding.host_port] = None
        if not asked:
            raise TraceError("ports: no container that runs publishes a port; name the ports to ask for.")
        return list(asked)


def judged(ends: t.Sequence[End], clients: Intervals) -> t.Tuple[str, t.Tuple[str, ...], End]:
    """The verdict about some clients, what it hangs on, and the end that tells it best."""
    own = [end for end in ends if overlaps(end.clients, clients)]
    delivered = [end for end in own if end.delivered]
    blocked = [end for end in own if not end.delivered]
    if not blocked:
        return DELIVERED, (), delivered[0]
    if not delivered:
        sure = [end for end in blocked if not end.reasons]
        chosen = (sure or blocked)[-1]
        fuzzy = chosen.fuzzy or len(blocked) > 1
        return BLOCKED, (), chosen._replace(fuzzy=fuzzy)
    reasons = tuple(dict.fromkeys(reason for end in own for reason in end.reasons))
    through = join(piece for end in delivered if not end.reasons for piece in end.clients)
    if not reasons or (through and not covers(through, clients)):
        reasons += ("which of the addresses it comes from",)
    return POSSIBLE, reasons, blocked[0]


# Words ---------------------------------------------------------------------------------------------------------------


class _Words:
    """One answer as a person says it."""

    def __init__(
        self,
        judge: Judge,
        question: Question,
        target: _Target,
        end: End,
        endpoint: t.Optional[Endpoint],
        starts: t.Sequence[Start],
    ) -> None:
        self._judge, self._question, self._target = judge, question, target
        self._end, self._endpoint, self._starts = end, endpoint, starts

    def sentence(self, verdict: str, reasons: t.Sequence[str], advise: bool = True) -> t.Tuple[str, str]:
        """The answer in one sentence, and what to do, which is the sentence's end."""
        if verdict == DELIVERED:
            text, advice = "Delivered: " + self._delivered() + self._never_read(DENYING), ""
        elif verdict == BLOCKED:
            text, advice = (
                "Blocked: " + self._blocked() + self._never_read(("ACCEPT",)),
                self._advice() if advise else "",
            )
        else:
            text = "Possible: it hangs on %s; if it is blocked, %s" % ("; ".join(reasons), self._blocked())
            advice = ""
        return text + ("; " + advice if advice else "") + ".", advice

    def _who(self) -> str:
        return self._judge.tracer.named(self._endpoint, self._end.port) if self._endpoint is not None else ""

    def _port(self) -> str:
        return "port %d" % self._question.port

    def _delivered(self) -> str:
        end = self._end
        by = ""
        if end.decided is not None:
            by = ", let in by %s" % self._rule(end.decided)
        if end.kind == "host":
            return "it reaches the host itself%s" % by
        if end.kind == "swarm":
            return "it reaches Swarm's routing mesh at %s%s" % (address_text(end.family, end.destination), by)
        if self._endpoint is None:
            return "it leaves the host for %s%s" % (address_text(end.family, end.destination), by)
        if end.proxied:
            return "docker-proxy takes it at port %d of the host and connects to %s itself%s" % (
                self._target.port,
                self._who(),
                by,
            )
        if end.translated is not None:
            return "Docker forwards port %d to %s%s" % (end.translated[1], self._who(), by)
        return "it reaches %s%s" % (self._who(), by)

    def _rule(self, decided: Decided) -> str:
        where = decided.chain
        if decided.table != "filter":
            where += " (table %s)" % decided.table
        if decided.variant == "nftables":
            where += " in Docker's nftables tables"
        elif decided.variant != self._judge.survey.family(decided.family).variant:
            where += " of the %s iptables" % decided.variant
        if not decided.position:
            return "the policy of %s" % where
        return "rule %d of %s%s" % (decided.position, where, self._ours(decided))

    @staticmethod
    def _ours(decided: Decided) -> str:
        """Which part of this collection's own rules it is; nothing for others."""
        rule = _rule(decided.rule, decided.family)
        mark = mark_of(rule)
        if mark is not None and mark.policy:
            return ", policy %s," % mark.policy
        return ", the policies' guard," if rule.comment == GUARD_COMMENT else ""

    @staticmethod
    def _is_default(decided: Decided) -> bool:
        return decided.chain == DEFAULT_CHAIN or is_default(_rule(decided.rule, decided.family))

    def _blocked(self) -> str:
        end = self._end
        if end.decided is None:
            last = end.steps[-1].text if end.steps else "nothing lets it in"
            if end.kind == "unserved":
                return last + self._offer()
            return last
        what = "its answer" if end.reply else "it"
        verb = "rejects" if " -j REJECT" in " " + end.decided.rule else "drops"
        text = "%s %s %s" % (self._rule(end.decided), verb, what)
        if self._is_default(end.decided):
            text = "no policy lets it in, so " + text
        if self._endpoint is None:
            return text
        if end.decided.family != self._target.family or end.proxied:
            return text + " on docker-proxy's own way to %s" % self._who()
        if end.translated is None:
            return text + " on the way to %s" % self._who()
        forwarded = "Docker forwards port %d to %s" % (end.translated[1], self._who())
        if end.reply or not end.decided.position:
            return "%s, although %s" % (text, forwarded)
        if end.port != end.translated[1] and names_port(_rule(end.decided.rule, end.decided.family), end.port):
            return "%s, because %s and %s sees the container's port %d" % (
                text,
                forwarded,
                end.decided.chain,
                end.port,
            )
        return "%s on the way to %s, to which Docker forwards port %d" % (text, self._who(), end.translated[1])

    def _offer(self) -> str:
        """Who has the port inside, where nothing is published at it."""
        port, protocol = self._question.port, self._question.protocol
        survey = self._judge.survey
        found = [
            "%s publishes its port %d as port %d" % (item.container.name, port, item.binding.host_port)
            for item in survey.family(self._target.family).published_by_container_port.get(port, ())
            if item.binding.protocol == protocol and not item.routed
        ]
        text = ": nothing is published there"
        if found:
            text += ", but " + " and ".join(found[:3])
        return text

    def _never_read(self, verdicts: t.Collection[str]) -> str:
        """The rule of INPUT that people wrote for this and that is not asked."""
        end = self._end
        if end.kind in ("host", "unserved") or end.translated is None or end.proxied or self._starts[0].local:
            return ""
        chain = self._judge.survey.family(self._target.family).filter.chains.get("INPUT")
        for position, rule in enumerate(chain.rules if chain is not None else (), 1):
            if rule.target not in verdicts or not self._about(rule):
                continue
            port = end.translated[1] if names_port(rule, end.translated[1]) else end.port
            if names_port(rule, port):
                verb = {"ACCEPT": "accepts", "REJECT": "rejects"}.get(rule.target or "", "drops")
                return "; rule %d of INPUT, which %s port %d, is never read, because this is forwarded" % (
                    position,
                    verb,
                    port,
                )
        return ""

    def _about(self, rule: Rule) -> bool:
        return rule.value("protocol") in (None, self._question.protocol)

    def _advice(self) -> str:
        end, decided = self._end, self._end.decided
        if decided is None:
            return {
                "unserved": "publish the port, or ask for the one that is published" if not self._offer() else "",
                "forwarding": "switch forwarding on",
            }.get(end.kind, "")
        rule = _rule(decided.rule, decided.family)
        mark = mark_of(rule)
        if mark is not None and mark.policy:
            return "to let it in, change the policy %s" % mark.policy
        if rule.comment == GUARD_COMMENT:
            return "to let it in, change the policies: the guard stops what they deny where DOCKER-USER does not"
        if end.reply:
            return "let answers pass first: the module docker_user_chain puts ESTABLISHED,RELATED above all else"
        if decided.table == "raw" and self._endpoint is not None:
            return "a container's own address is not for the outside: publish the port, and use the host's address"
        if is_dockers(decided.chain) or not decided.position:
            if decided.chain in ("INPUT", "OUTPUT"):
                return "to let it in, accept it in %s" % decided.chain
            if self._endpoint is not None:
                same = self._starts[0].in_interface in self._judge.survey.networks_by_bridge
                if same:
                    return "containers reach each other on a network that both are on"
                return "publish the container's port to let it in"
            return ""
        if self._endpoint is not None and decided.chain not in ("INPUT", "OUTPUT"):
            verb, end_words = ("add", "") if self._is_default(decided) else ("put", " in place of that rule")
            return (
                "to let it in, %s a policy for the container%s: docker_user_rule with container: %s, "
                "destination_port: [%d], source: [%s], action: accept"
                % (verb, end_words, self._endpoint.container.name, end.port, self._question.source)
            )
        return "to let it in, change that rule"


@functools.lru_cache(maxsize=4096)
def _rule(text: str, family: str) -> Rule:
    return parse(text, family)


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> t.Union[ipaddress.IPv4Address, ipaddress.IPv6Address, None]:
    """The address, or a network's first one; None for what is none."""
    try:
        return ipaddress.ip_network(text.strip(), strict=False).network_address
    except ValueError:
        return None


def rows(answers: t.Sequence[Answer]) -> t.List[str]:
    """A reachability table for people: a line for each port, a column for each source."""
    sources = list(dict.fromkeys(answer.question.source for answer in answers))
    lines: t.Dict[t.Tuple[str, int, str], t.Dict[str, str]] = {}
    for answer in answers:
        question = answer.question
        name = answer.container.container.name if answer.container is not None else ""
        words = {DELIVERED: "yes", BLOCKED: "no", POSSIBLE: "perhaps"}
        line = lines.setdefault((question.protocol, question.port, answer.destination), {})
        line[question.source] = words[answer.verdict]
        if name and name not in line.setdefault("", "").split(", "):
            line[""] = ", ".join(filter(None, [line[""], name]))
    head = ["port", "at", "container", *sources]
    body = [
        ["%d/%s" % (port, protocol), address, line.get("", "") or "-", *[line.get(source, "-") for source in sources]]
        for (protocol, port, address), line in lines.items()
    ]
    widths = [max(len(row[column]) for row in [head, *body]) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [head, *body]]
