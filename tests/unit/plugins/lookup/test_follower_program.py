# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The follower's program: what is in it, that it is always the same, and that it runs where there is no Ansible."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
import types
import typing as t
import zipfile
from pathlib import Path

import pytest

if importlib.util.find_spec("ansible.plugins") is None:
    # Older Pythons have ansible.module_utils only. A lookup needs hardly more than a place to stand, and what it makes
    # is for just these Pythons.
    for _name, _attributes in (
        ("ansible.constants", {"DEFAULT_LOCAL_TMP": ""}),
        ("ansible.errors", {"AnsibleLookupError": type("AnsibleLookupError", (Exception,), {})}),
        ("ansible.plugins", {}),
        (
            "ansible.plugins.lookup",
            {"LookupBase": type("LookupBase", (), {})},
        ),
    ):
        _module = types.ModuleType(_name)
        vars(_module).update(_attributes)
        sys.modules[_name] = _module
        _parent, _dot, _child = _name.rpartition(".")
        setattr(sys.modules[_parent], _child, _module)

from ansible.errors import AnsibleLookupError

from ansible_collections.quaywall.docker.plugins.lookup import follower_program
from ansible_collections.quaywall.docker.plugins.lookup.follower_program import (
    PACKAGE,
    LookupModule,
    ProgramError,
    build,
    closure,
    write,
)

TOP = PACKAGE.replace(".", "/")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A module_utils with all the ways in which a module can import another."""
    files = {
        "_follower.py": """
            import typing as t
            from %(package)s._one import thing
            from %(package)s import _two, _three
            if t.TYPE_CHECKING:
                from %(package)s._types_only import Thing
            def main(argv):
                from %(package)s._late import late
                import %(package)s._dotted
                try:
                    import docker_sdk_that_is_not_there
                except ImportError:
                    pass
                print(late(), *argv)
                return 3
        """,
        "_one.py": "import os\nthing = os.name",
        "_two.py": "from ._relative import value\nfrom . import _by_dot",
        "_three.py": "",
        "_late.py": "from %(package)s._pack._inner import NAME\ndef late():\n    return NAME",
        "_dotted.py": "from %(package)s import _follower  # a circle is no trap",
        "_relative.py": "value = 1",
        "_by_dot.py": "",
        "_types_only.py": "",
        "_pack/__init__.py": "from ._first import first",
        "_pack/_first.py": "first = 1",
        "_pack/_inner.py": "from .._above import above\nNAME = 'inner'",
        "_pack/_unused.py": "",
        "_above.py": "above = 1",
        "_unused.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        lines = text.split("\n")
        dedented = "\n".join(line[12:] if line.startswith(" " * 12) else line for line in lines)
        path.write_text((dedented % {"package": PACKAGE}).strip() + "\n", encoding="ascii")
    return tmp_path


def _names(program: bytes) -> t.List[str]:
    with zipfile.ZipFile(io.BytesIO(program)) as archive:
        return archive.namelist()


def test_closure_holds_all_that_may_be_imported_and_nothing_else(folder: Path) -> None:
    assert sorted(closure(str(folder))) == [
        "_above.py",
        "_by_dot.py",
        "_dotted.py",
        "_follower.py",
        "_late.py",
        "_one.py",
        "_pack/__init__.py",
        "_pack/_first.py",
        "_pack/_inner.py",
        "_relative.py",
        "_three.py",
        "_two.py",
    ]


def test_program_runs_with_its_own_packages(folder: Path, tmp_path: Path) -> None:
    # A host may have collections of its own, which do not have this one.
    other = tmp_path / "other" / "ansible_collections"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    path = write(build(closure(str(folder))), str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": str(other.parent)}
    done = subprocess.run(
        [sys.executable, path, "a", "b"], capture_output=True, text=True, check=False, env=environment, cwd="/"
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "inner a b\n", "")
    isolated = subprocess.run([sys.executable, "-I", path], capture_output=True, text=True, check=False, cwd="/")
    assert (isolated.returncode, isolated.stdout, isolated.stderr) == (3, "inner\n", "")


def test_same_sources_make_the_same_bytes(folder: Path) -> None:
    sources = closure(str(folder))
    assert build(sources) == build(dict(reversed(list(sources.items()))))
    names = _names(build(sources))
    assert names == sorted(names)
    for package in ("ansible_collections", "ansible_collections/quaywall", TOP, TOP + "/_pack"):
        assert package + "/__init__.py" in names


def test_another_source_makes_another_file(folder: Path, tmp_path: Path) -> None:
    before = write(build(closure(str(folder))), str(tmp_path))
    assert write(build(closure(str(folder))), str(tmp_path)) == before
    (folder / "_above.py").write_text("above = 2\n", encoding="ascii")
    assert write(build(closure(str(folder))), str(tmp_path)) != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "_follower.py").unlink(), "has no plugins/module_utils/_follower.py"),
        (lambda folder: (folder / "_one.py").write_text("def :", encoding="ascii"), "_one.py is no Python"),
    ],
)
def test_what_is_missing_or_broken_is_said(folder: Path, change: t.Callable[[Path], t.Any], message: str) -> None:
    change(folder)
    with pytest.raises(ProgramError, match=message):
        closure(str(folder))


def test_lookup_takes_no_terms() -> None:
    with pytest.raises(AnsibleLookupError, match="takes no terms"):
        LookupModule().run(["x"])


def test_lookup_makes_a_program_that_runs_without_ansible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower_program.constants, "DEFAULT_LOCAL_TMP", str(tmp_path))
    [path] = LookupModule().run([])
    names = _names(Path(path).read_bytes())
    assert TOP + "/_follower.py" in names
    # Modules' own code and the audit have no business on a host that is only kept as it is.
    assert not [name for name in names if "/_module/" in name or "/_audit/" in name]
    no_ansible = "import sys; sys.modules['ansible'] = None; sys.path.insert(0, sys.argv[1]); "
    importing = no_ansible + "from %s import _follower; print(_follower.__file__)" % PACKAGE
    done = subprocess.run(
        [sys.executable, "-I", "-c", importing, path], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.stdout == os.path.join(path, TOP, "_follower.py") + "\n", done.stderr
