# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action docker_fw_report. It runs on the controller, where all results are; its module is documentation only."""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import re
import stat
import tempfile
import time
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

from ansible_collections.quaywall.docker.plugins.module_utils._audit._checks import CHECKS
from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import SEVERITIES, listed
from ansible_collections.quaywall.docker.plugins.plugin_utils._report import (
    _html,
    _junit,
    _lines,
    _prometheus,
    _sarif,
)
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._model import Host, Report, ReportError, build

FORMATS = ("html", "sarif", "junit", "prometheus", "jsonl")
NAMES = {"html": "audit.html", "sarif": "audit.sarif", "junit": "audit.junit.xml", "jsonl": "audit.jsonl"}

_ARGUMENT_SPEC: t.Mapping[str, t.Mapping[str, t.Any]] = {
    # A validator would copy the results of a whole fleet: what is given here is checked by hand.
    "audits": {"type": "raw"},
    "registered": {"type": "str"},
    "hosts": {"type": "list", "elements": "str"},
    "directory": {"type": "path", "required": True},
    "formats": {"type": "list", "elements": "str", "choices": list(FORMATS), "default": list(FORMATS)},
    "previous": {"type": "path"},
    "title": {"type": "str", "default": "Container firewall audit"},
    "junit_fail_on": {"type": "str", "choices": ["none", *SEVERITIES], "default": "low"},
}
_VALIDATOR = ArgumentSpecValidator(
    t.cast(t.Any, _ARGUMENT_SPEC),
    mutually_exclusive=[("audits", "registered"), ("audits", "hosts")],
    required_one_of=[("audits", "registered")],
)


