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

from ansible_collections.quaywall.docker.plugins.module_utils._module._edge import (
    make_docker,
    make_finder,
    make_runner,
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

    return collect(make_runner(module), make_finder(module), make_docker)


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


def leave_reading(
    module: AnsibleModule,
    name: str,
    body: t.Callable[[], t.Dict[str, t.Any]],
    errors: t.Tuple[t.Type[Exception], ...],
) -> None:
    """Do what a module that judges does, and leave with its result, or with a sentence that says what was wrong.

    :param name: the module's.
    :param body: does it all and returns the results, with C(failed).
    :param errors: what is wrong with the options, as one sentence.
    """
    try:
        result = body()
    except errors as error:
        module.fail_json(msg=printable(str(error)))
    except Exception as error:  # noqa: BLE001 -- a traceback is no answer
        module.fail_json(
            msg="Unexpected error in %s: %s. Please report it." % (name, error), exception=traceback.format_exc()
        )
    else:
        failed = bool(result.pop("failed"))
        if module.params["snapshot"] is not None:
            # Ansible repeats all options beside the result, and this one may be the most of it.
            result["invocation"] = {"module_args": dict(module.params, snapshot="(given)")}
        if failed:
            module.fail_json(**result)
        module.exit_json(**result)
