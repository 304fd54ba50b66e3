# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The ipsets and the stored policies, which are brought along with the rules and under the same lock."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._iptables import Companion
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._ipset import AddressSet, Ipset
    from ansible_collections.quaywall.docker.plugins.module_utils._store import Pending, Store, Stored


def address_sets(sets: t.Mapping[str, t.FrozenSet[str]]) -> t.Dict[str, AddressSet]:
    if not sets:
        return {}
    # Only here, as what a run does not need it should not pay for: Ansible compiles a module anew each time.
    from ansible_collections.quaywall.docker.plugins.module_utils._ipset import AddressSet

    return {name: AddressSet(name, IPV6 if name.endswith("-6") else IPV4, nets) for name, nets in sets.items()}


class Beside(Companion):
    """The ipsets and the store, brought along with the rules.

    :param wanted: gives the sets that are to be there, by name; asked once the rules are planned.
    :param stored: gives what is to be stored; None leaves the store alone.
    :param quick: a set that looks as it did at the last read is not read again, as it takes long for a large one.
    :param forget: the store is to be taken away.
    """

    def __init__(
        self,
        ipset: Ipset,
        wanted: t.Callable[[], t.Tuple[t.Mapping[str, AddressSet], t.Collection[str]]],
        store: t.Optional[Store] = None,
        stored: t.Optional[t.Callable[[], t.Optional[Stored]]] = None,
        quick: bool = False,
        forget: bool = False,
    ) -> None:
        self._ipset = ipset
        self._wanted = wanted
        self._store = store
        self._stored = stored
        self._quick = quick
        self._forget = forget
        self._pending: t.Optional[Pending] = None
        self._present: t.Optional[t.Dict[str, AddressSet]] = None
        self.stored = False

    def present(self) -> t.Dict[str, AddressSet]:
        """The sets of ours as they were before."""
        if self._present is None:
            self._present = self._ipset.read(self._quick)
        return self._present

    def after(self) -> t.Dict[str, AddressSet]:
        """The sets of ours as they are after, or would be."""
        wanted, keep = self._wanted()
        return {**{name: made for name, made in self.present().items() if name in keep}, **wanted}

    def testable(self) -> bool:
        return set(self._wanted()[0]) <= set(self.present())

    def will_store(self) -> bool:
        if self._store is not None and self._forget:
            return self._store.remove(dry=True)
        if self._store is None or self._stored is None:
            return False
        stored = self._stored()
        return stored is not None and self._store.changes(stored)

    def prepare(self) -> None:
        if self._store is not None and self._stored is not None:
            stored = self._stored()
            if stored is not None:
                self._pending = self._store.prepare(stored)
        try:
            self._ipset.prepare(self._wanted()[0].values(), self.present())
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        if self._pending is not None:
            self._pending.discard()
            self._pending = None

    def undo(self) -> None:
        self._discard()
        self._ipset.undo()

    def finish(self) -> None:
        wanted, keep = self._wanted()
        try:
            # The store last: if this is killed here, the follower brings back what is stored, as if nothing happened.
            self._ipset.finish({*wanted, *keep})
        finally:
            # The rules are in the kernel, whatever becomes of sets that nobody asks any more.
            if self._pending is not None:
                self._pending.commit()
                self.stored = True
            # Under the lock, as the follower would bring back what it finds stored.
            if self._store is not None and self._forget:
                self.stored = self._store.remove()