class ActionModule(ActionBase):  # type: ignore[misc,unused-ignore]
    """The action."""

    _supports_check_mode = True
    _requires_connection = False
    TRANSFERS_FILES = False

    def run(self, tmp: t.Any = None, task_vars: t.Any = None) -> t.Dict[str, t.Any]:
        result: t.Dict[str, t.Any] = super().run(tmp, task_vars)
        # What is made is kept until it is written, and collecting garbage meanwhile took a third of the time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            result.update(self._reported(task_vars or {}))
        finally:
            if collecting:
                gc.enable()
        return result

    def _reported(self, task_vars: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
        """Write the reports; what the task returns."""
        given = dict(self._task.args)
        audits = given.get("audits")
        if audits is not None:
            given["audits"] = True
        checked = _VALIDATOR.validate(given)
        if checked.error_messages:
            raise AnsibleActionFail("%s." % ". ".join(message.rstrip(".") for message in checked.error_messages))
        options = checked.validated_parameters
        if options["registered"] is not None:
            audits = registered(options["registered"], options["hosts"], task_vars)
        elif not isinstance(audits, dict):
            raise AnsibleActionFail(
                "audits is no dictionary: give the result of docker_fw_audit by the name of its host, such as "
                "{host1: {findings: [...]}}."
            )
        if not audits:
            raise AnsibleActionFail("There is no host to report about, and nothing was written.")
        if not options["formats"]:
            raise AnsibleActionFail("formats is an empty list: leave it out for all of them, or name some.")
        try:
            report = self._report(audits, options)
        except ReportError as error:
            raise AnsibleActionFail(str(error)) from None
        directory = os.path.abspath(options["directory"])
        try:
            os.makedirs(directory, exist_ok=True)
        except OSError as error:
            raise AnsibleActionFail(
                "directory: %s cannot be made (%s), so no report was written." % (directory, error.strerror or error)
            ) from None
        files, failures = write(report, directory, options["formats"], options["junit_fail_on"])
        result = {
            "changed": False,
            "files": files,
            "hosts": report.states,
            "summary": report.summary,
            "comparison": report.comparison,
            "msg": _message(report, directory),
        }
        if failures:
            result.update(failed=True, msg="Not every report could be written: %s" % " ".join(failures))
        return result

    def _report(self, audits: t.Mapping[t.Any, t.Any], options: t.Mapping[str, t.Any]) -> Report:
        """:raises ReportError: the earlier run cannot be read."""
        earlier = None
        # Before anything is written: it may be the file that is written now.
        if options["previous"]:
            path = os.path.abspath(options["previous"])
            try:
                with open(path, encoding="utf-8", newline="\n") as file:
                    earlier = _lines.read(file.read(), path)
            except OSError as error:
                raise ReportError("previous: %s cannot be read (%s)." % (path, error.strerror or error)) from None
            except UnicodeDecodeError:
                raise ReportError("previous: %s is no text in UTF-8." % path) from None
        return build(audits, options["title"], time.time(), version(), tuple(CHECKS), earlier)


def registered(name: str, hosts: t.Optional[t.Sequence[str]], task_vars: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    """What each host has in this variable, None where it has none.

    Read as it was registered: Ansible would look for templates in each text of each result, which takes longer than all
    the rest, and there are none in the result of a module.
    """
    hostvars = task_vars["hostvars"]
    found = {}
    for host in task_vars.get("ansible_play_hosts_all", ()) if hosts is None else hosts:
        variables = hostvars.raw_get(host) if host in hostvars else {}
        found[str(host)] = variables.get(name)
    return found


def version() -> str:
    """The collection's version; empty where neither of the files that have it is there."""
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for name, pattern in (("MANIFEST.json", r'"version":\s*"([^"]+)"'), ("galaxy.yml", r"(?m)^version:\s*(\S+)")):
        try:
            with open(os.path.join(top, name), encoding="utf-8") as file:
                found = re.search(pattern, file.read())
        except OSError:
            continue
        if found:
            return found.group(1)
    return ""


def _assets() -> _html.Assets:
    folder = os.path.dirname(os.path.abspath(_html.__file__))
    texts = []
    for name in ("page.html", "page.css", "page.js"):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            texts.append(file.read())
    return _html.Assets(*texts)


def _message(report: Report, directory: str) -> str:
    """What was found, in a line."""
    counts = ["%d %s" % (count, severity) for severity, count in report.summary.items() if count]
    states = report.states
    hosts = ["%d %s" % (count, state) for state, count in states.items() if count]
    text = "%d host%s (%s), %d finding%s%s" % (
        len(report.hosts),
        "" if len(report.hosts) == 1 else "s",
        ", ".join(hosts),
        sum(report.summary.values()),
        "" if sum(report.summary.values()) == 1 else "s",
        " (%s)" % ", ".join(counts) if counts else "",
    )
    if report.comparison is not None:
        found = report.comparison
        text += "; %d new, %d still there, %d gone" % (found["new"], found["still"], found["gone"])
    return "%s. The reports are in %s." % (text, directory)


# Files ---------------------------------------------------------------------------------------------------------------


def write(
    report: Report, directory: str, formats: t.Collection[str], junit_fail_on: str
) -> t.Tuple[t.Dict[str, t.Any], t.List[str]]:
    """Write the reports: the files that are there now by format, and a sentence for each fault that kept others out."""
    files: t.Dict[str, t.Any] = {}
    faults: t.Dict[str, t.List[str]] = {}
    makers: t.Mapping[str, t.Callable[[], t.Iterable[str]]] = {
        "html": lambda: _html.render(report, _assets()),
        "sarif": lambda: _sarif.render(report),
        "junit": lambda: _junit.render(report, tuple(CHECKS), junit_fail_on),
        "jsonl": lambda: _lines.render(report),
    }
    for name, make in makers.items():
        if name in formats and _written(directory, NAMES[name], make, faults):
            files[name] = os.path.join(directory, NAMES[name])
    if "prometheus" in formats:
        files["prometheus"] = []
        for host, file_name in zip(report.hosts, file_names([host.name for host in report.hosts])):
            path = os.path.join("metrics", file_name + ".prom")
            if _written(directory, path, functools.partial(_metrics, report, host), faults):
                files["prometheus"].append(os.path.join(directory, path))
    return files, ["%s: %s." % (listed(names), fault) for fault, names in faults.items()]


def _metrics(report: Report, host: Host) -> t.Iterable[str]:
    yield _prometheus.render(report, host)


def _written(
    directory: str, name: str, make: t.Callable[[], t.Iterable[str]], faults: t.Dict[str, t.List[str]]
) -> bool:
    """Write one file whole or not at all; what was wrong is added to ``faults``, with the names of the files."""
    path = os.path.join(directory, name)
    try:
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".quaywall-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(make())
                # mkstemp makes files for their owner only; a web server or a collector of metrics reads these.
                os.fchmod(file.fileno(), _mode())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        fault = "cannot be written in %s (%s)" % (directory, error.strerror or error)
    except Exception as error:  # noqa: BLE001 -- one format never stops the others
        fault = "not written by a fault of this collection (%r), please report it" % error
    else:
        return True
    faults.setdefault(fault, []).append(name)
    return False


def _mode() -> int:
    """The mode of files that this process makes."""
    mask = os.umask(0)
    os.umask(mask)
    return (stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH) & ~mask


def file_names(names: t.Iterable[str]) -> t.List[str]:
    """A file name for each host: its own name where that is one, else a like one that is no other's."""
    taken: t.Set[str] = set()
    found = []
    for name in names:
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:100] or "host"
        # Some file systems take Host and host for the same.
        if safe != name or safe.lower() in taken:
            safe = "%s-%s" % (safe, hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8])
        taken.add(safe.lower())
        found.append(safe)
    return found
