# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sets of sources by an ipset of these tests' own; what the real one does is asked in tests/kernel/test_ipset.py."""

from __future__ import annotations

import ipaddress
import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils import _ipset
from ansible_collections.quaywall.docker.plugins.module_utils._chain import set_name
from ansible_collections.quaywall.docker.plugins.module_utils._ipset import (
    NEW,
    AddressSet,
    Ipset,
    elements,
    fill,
    parse_save,
)
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import FirewallError
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6

NAME, NAME6 = set_name("admin-ui", IPV4), set_name("admin-ui", IPV6)
ONE = AddressSet(NAME, IPV4, frozenset(("198.51.100.0/24", "203.0.113.7")))
TWO = AddressSet(NAME, IPV4, frozenset(("192.0.2.0/25",)))
SIX = AddressSet(NAME6, IPV6, frozenset(("2001:db8::/32",)))

Made = t.Dict[str, t.Any]


class Kernel:
    """An ipset that keeps its sets in a dictionary: name -> type, options, elements."""

    def __init__(self, words: str = " bucketsize 12 initval 0x") -> None:
        self.sets: t.Dict[str, Made] = {}
        self.used: t.Dict[str, int] = {}
        self.calls: t.List[t.Tuple[t.Sequence[str], str]] = []
        self.refuse: t.Dict[str, str] = {}
        self.failing: t.Optional[t.Tuple[int, bytes]] = None
        self.descriptors: t.List[t.Sequence[int]] = []
        self._words = words
        self._count = 0

    def run(
        self,
        args: t.Sequence[str],
        data: t.Optional[bytes],
        environment: t.Mapping[str, str],
        descriptors: t.Sequence[int],
    ) -> t.Tuple[int, bytes, bytes]:
        assert args[0] == "/sbin/ipset"
        assert environment == {"LC_ALL": "C"}
        text = (data or b"").decode()
        self.calls.append((list(args[1:]), text))
        self.descriptors.append(descriptors)
        if self.failing is not None:
            return self.failing[0], b"", self.failing[1]
        if list(args[1:]) == ["list", "-t"]:
            return 0, "\n".join(self._listed(name) for name in self.sets).encode(), b""
        if args[1] == "save":
            if args[2] not in self.sets:
                return 1, b"", b"ipset v7.17: The set with the given name does not exist\n"
            return 0, self._saved(args[2]).encode(), b""
        assert list(args[1:]) == ["restore"]
        for number, line in enumerate(text.splitlines(), 1):
            error = self._line(line)
            if error:
                return 1, b"", ("ipset v7.17: Error in line %d: %s\n" % (number, error)).encode()
        return 0, b"", b""

    def _header(self, name: str) -> str:
        made = self.sets[name]
        mark = self._words + "%08x" % made["made"] if self._words else ""
        return "family %s hashsize %s maxelem %s%s" % (made["family"], made["hashsize"], made["maxelem"], mark)

    def _listed(self, name: str) -> str:
        made = self.sets[name]
        return "Name: %s\nType: %s\nRevision: 7\nHeader: %s\nReferences: 0\nNumber of entries: %d\n" % (
            name,
            made["type"],
            self._header(name),
            len(made["elements"]),
        )

    def _saved(self, name: str) -> str:
        head = "create %s hash:net %s\n" % (name, self._header(name))
        return head + "".join("add %s %s\n" % (name, item) for item in self.sets[name]["elements"])

    def make(self, name: str, kind: str = "hash:net", family: str = "inet", number: int = 65536) -> None:
        self._count += 1
        self.sets[name] = {
            "type": kind,
            "family": family,
            "hashsize": 64,
            "maxelem": number,
            "made": self._count,
            "elements": [],
        }

    def _line(self, line: str) -> str:
        words = line.split(" ")
        if line in self.refuse:
            return self.refuse[line]
        if words[0] == "create":
            if words[1] in self.sets:
                return "Set cannot be created: set with the same name already exists"
            assert words[2:4] == ["hash:net", "family"]
            self.make(words[1], family=words[4], number=int(words[8]))
        elif words[0] == "add":
            assert words[2] not in self.sets[words[1]]["elements"]
            self.sets[words[1]]["elements"].append(words[2])
        elif words[0] == "swap":
            one, two = words[1:]
            self.sets[one], self.sets[two] = self.sets[two], self.sets[one]
        else:
            assert words[0] == "destroy"
            if words[1] not in self.sets:
                return "The set with the given name does not exist"
            if self.used.get(words[1]):
                self.used[words[1]] -= 1
                return "Set cannot be destroyed: it is in use by a kernel component"
            del self.sets[words[1]]
        return ""


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def find(program: str) -> str:
    assert program == "ipset"
    return "/sbin/ipset"


