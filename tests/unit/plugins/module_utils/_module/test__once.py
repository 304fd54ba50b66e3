# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import importlib
import json
import pathlib
import subprocess
import sys
import typing as t
import zipfile

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._module import _once

PACKAGES = (
    "ansible_collections",
    "ansible_collections/quaywall",
    "ansible_collections/quaywall/docker",
    "ansible_collections/quaywall/docker/plugins",
    "ansible_collections/quaywall/docker/plugins/module_utils",
    "ansible_collections/quaywall/docker/plugins/module_utils/_module",
)
HERE = PACKAGES[-1]

#: Prints what was compiled, and what a module of the archive says of itself.
PROGRAM = """
import json, sys
compiled = []
sys.addaudithook(lambda event, given: compiled.append(str(given[1])) if event == "compile" else None)
sys.path.insert(0, sys.argv[1])
if sys.argv[2] == "once":
    from ansible_collections.quaywall.docker.plugins.module_utils._module._once import compile_once
    compile_once()
from ansible_collections.quaywall.docker.plugins.module_utils._module import tried
try:
    from ansible_collections.quaywall.docker.plugins.module_utils._module import absent
except ImportError as error:
    absent = str(error)
from ansible_collections.quaywall.docker.plugins.module_utils._module.inner import deep
spec = tried.__spec__
names = [name.rpartition("/")[2] for name in compiled]
print(json.dumps({
    "times": names.count("tried.py"),
    "file": tried.__file__,
    "name": tried.__name__,
    "package": tried.__package__,
    "origin": spec.origin,
    "source": spec.loader.get_source(spec.name),
    "deep": deep.__name__,
    "absent": absent,
}))
"""


@pytest.fixture
def archive(tmp_path: pathlib.Path) -> str:
    made = tmp_path / "sent.zip"
    with zipfile.ZipFile(str(made), "w") as file:
        for package in (*PACKAGES, HERE + "/inner"):
            file.writestr(package + "/__init__.py", "")
        file.writestr(HERE + "/_once.py", pathlib.Path(_once.__file__).read_text(encoding="utf-8"))
        file.writestr(HERE + "/tried.py", "SAID = 1\n")
        file.writestr(HERE + "/inner/deep.py", "from .. import tried\n")
    return str(made)


def run(archive: str, how: str) -> t.Dict[str, t.Any]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, archive, how], stdout=subprocess.PIPE, check=True)
    found: t.Dict[str, t.Any] = json.loads(done.stdout.decode("utf-8"))
    return found


def test_a_module_in_an_archive_is_compiled_once(archive: str) -> None:
    usual, once = run(archive, "usual"), run(archive, "once")
    assert usual.pop("times") >= once["times"]
    # What is older finds modules of archives in another way, and is left alone.
    assert once.pop("times") == 1 or sys.version_info < (3, 10)
    assert once == usual
    assert once["file"] == "%s/%s/tried.py" % (archive, HERE)
    assert "absent" in once["absent"]


def test_what_is_in_no_archive_is_found_in_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    _once.compile_once()
    found = _once._Finder.find_spec(_once.__name__, [str(pathlib.Path(_once.__file__).parent)])
    assert found is None
    assert _once._Finder.find_spec(_once.__name__, None) is None
    assert _once._Finder.find_spec("json.decoder", ["/"]) is None
    assert importlib.reload(_once).compile_once is not None
