# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action docker_fw_audit: the host is read by the module docker_fw_snapshot, and judged on the controller.

The judgement needs nothing of the host, and Ansible would send its code to each one, to be compiled there at each task:
that took longer than reading and judging together. With C(async), which is for the host's own work, the module
docker_fw_audit does both there.
"""

from __future__ import annotations

import json
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.quaywall.docker.plugins.module_utils._module._edge import printable
from ansible_collections.quaywall.docker.plugins.module_utils._module._given import (
    answered,
    document_of,
    shown_arguments,
)
from ansible_collections.quaywall.docker.plugins.module_utils._module.docker_fw_audit import (
    ERRORS,
    NAME,
    argument_spec,
    judged,
    wish,
)


class ActionModule(ActionBase):  # type: ignore[misc,unused-ignore]
    """The action."""

    _supports_check_mode = True
    _supports_async = True
    TRANSFERS_FILES = False

    def run(self, tmp: t.Any = None, task_vars: t.Any = None) -> t.Dict[str, t.Any]:
        result: t.Dict[str, t.Any] = super().run(tmp, task_vars)
        if self._task.async_val:
            result.update(
                self._execute_module(
                    module_name="quaywall.docker." + NAME, task_vars=task_vars, wrap_async=self._task.async_val
                )
            )
            return result
        validate: t.Any = self.validate_argument_spec
        _result, options = validate(argument_spec=argument_spec())
        try:
            wanted = wish(options)
        except ERRORS as error:
            raise AnsibleActionFail(printable(str(error))) from None
        given = options["snapshot"]
        if given is None:
            reading = self._execute_module(
                module_name="quaywall.docker.docker_fw_snapshot", module_args={}, task_vars=task_vars
            )
            result.update(reading)
            if "snapshot" not in reading:
                return result
            document = result.pop("snapshot")
        else:
            # The types that come from a host, too: Ansible may hand over its own kinds of text and of lists.
            document = given if isinstance(given, (str, bytes)) else json.dumps(given, default=str)
        result.update(answered(NAME, lambda: judged(document_of(document), wanted), ERRORS))
        result["invocation"] = {"module_args": shown_arguments(options)}
        return result