def sets_of(kernel: Kernel, **options: t.Any) -> Ipset:
    return Ipset(kernel.run, find, is_loaded=lambda: True, **options)


def put(sets: Ipset, *wanted: AddressSet) -> None:
    sets.prepare(wanted, sets.read())
    assert sets.finish([item.name for item in wanted]) == ()


def mapped(*sets: AddressSet) -> t.Dict[str, AddressSet]:
    return {item.name: item for item in sets}


# Names and elements -------------------------------------------------------------------------------------------------


def test_names_fit_into_the_kernel() -> None:
    for policy in ("a", "x" * 64):
        names = {set_name(policy, family) for family in (IPV4, IPV6)}
        assert len(names) == 2
        assert all(len(name + NEW) <= _ipset.MOST_NAME for name in names)
    assert set_name("admin-ui", IPV4) == NAME != set_name("admin-uj", IPV4)
    # What is in the kernels of hosts must be found by later versions too.
    assert NAME == "quaywall-fd61a95cd67c5bb4-4"


@pytest.mark.parametrize(
    ("network", "printed"),
    [
        ("198.51.100.0/24", "198.51.100.0/24"),
        ("198.51.100.7/32", "198.51.100.7"),
        ("198.51.100.7", "198.51.100.7"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("2001:db8::7/128", "2001:db8::7"),
        ("::/1", "::/1"),
        ("::1", "::1"),
        ("::ffff:c633:6407/128", "::ffff:198.51.100.7"),
        ("::ffff:c633:6400/120", "::ffff:198.51.100.0/120"),
    ],
)
def test_elements_are_as_ipset_prints_them(network: str, printed: str) -> None:
    assert elements([network]) == {printed}
    assert elements([printed]) == {printed}
    assert ipaddress.ip_network(network) == ipaddress.ip_network(printed)


def test_what_ipset_saved() -> None:
    head = "create %s hash:net family inet hashsize 64 maxelem 65536\n" % NAME
    assert parse_save(head, NAME) == frozenset()
    lines = ["add %s 198.51.100.0/24\n" % NAME, "add %s 203.0.113.7 nomatch\n" % NAME]
    assert parse_save(head + "".join(lines), NAME) == {"198.51.100.0/24", "203.0.113.7 nomatch"}
    six = "create a\nadd a ::ffff:c633:6407\nadd a ::ffff:198.51.100.8\n"
    assert parse_save(six, "a") == {"::ffff:198.51.100.7", "::ffff:198.51.100.8"}


@pytest.mark.parametrize(
    ("count", "hashsize", "most"), [(0, 64, 65536), (65, 128, 65536), (65536, 65536, 65536), (65537, 131072, 131072)]
)
def test_a_set_is_as_large_as_it_needs(count: int, hashsize: int, most: int) -> None:
    text = fill("a", IPV4, ["10.%d.%d.%d" % (n >> 16, n >> 8 & 255, n & 255) for n in range(count)])
    lines = text.splitlines()
    assert lines[0] == "create a hash:net family inet hashsize %d maxelem %d" % (hashsize, most)
    assert len(lines) == count + 1
    assert text.endswith("\n")
    assert all(line.startswith("add a 10.") for line in lines[1:])


# Reading ------------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_where_the_kernel_has_no_sets(kernel: Kernel) -> None:
    sets = Ipset(kernel.run, find, is_loaded=lambda: False)
    assert sets.read() == {}
    assert sets.finish([]) == ()
    assert kernel.calls == []


def test_without_the_program_there_are_no_sets_of_ours(kernel: Kernel) -> None:
    """Docker makes some itself, so that the kernel has the module."""
    sets = Ipset(kernel.run, lambda _name: None, is_loaded=lambda: True)
    assert sets.read() == {}
    assert sets.finish([]) == ()
    sets.prepare([], {})
    with pytest.raises(FirewallError, match=r"install the package ipset, or raise ipset_threshold"):
        sets.prepare([ONE], {})


def test_only_sets_of_ours_are_read(kernel: Kernel) -> None:
    for name in ("mine", "quaywall-", NAME + "x", "a b", NAME[:-1] + "5", "x\nName: " + NAME):
        kernel.make(name)
    kernel.make(NAME6, "hash:ip", "inet6")
    kernel.make(NAME + NEW)
    assert sets_of(kernel).read() == mapped(AddressSet(NAME + NEW, IPV4, frozenset()))
    assert [args for args, _data in kernel.calls if args[0] == "save"] in (
        [["save", NAME + NEW]],
        [["save", NAME], ["save", NAME + NEW]],
    )


def test_a_set_that_goes_while_it_is_read(kernel: Kernel) -> None:
    sets = sets_of(kernel)
    put(sets, ONE)

    def run(args: t.Sequence[str], *more: t.Any) -> t.Tuple[int, bytes, bytes]:
        answer = kernel.run(args, *more)
        kernel.sets.clear()
        return answer

    assert Ipset(run, find, is_loaded=lambda: True).read() == {}


@pytest.mark.parametrize("words", [" bucketsize 12 initval 0x", ""])
def test_a_quick_look_where_the_kernel_tells_sets_apart(words: str) -> None:
    kernel = Kernel(words)
    sets = sets_of(kernel)
    put(sets, ONE, SIX)
    assert sets.read() == mapped(ONE, SIX)
    kernel.calls.clear()
    assert sets.read(quick=True) == mapped(ONE, SIX)
    assert len(kernel.calls) == (1 if words else 3)
    kernel.sets[NAME]["elements"].append("192.0.2.1")
    assert sets.read(quick=True)[NAME].networks == ONE.networks | {"192.0.2.1"}
    put(sets_of(kernel), TWO)
    assert sets.read(quick=True) == mapped(TWO)


@pytest.mark.parametrize("error", [b"ipset v7.17: Kernel error received: Operation not permitted\n", b""])
def test_what_cannot_be_read_is_said(kernel: Kernel, error: bytes) -> None:
    kernel.failing = (1, error)
    with pytest.raises(FirewallError) as caught:
        sets_of(kernel).read()
    reason = "Kernel error received: Operation not permitted" if error else "it gave no reason"
    assert str(caught.value) == "ipset cannot list the sets: %s." % reason
    assert caught.value.details["cmd"] == ["/sbin/ipset", "list", "-t"]


def test_a_set_that_cannot_be_read_is_said(kernel: Kernel) -> None:
    put(sets_of(kernel), ONE)

    def run(args: t.Sequence[str], *more: t.Any) -> t.Tuple[int, bytes, bytes]:
        return (1, b"", b"ipset v7.17: Broken") if args[1] == "save" else kernel.run(args, *more)

    with pytest.raises(FirewallError, match="ipset cannot read the set %s: Broken" % NAME):
        Ipset(run, find, is_loaded=lambda: True).read()


# Writing ------------------------------------------------------------------------------------------------------------


def test_sets_come_change_and_go(kernel: Kernel) -> None:
    sets = sets_of(kernel)
    put(sets, ONE, SIX)
    assert sets.read() == mapped(ONE, SIX)
    sets.prepare([TWO, SIX], sets.read())
    assert sets.read() == mapped(TWO, SIX, ONE._replace(name=NAME + NEW))
    assert sets.finish([NAME]) == ()
    assert sets.read() == mapped(TWO)
    assert sets.finish([]) == ()
    assert kernel.sets == {}


def test_nothing_is_swapped_before_all_is_filled(kernel: Kernel) -> None:
    sets = sets_of(kernel)
    sets.prepare([ONE, SIX], {})
    first, second = [data for _args, data in kernel.calls]
    assert "swap" not in first
    assert [line.split(" ")[0] for line in second.splitlines()] == ["create", "create", "swap", "swap"]


def test_what_is_as_wanted_is_left_alone(kernel: Kernel) -> None:
    sets = sets_of(kernel)
    put(sets, ONE)
    present = sets.read()
    kernel.calls.clear()
    sets.prepare([ONE], present)
    sets.undo()
    assert kernel.calls == []


def test_undo(kernel: Kernel) -> None:
    sets = sets_of(kernel)
    put(sets, ONE)
    sets.prepare([TWO, SIX], sets.read())
    sets.undo()
    assert sets.read() == mapped(ONE)
    sets.undo()
    assert sets.read() == mapped(ONE)


def test_undo_that_fails_is_said(kernel: Kernel) -> None:
    sets = sets_of(kernel, release_wait=0)
    put(sets, ONE)
    sets.prepare([TWO], sets.read())
    kernel.refuse["swap %s%s %s" % (NAME, NEW, NAME)] = "Broken"
    with pytest.raises(FirewallError, match="cannot bring back the sets: Broken"):
        sets.undo()
    sets.prepare([SIX], {})
    kernel.used[NAME6] = 1
    with pytest.raises(FirewallError, match="The set %s cannot be removed: a rule uses it" % NAME6):
        sets.undo()


def test_a_failure_while_filling_leaves_all_as_it_was(kernel: Kernel) -> None:
    sets = sets_of(kernel)
    put(sets, ONE)
    kernel.refuse["add %s%s 2001:db8::/32" % (NAME6, NEW)] = "Hash is full, cannot add more elements"
    with pytest.raises(FirewallError) as caught:
        sets.prepare([TWO, SIX], sets.read())
    assert str(caught.value) == (
        "ipset refused 2001:db8::/32: Hash is full, cannot add more elements. Nothing was changed."
    )
    assert sets.read() == mapped(ONE)


@pytest.mark.parametrize(
    "line", ["create %s hash:net" % NAME6, "swap %s%s %s" % (NAME, NEW, NAME), "swap %s%s %s" % (NAME6, NEW, NAME6)]
)
def test_a_failure_while_swapping_leaves_all_as_it_was(kernel: Kernel, line: str) -> None:
    sets = sets_of(kernel)
    put(sets, ONE)
    present = sets.read()
    original = kernel._line
    failed: t.List[str] = []

    def refusing(given: str) -> str:
        if given.startswith(line) and not failed:
            failed.append(given)
            return "Cannot do that"
        return original(given)

    kernel._line = refusing  # type: ignore[method-assign]
    with pytest.raises(FirewallError, match="Cannot do that"):
        sets.prepare([TWO, SIX], present)
    assert failed
    assert sets.read() == mapped(ONE)


def test_two_failures_are_both_said(kernel: Kernel) -> None:
    sets = sets_of(kernel)
    put(sets, ONE)
    present = sets.read()
    kernel.refuse["swap %s%s %s" % (NAME, NEW, NAME)] = "Cannot do that"
    kernel.refuse["destroy %s%s" % (NAME, NEW)] = "Nor that"
    with pytest.raises(FirewallError, match=r"Cannot do that.* Undoing that failed too: .*Nor that"):
        sets.prepare([TWO], present)


def test_a_host_that_cannot_have_sets(kernel: Kernel) -> None:
    kernel.failing = (1, b"ipset v7.17: Cannot open session to kernel.\n")
    with pytest.raises(FirewallError) as caught:
        Ipset(kernel.run, find, is_loaded=lambda: False).prepare([ONE], {})
    assert str(caught.value) == (
        "ipset cannot make sets on this host: Cannot open session to kernel. Raise ipset_threshold to do without. "
        "Nothing was changed."
    )


@pytest.mark.parametrize("suffix", ["", NEW])
def test_somebodys_set_of_our_name_is_left_alone(kernel: Kernel, suffix: str) -> None:
    kernel.make(NAME + suffix, "hash:ip")
    sets = sets_of(kernel)
    with pytest.raises(FirewallError) as caught:
        sets.prepare([ONE], sets.read())
    assert str(caught.value).startswith("There is a set %s already that quaywall.docker did not make" % (NAME + suffix))
    assert list(kernel.sets) == [NAME + suffix]
    assert sets.finish([]) == ()
    assert list(kernel.sets) == [NAME + suffix]


def test_a_set_of_the_other_family_is_not_ours(kernel: Kernel) -> None:
    kernel.make(NAME, family="inet6")
    sets = sets_of(kernel)
    with pytest.raises(FirewallError, match="did not make"):
        sets.prepare([ONE], sets.read())
    assert len(kernel.sets) == 1


def test_what_a_killed_run_left_is_taken_away(kernel: Kernel) -> None:
    sets = sets_of(kernel)
    kernel.make(NAME + NEW, number=5)
    kernel.make(NAME6 + NEW)
    put(sets, ONE)
    assert sets.read() == mapped(ONE)


def test_a_set_that_is_still_used_is_waited_for(kernel: Kernel) -> None:
    sets = sets_of(kernel)
    put(sets, ONE, SIX)
    kernel.used = {NAME: 3}
    assert sets.finish([]) == ()
    assert kernel.sets == {}


def test_a_set_that_stays_in_use_is_told_and_the_others_go(kernel: Kernel) -> None:
    sets = sets_of(kernel, release_wait=0.02)
    put(sets, ONE, SIX)
    kernel.used = {NAME: 1000}
    assert sets.finish([]) == (NAME,)
    assert list(kernel.sets) == [NAME]


def test_what_has_gone_need_not_be_removed(kernel: Kernel) -> None:
    sets = sets_of(kernel)
    gone = AddressSet(NAME + NEW, IPV4, frozenset())
    sets.prepare([ONE, SIX], mapped(gone, gone._replace(name=NAME6 + NEW)))
    assert sets.finish([NAME, NAME6]) == ()
    assert sets.read() == mapped(ONE, SIX)


def test_ipset_that_dies_is_said(kernel: Kernel) -> None:
    sets = sets_of(kernel)
    put(sets, ONE)

    def run(args: t.Sequence[str], *more: t.Any) -> t.Tuple[int, bytes, bytes]:
        return (-9, b"", b"") if args[1] == "restore" else kernel.run(args, *more)

    with pytest.raises(FirewallError, match="cannot remove the set %s: it gave no reason" % NAME):
        Ipset(run, find, is_loaded=lambda: True).finish([])


def test_a_swap_that_dies_swaps_nothing_back(kernel: Kernel) -> None:
    """What was done is not known; the next run finds it out."""
    sets = sets_of(kernel)
    put(sets, ONE)
    present = sets.read()

    def run(args: t.Sequence[str], data: t.Optional[bytes], *more: t.Any) -> t.Tuple[int, bytes, bytes]:
        answer = kernel.run(args, data, *more)
        return (-9, b"", b"") if data and data.startswith(b"swap") else answer

    dying = Ipset(run, find, is_loaded=lambda: True)
    with pytest.raises(FirewallError):
        dying.prepare([TWO], present)
    assert sets.read() == mapped(TWO)


def test_a_child_holds_the_locks(kernel: Kernel) -> None:
    put(sets_of(kernel, descriptors=lambda: (7, 8)), ONE)
    assert set(kernel.descriptors) == {(7, 8)}
