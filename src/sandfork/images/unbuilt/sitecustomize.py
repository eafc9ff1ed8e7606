"""Ends pip's build processes that would run anything but the backend beside this: a package may bring one of its own.

pip (pyproject_hooks) says in variables which backend such a process is for, and where in the package that is.
"""

from __future__ import annotations

import os
import sys

_OURS = "setuptools.build_meta"


def refused(environ: dict[str, str]) -> str:
    """Return what of a package would be run in a process with these variables; "" when nothing."""
    for name, value in environ.items():
        if name.endswith("_BACKEND_PATH") and value:
            return f"its own backend in {value}"
        if name.endswith("_BUILD_BACKEND") and value.partition(":")[0] != _OURS:
            return value
    return ""


if found := refused(dict(os.environ)):
    sys.stderr.write(f"this package has to be built, which is not done here: by {found}\n")
    sys.stderr.flush()
    os._exit(1)  # what else is raised here is only printed, and the process goes on
