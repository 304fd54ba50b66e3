# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What is imported out of Ansible's archive is compiled once.

Ansible sends a module and all that it imports as a ZIP archive without bytecode, so that Python compiles every file at
every task. CPython does it twice: to find out a file's name (C(zipimport.zipimporter.get_filename)), and to run it.
"""

from __future__ import annotations

import sys
import typing as t
import zipimport
from importlib.machinery import ModuleSpec, PathFinder

_OURS = "ansible_collections.quaywall.docker."


class _Finder:
    """Finds this collection's modules, though no packages, where Python looked already and found a ZIP archive."""

    @staticmethod
    def find_spec(
        fullname: str, path: t.Optional[t.Sequence[str]] = None, _target: t.Any = None
    ) -> t.Optional[ModuleSpec]:
        """None for what is to be found in the usual way."""
        if not fullname.startswith(_OURS):
            return None
        places = list(path or ())
        loader: t.Any = sys.path_importer_cache.get(places[0]) if len(places) == 1 else None
        # Before Python 3.10 the archive's importer cannot be asked to run a module that it did not find itself.
        if not isinstance(loader, zipimport.zipimporter) or not hasattr(loader, "exec_module"):
            return None
        try:
            if loader.is_package(fullname):
                return None
        except ImportError:
            return None
        spec = ModuleSpec(fullname, t.cast(t.Any, loader), origin="%s/%s.py" % (places[0], fullname.rpartition(".")[2]))
        spec.has_location = True
        return spec


def compile_once() -> None:
    """From here on, for this process."""
    finders: t.List[t.Any] = sys.meta_path
    finders.insert(finders.index(PathFinder) if PathFinder in finders else len(finders), _Finder)
