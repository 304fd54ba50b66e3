# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: follower_program
short_description: Make the program that keeps rules on the containers' present addresses
version_added: 1.0.0
author:
  - The quaywall.docker authors (@quaywall)
description:
  - Makes one file of this collection's own code that runs on a host without Ansible (a Python zip application), and
    returns its path on the controller.
  - The same collection makes the same file, byte for byte, on every controller.
  - The role P(quaywall.docker.firewall_baseline#role) copies it to the hosts.
options:
  _terms:
    description: Nothing. The lookup takes no terms.
    type: list
    elements: str
"""

EXAMPLES = r"""
- name: Install the program
  ansible.builtin.copy:
    src: "{{ lookup('quaywall.docker.follower_program') }}" # .../quaywall.pyz
    dest: /usr/lib/quaywall/
    mode: "0755"
"""

RETURN = r"""
_raw:
  description: The program's path on the controller, in Ansible's temporary directory. It goes when Ansible ends.
  type: list
  elements: path
"""

import ast
import hashlib
import io
import os
import tempfile
import typing as t
import zipfile

from ansible import constants
from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

PACKAGE = "ansible_collections.quaywall.docker.plugins.module_utils"
START = "_follower"
"""The module whose main() the program runs."""

_SHEBANG = b"#!/usr/bin/env python3\n"
_MAIN = """\
import sys

from %s import %s

raise SystemExit(%s.main(sys.argv[1:]))
""" % (PACKAGE, START, START)


class ProgramError(Exception):
    """The program cannot be made. The message is a sentence."""


class _Imports(ast.NodeVisitor):
    """The dotted names that a module may import when it runs, those inside functions included."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.names: t.Set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        condition = ast.dump(node.test)
        if "TYPE_CHECKING" in condition and isinstance(node.test, (ast.Name, ast.Attribute)):
            # Never imported when the program runs.
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.names.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        if node.level:
            parents = self.package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1])
            module = "%s.%s" % (base, module) if module else base
        self.names.add(module)
        # What is imported from a package may be a module of it.
        self.names.update("%s.%s" % (module, alias.name) for alias in node.names)


def closure(folder: str, start: str = START) -> t.Dict[str, bytes]:
    """The files of module_utils that one of its modules needs: path below ``folder`` -> content.

    :param folder: the folder of the package module_utils.
    :param start: a module of it, by its dotted name below module_utils.
    :raises ProgramError: that module is not there, or a file is no Python.
    """
    found: t.Dict[str, bytes] = {}
    waiting = [start]
    seen: t.Set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path, is_package = _file_of(folder, name)
        if path is None:
            if name == start:
                raise ProgramError("The collection has no plugins/module_utils/%s.py: install it anew." % start)
            continue  # what is imported from a module, and no module itself
        with open(os.path.join(folder, path), "rb") as file:
            found[path] = file.read()
        dotted = "%s.%s" % (PACKAGE, name)
        imports = _Imports(dotted if is_package else dotted.rpartition(".")[0])
        try:
            imports.visit(ast.parse(found[path], filename=path))
        except SyntaxError as error:
            raise ProgramError(
                "plugins/module_utils/%s is no Python (%s): install the collection anew." % (path, error)
            ) from error
        for imported in imports.names:
            if imported.startswith(PACKAGE + "."):
                parts = imported[len(PACKAGE) + 1 :].split(".")
                # The packages on the way are imported too.
                waiting.extend(".".join(parts[: count + 1]) for count in range(len(parts)))
    return found


def _file_of(folder: str, name: str) -> t.Tuple[t.Optional[str], bool]:
    """The file of a module, and whether it is a package."""
    base = name.replace(".", "/")
    for path, is_package in ((base + ".py", False), (base + "/__init__.py", True)):
        if os.path.isfile(os.path.join(folder, path)):
            return path, is_package
    return None, False


def build(sources: t.Mapping[str, bytes]) -> bytes:
    """The program as a zip application: the same sources make the same bytes on every controller.

    :param sources: path below module_utils -> content.
    """
    top = PACKAGE.replace(".", "/")
    files = {"__main__.py": _MAIN.encode("ascii")}
    files.update(("%s/%s" % (top, path), content) for path, content in sources.items())
    for path in list(files):
        # Regular packages all the way: in a zip, and before any ansible_collections that the host has itself.
        parents = path.split("/")[:-1]
        for count in range(1, len(parents) + 1):
            files.setdefault("/".join([*parents[:count], "__init__.py"]), b"")
    buffer = io.BytesIO()
    buffer.write(_SHEBANG)
    # Stored: what deflate makes of the same bytes depends on the controller's zlib, and two controllers would undo
    # each other's program for ever.
    with zipfile.ZipFile(buffer, "a", compression=zipfile.ZIP_STORED) as archive:
        for path in sorted(files):
            entry = zipfile.ZipInfo(path, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[path])
    return buffer.getvalue()


def write(program: bytes, folder: str) -> str:
    """Write the program into a folder that is named by its content, unless it is there. Returns the path."""
    place = os.path.join(folder, "quaywall-%s" % hashlib.sha256(program).hexdigest()[:16])
    path = os.path.join(place, "quaywall.pyz")
    if os.path.exists(path):
        return path
    os.makedirs(place, mode=0o700, exist_ok=True)
    # Ansible's forks look up at the same time: whoever renames last puts the same file there.
    descriptor, temporary = tempfile.mkstemp(dir=place)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(program)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    return path


class LookupModule(LookupBase):
    """The lookup."""

    def run(self, terms: t.List[t.Any], variables: t.Any = None, **kwargs: t.Any) -> t.List[str]:  # noqa: ARG002
        if terms:
            raise AnsibleLookupError("quaywall.docker.follower_program takes no terms: there is one program only.")
        module_utils = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "module_utils")
        try:
            folder: str = constants.DEFAULT_LOCAL_TMP  # type: ignore[attr-defined]
            return [write(build(closure(module_utils)), folder)]
        except (ProgramError, OSError) as error:
            raise AnsibleLookupError("The follower's program cannot be made: %s" % error) from error
