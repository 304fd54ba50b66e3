# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The only code that runs C(ipset): the long lists of sources that policies have.

A set is filled beside the one that rules use and then swapped with it, so that a packet meets the old contents or the
new ones. Reading loads no kernel module. Whoever writes holds the own lock of C(_iptables.py).
"""

from __future__ import annotations

import re
import socket
import time
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils import _host
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import Finder, FirewallError, Runner
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6

#: The kernel takes no longer name of a set.
MOST_NAME = 31
#: What the set beside the one that rules use is called, and the old contents after the swap.
NEW = "-new"

#: Seconds to wait until the kernel has let go of sets whose rules were just removed: nft does so a moment later.
RELEASE_WAIT = 1.0

_OURS = re.compile(r"quaywall-[0-9a-f]{16}-[46](?:-new)?")
_WORDS = {IPV4: "inet", IPV6: "inet6"}
_TYPE = "hash:net"
# The kernel's own default; below it a set is as large as any other one.
_LEAST_MOST = 65536

_GONE = "does not exist"
_USED = "in use by a kernel component"


class AddressSet(t.NamedTuple):
    """A set of networks in the kernel, of the type hash:net.

    ``networks`` are as ipset prints them: C(198.51.100.0/24), single addresses without their prefix length (see
    :func:`elements`). ``name`` is that of C(_chain.set_name).
    """

    name: str
    family: str
    networks: t.FrozenSet[str]


class _Header(t.NamedTuple):
    """What C(ipset list -t) says of a set; ``mark`` is the same until somebody makes it anew or changes its size."""

    name: str
    kind: str
    family: str
    mark: str


def elements(networks: t.Iterable[str]) -> t.FrozenSet[str]:
    """Networks (as the module ipaddress prints them, with a prefix length or without) as ipset prints them."""
    return frozenset([_dotted(text) if text.startswith("::") else text for text in map(_without_length, networks)])


def _without_length(network: str) -> str:
    """A single address without its prefix length; an IPv6 network may have 32 bits too."""
    if network.endswith("/128"):
        return network[:-4]
    return network[:-3] if network.endswith("/32") and ":" not in network else network


def _dotted(network: str) -> str:
    """C(::ffff:c633:6401) as C(::ffff:198.51.100.1), which the C library makes of it and not every Python does."""
    head, slash, length = network.partition("/")
    try:
        return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, head)) + slash + length
    except OSError:
        return network


def parse_save(text: str, name: str) -> t.FrozenSet[str]:
    """The elements that C(ipset save NAME) printed, with their options (C(nomatch)) where somebody gave them any."""
    # One line is one element: a split at what stands before each of them is many times as fast as a look at each line.
    first, *found = text.rstrip("\n").split("\nadd %s " % name)
    del first
    if any(network.startswith("::") for network in found):
        found = [_dotted(network) if network.startswith("::") else network for network in found]
    return frozenset(found)


def _headers(text: str) -> t.List[_Header]:
    """The sets that C(ipset list -t) names. Names may hold anything; what is no name of ours is of no interest."""
    found: t.List[_Header] = []
    for block in ("\n" + text).split("\nName: ")[1:]:
        name, _newline, rest = block.partition("\n")
        fields = dict(line.partition(": ")[::2] for line in rest.split("\n"))
        header = " %s " % fields.get("Header", "")
        family = IPV6 if " family inet6 " in header else IPV4
        # Kernels before 5.12 do not tell a set from one of the same name that was made later.
        mark = header + fields.get("Number of entries", "") if " initval " in header else ""
        found.append(_Header(name, fields.get("Type", ""), family, mark))
    return found


def _power(number: int, least: int) -> int:
    """The next power of two."""
    return max(least, 1 << max(0, number - 1).bit_length())


def _create(name: str, family: str, number: int) -> str:
    return "create %s %s family %s hashsize %d maxelem %d\n" % (
        name,
        _TYPE,
        _WORDS[family],
        _power(number, 64),
        _power(number, _LEAST_MOST),
    )


def fill(name: str, family: str, networks: t.Collection[str]) -> str:
    """Lines for C(ipset restore) that make a set with its networks. The hash is made as large as it is going to be."""
    head = _create(name, family, len(networks))
    if not networks:
        return head
    before = "add %s " % name
    return head + before + ("\n" + before).join(networks) + "\n"


class Ipset:
    """The sets of our policies.

    :param run: runs a command.
    :param find: finds a program.
    :param descriptors: the locks that a child holds too, so that the next run waits for it if we are killed.
    :param release_wait: seconds to wait for sets that the kernel has not let go of.
    """

    def __init__(
        self,
        run: Runner,
        find: Finder,
        descriptors: t.Callable[[], t.Sequence[int]] = tuple,
        release_wait: float = RELEASE_WAIT,
        is_loaded: t.Callable[[], bool] = _host.ip_set_is_loaded,
    ) -> None:
        self._run = run
        self._find = find
        self._descriptors = descriptors
        self._release_wait = release_wait
        self._is_loaded = is_loaded
        self._program: t.Optional[str] = None
        #: What was read by the marks of the sets' headers.
        self._known: t.Dict[str, t.Tuple[_Header, AddressSet]] = {}
        #: Of the last prepare: sets that were swapped, and those that were not there before.
        self._swapped: t.List[str] = []
        self._created: t.List[str] = []

    # Running

    def _found(self) -> t.Optional[str]:
        if self._program is None:
            self._program = self._find("ipset")
        return self._program

    def _ipset(self, *arguments: str, data: str = "") -> t.Tuple[int, str, str]:
        program = self._found()
        if program is None:
            raise FirewallError(
                "ipset is not installed, and a policy has as many sources as ipset_threshold says: install the package "
                "ipset, or raise ipset_threshold."
            )
        rc, out, err = self._run(
            [program, *arguments], data.encode("utf-8") if data else None, {"LC_ALL": "C"}, self._descriptors()
        )
        return rc, out.decode("utf-8", "surrogateescape"), err.decode("utf-8", "surrogateescape")

    def _error(self, sentence: str, arguments: t.Sequence[str], rc: int, err: str) -> FirewallError:
        return FirewallError(
            sentence, {"rc": rc, "cmd": [self._program or "ipset", *arguments], "stdout": "", "stderr": err}
        )

    # Reading

    def _listed(self) -> t.List[_Header]:
        """The sets with names of ours, whatever they are; none where asking would load a kernel module."""
        if not self._is_loaded() or self._found() is None:
            # Without the program there are no sets of ours; Docker has some too, which it makes without it.
            return []
        rc, out, err = self._ipset("list", "-t")
        if rc != 0:
            raise self._error("ipset cannot list the sets: %s." % _reason(err), ("list", "-t"), rc, err)
        return [header for header in _headers(out) if _OURS.fullmatch(header.name)]

    def read(self, quick: bool = False) -> t.Dict[str, AddressSet]:
        """The managed sets by name, what a killed run left behind (C(NAME-new)) included.

        Empty where the kernel has no sets: asking would load a module. Sets of another type that have a name of ours
        are somebody else's and left out.

        :param quick: a set whose header (when it was made, how many elements it has) is as it was when this object
            last read it is not read again. For who looks often: 100,000 elements take a fifth of a second.
        :raises FirewallError: ipset cannot read them.
        """
        found: t.Dict[str, AddressSet] = {}
        known: t.Dict[str, t.Tuple[_Header, AddressSet]] = {}
        for header in self._listed():
            if header.kind != _TYPE:
                continue
            before = self._known.get(header.name)
            if quick and header.mark and before is not None and before[0] == header:
                known[header.name] = before
                found[header.name] = before[1]
                continue
            rc, out, err = self._ipset("save", header.name)
            if rc != 0 and _GONE in err:
                continue
            if rc != 0:
                raise self._error(
                    "ipset cannot read the set %s: %s." % (header.name, _reason(err)), ("save", header.name), rc, err
                )
            found[header.name] = AddressSet(header.name, header.family, parse_save(out, header.name))
            known[header.name] = (header, found[header.name])
        self._known = known
        return found

    # Writing

    def prepare(self, wanted: t.Iterable[AddressSet], present: t.Mapping[str, AddressSet]) -> None:
        """Give sets their contents; those that have them already are left alone.

        After it C(NAME) has the new contents, and C(NAME-new) the old ones (of a set that was not there: none), until
        :meth:`undo` or :meth:`finish`.

        :param present: what :meth:`read` gave.
        :raises FirewallError: ipset is missing or refuses; then all sets that were there are as they were.
        """
        self._swapped, self._created = [], []
        changed = [item for item in wanted if present.get(item.name) != item]
        if not changed:
            return
        for item in changed:
            if item.name in present and present[item.name].family != item.family:
                raise FirewallError(_foreign(item.name))
        self._destroy([item.name + NEW for item in changed if item.name + NEW in present])
        text = "".join([fill(item.name + NEW, item.family, item.networks) for item in changed])
        rc, _out, err = self._ipset("restore", data=text)
        if rc != 0:
            names = {item.name + NEW for item in changed}
            self._destroy([header.name for header in self._listed() if header.kind == _TYPE and header.name in names])
            raise self._refused(text, rc, err)
        self._swap(changed, [item for item in changed if item.name not in present])

    def _swap(self, changed: t.Sequence[AddressSet], missing: t.Sequence[AddressSet]) -> None:
        """Put the filled sets where rules use them, all or none."""
        lines = [_create(item.name, item.family, 0) for item in missing]
        lines += ["swap %s%s %s\n" % (item.name, NEW, item.name) for item in changed]
        rc, _out, err = self._ipset("restore", data="".join(lines))
        # A stream ends with the line in error. Where that is not told (ipset was killed) nothing is swapped back: that
        # would bring the new contents where they are not yet.
        done = len(lines) if rc == 0 else (_line_number(err) or 1) - 1
        self._created = [item.name for item in missing[:done]]
        self._swapped = [item.name for item in changed[: max(0, done - len(missing))]]
        if rc == 0:
            return
        error = self._refused("".join(lines), rc, err)
        try:
            self.undo()
            self._destroy([item.name + NEW for item in changed])
        except FirewallError as second:
            raise FirewallError("%s Undoing that failed too: %s" % (error, second), error.details) from error
        raise error

    def _refused(self, text: str, rc: int, err: str) -> FirewallError:
        reason = _reason(err)
        number = _line_number(err)
        line = text.split("\n", number)[number - 1] if number is not None and number <= text.count("\n") else ""
        words = line.split(" ")
        if "already exists" in err or "type does not match" in err:
            sentence = _foreign(words[-1] if words[0] == "swap" else words[1] if len(words) > 1 else "of that name")
        elif words[0] == "add":
            sentence = "ipset refused %s: %s. Nothing was changed." % (words[-1], reason)
        else:
            sentence = (
                "ipset cannot make sets on this host: %s. Raise ipset_threshold to do without. Nothing was changed."
                % reason
            )
        return self._error(sentence, ["restore"], rc, err)

    def undo(self) -> None:
        """Take back the last :meth:`prepare`: sets have their old contents, and those that were made are gone.

        :raises FirewallError: ipset refuses, or a rule uses a set that was made.
        """
        swapped, created = self._swapped, self._created
        self._swapped, self._created = [], []
        back = [name for name in swapped if name not in created]
        if back:
            text = "".join("swap %s%s %s\n" % (name, NEW, name) for name in back)
            rc, _out, err = self._ipset("restore", data=text)
            if rc != 0:
                raise self._error("ipset cannot bring back the sets: %s." % _reason(err), ["restore"], rc, err)
        used = self._destroy([name + NEW for name in swapped] + created)
        if used:
            raise FirewallError("The set %s cannot be removed: a rule uses it." % used[0])

    def finish(self, keep: t.Collection[str]) -> t.Tuple[str, ...]:
        """Remove all C(NAME-new), and the managed sets whose names are not in ``keep``.

        :returns: those that stay, as a rule (of somebody else) uses them.
        :raises FirewallError: ipset refuses.
        """
        self._swapped, self._created = [], []
        # A set of another type is not ours, whatever it is called.
        return tuple(
            self._destroy(
                [header.name for header in self._listed() if header.kind == _TYPE and header.name not in keep]
            )
        )

    def _destroy(self, names: t.Sequence[str]) -> t.List[str]:
        """Remove sets, of which some may be gone; those that are in use are given back."""
        deadline = time.monotonic() + self._release_wait
        pause = 0.005
        used = self._destroyed(names)
        while used and time.monotonic() < deadline:
            # nft lets go of what a removed rule used a moment after the rule is gone.
            time.sleep(pause)
            pause = min(0.1, pause * 2)
            used = self._destroyed(used)
        return used

    def _destroyed(self, names: t.Sequence[str]) -> t.List[str]:
        left = list(names)
        used: t.List[str] = []
        while left:
            rc, _out, err = self._ipset("restore", data="".join("destroy %s\n" % name for name in left))
            if rc == 0:
                break
            # A stream ends with the line in error; without a number ipset could not even begin.
            number = _line_number(err)
            name = left[(number or 1) - 1]
            if number is None or not (_USED in err or _GONE in err):
                raise self._error("ipset cannot remove the set %s: %s." % (name, _reason(err)), ["restore"], rc, err)
            left = left[number:]
            used += [name] if _USED in err else []
        return used


def _foreign(name: str) -> str:
    return (
        "There is a set %s already that quaywall.docker did not make (`ipset list -t %s` shows it): remove it with "
        "`ipset destroy %s`, or give it another name with `ipset rename`, then run again. Nothing was changed."
        % (name, name, name)
    )


def _line_number(err: str) -> t.Optional[int]:
    found = re.search(r"Error in line (\d+):", err)
    return int(found.group(1)) if found else None


def _reason(err: str) -> str:
    """What ipset said, without its version and the line of a stream that nobody sees."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    if not lines:
        return "it gave no reason"
    return re.sub(r"\Aipset v[0-9.]+: (?:Error in line \d+: )?", "", lines[0]).rstrip(".")
