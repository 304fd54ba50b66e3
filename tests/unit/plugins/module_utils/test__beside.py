# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The order in which store, sets and rules are written, and what becomes of each where another one fails."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._beside import Beside, address_sets
from ansible_collections.quaywall.docker.plugins.module_utils._ipset import AddressSet, Ipset
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import FirewallError
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6
from ansible_collections.quaywall.docker.plugins.module_utils._store import Store, Stored, StoreError

ONE, TWO = AddressSet("quaywall-1-4", IPV4, frozenset(("10.0.0.1",))), AddressSet("quaywall-2-6", IPV6, frozenset())
OLD, NEW = Stored({}, ()), Stored({"guard": False}, ())


class Fails(Exception):
    pass


class Sets:
    """An Ipset that notes what it is asked, and fails where it is told to."""

    def __init__(self, present: t.Mapping[str, AddressSet], log: t.List[str]) -> None:
        self.present = dict(present)
        self.log = log
        self.fails = ""

    def _note(self, what: str) -> None:
        self.log.append(what)
        if self.fails == what.partition(" ")[0]:
            raise FirewallError("%s fails." % what)

    def read(self, quick: bool = False) -> t.Dict[str, AddressSet]:
        return dict(self.present)

    def prepare(self, wanted: t.Iterable[AddressSet], present: t.Mapping[str, AddressSet]) -> None:
        assert present == self.present
        self._note("fill " + " ".join(sorted(item.name for item in wanted)))

    def undo(self) -> None:
        self._note("undo")

    def finish(self, keep: t.Collection[str]) -> None:
        self._note("keep " + " ".join(sorted(keep)))


class Site:
    def __init__(self, path: t.Any) -> None:
        self.log: t.List[str] = []
        self.sets = Sets({ONE.name: ONE, TWO.name: TWO}, self.log)
        self.store = Store(str(path / "etc"), str(path / "var"))
        pending = self.store.prepare(OLD)
        assert pending is not None
        pending.commit()
        self.path = path / "etc"

    def beside(self, stored: t.Optional[Stored] = NEW, keep: t.Collection[str] = (), **options: t.Any) -> Beside:
        return Beside(
            t.cast(Ipset, self.sets), lambda: ({ONE.name: ONE}, keep), self.store, lambda: stored, **options
        )  # fmt: skip

    @property
    def files(self) -> t.List[str]:
        return sorted(path.name for path in self.path.iterdir())


@pytest.fixture
def site(tmp_path: t.Any) -> Site:
    return Site(tmp_path)


def test_sets_are_filled_before_and_cleared_after_and_the_store_is_last(site: Site) -> None:
    made = site.beside()
    assert made.will_store()
    made.prepare()
    assert site.store.read() == OLD
    assert site.log == ["fill quaywall-1-4"]
    made.finish()
    assert site.store.read() == NEW
    assert made.stored
    assert site.log == ["fill quaywall-1-4", "keep quaywall-1-4"]
    assert site.files == ["policies.json"]
    assert not made.will_store()


def test_what_others_ask_is_kept(site: Site) -> None:
    made = site.beside(keep=[TWO.name, "quaywall-3-4"])
    assert made.after() == {ONE.name: ONE, TWO.name: TWO}
    made.prepare()
    made.finish()
    assert site.log[-1] == "keep quaywall-1-4 quaywall-2-6 quaywall-3-4"
    assert site.beside().after() == {ONE.name: ONE}


def test_rules_that_fail_bring_all_back(site: Site) -> None:
    made = site.beside()
    made.prepare()
    made.undo()
    assert site.log[-1] == "undo"
    assert site.store.read() == OLD
    assert not made.stored
    assert site.files == ["policies.json"]


def test_sets_that_fail_bring_the_store_back(site: Site) -> None:
    site.sets.fails = "fill"
    made = site.beside()
    with pytest.raises(FirewallError):
        made.prepare()
    assert site.store.read() == OLD
    assert site.files == ["policies.json"]


def test_a_store_that_fails_keeps_everything_from_being_begun(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(stored: Stored) -> None:
        raise StoreError("The disk is full.")

    monkeypatch.setattr(site.store, "prepare", fail)
    with pytest.raises(StoreError):
        site.beside().prepare()
    assert site.log == []


def test_sets_that_cannot_be_cleared_do_not_keep_the_store_from_its_place(site: Site) -> None:
    """The rules are in the kernel by then, and the store must say the same."""
    made = site.beside()
    made.prepare()
    site.sets.fails = "keep"
    with pytest.raises(FirewallError):
        made.finish()
    assert site.store.read() == NEW


def test_nothing_to_store(site: Site) -> None:
    for made in (site.beside(None), site.beside(OLD), Beside(t.cast(Ipset, site.sets), lambda: ({}, ()))):
        assert not made.will_store()
        made.prepare()
        made.finish()
        assert not made.stored
    assert site.store.read() == OLD


def test_forgotten_at_the_end(site: Site) -> None:
    made = site.beside(None, forget=True)
    assert made.will_store()
    made.prepare()
    made.undo()
    assert site.store.read() == OLD
    made.prepare()
    made.finish()
    assert made.stored
    assert site.store.read() is None
    assert not site.beside(None, forget=True).will_store()


def test_rules_can_be_tried_only_where_their_sets_are(site: Site) -> None:
    assert site.beside().testable()
    site.sets.present = {}
    assert not site.beside().testable()


def test_the_family_of_a_set_is_in_its_name() -> None:
    found = address_sets({"quaywall-a-4": frozenset(("10.0.0.1",)), "quaywall-a-6": frozenset(("::1",))})
    assert [(name, made.family, set(made.networks)) for name, made in found.items()] == [
        ("quaywall-a-4", "ipv4", {"10.0.0.1"}),
        ("quaywall-a-6", "ipv6", {"::1"}),
    ]
