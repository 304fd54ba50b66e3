# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Where modules that judge get what they judge: this host, or a snapshot that somebody hands over."""

from __future__ import annotations

import json
import traceback
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils import _programs
from ansible_collections.quaywall.docker.plugins.module_utils._module._edge import (
    make_docker,
    make_finder,
    printable,
)
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import SnapshotError

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

#: Collects what there is to judge: a snapshot's JSON document.
Collector = t.Callable[["AnsibleModule"], t.Mapping[str, t.Any]]


def collect_here(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    """The snapshot of this host."""
    # A snapshot that is given needs none of this.
    from ansible_collections.quaywall.docker.plugins.module_utils._collect import collect

    return collect(_programs.run, make_finder(module), make_docker)


def document_of(given: t.Any) -> t.Any:
    """The snapshot as it was given: data, or JSON text.

    :raises SnapshotError: it is no JSON.
    """
    if not isinstance(given, (str, bytes)):
        return given
    try:
        return json.loads(given)
    except ValueError as error:
        raise SnapshotError(
            "no JSON (%s)" % error,
            "snapshot is %s: give what an earlier run with return_snapshot returned, for instance with "
            "lookup('ansible.builtin.file', 'host7.json') | from_json.",
        ) from None


def answered(
    name: str, body: t.Callable[[], t.Dict[str, t.Any]], errors: t.Tuple[t.Type[Exception], ...]
) -> t.Dict[str, t.Any]:
    """What a judgement answers, or a sentence that says what was wrong.

    :param name: of the module.
    :param body: does it all and returns the results, with C(failed).
    :param errors: what is wrong with the options, as one sentence.
    :returns: the results, with C(failed).
    """
    try:
        return body()
    except errors as error:
        return {"failed": True, "msg": printable(str(error))}
    except Exception as error:  # noqa: BLE001 -- a traceback is no answer
        return {
            "failed": True,
            "msg": "Unexpected error in %s: %s. Please report it." % (name, error),
            "exception": traceback.format_exc(),
        }


def shown_arguments(options: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    """The options as they may be repeated beside a result: a snapshot may be the most of it."""
    return dict(options, snapshot="(given)") if options.get("snapshot") is not None else dict(options)


def leave_reading(
    module: AnsibleModule,
    name: str,
    body: t.Callable[[], t.Dict[str, t.Any]],
    errors: t.Tuple[t.Type[Exception], ...],
) -> None:
    """Leave a module that judges with what is :func:`answered`."""
    result = answered(name, body, errors)
    # Ansible repeats the options unless they are there.
    result["invocation"] = {"module_args": shown_arguments(module.params)}
    if result.pop("failed"):
        module.fail_json(**result)
    module.exit_json(**result)
