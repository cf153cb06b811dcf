"""Installs the project into this Python's environment: `python tools/install.py '.[dev]'`.

By uv, which fetches and unpacks in parallel; by pip where uv cannot be had or fails, as with an index that only pip's
configuration can reach. What pip knows of indexes is handed on to uv for this one command.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence

PIP = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check"]   # warnings about indexes hide what matters
HANDED_ON = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS",
             "trusted-host": "UV_INSECURE_HOST", "cert": "SSL_CERT_FILE"}


def stage(what: str, command: Sequence[str], **told: str) -> bool:
    """Runs one command and says what it does and how long it took; whether it succeeded."""
    print(f"aigc: {what} ...", end=" ", flush=True)
    started = time.monotonic()
    code = subprocess.run(command, env=os.environ | told, check=False).returncode
    print(f"{time.monotonic() - started:.0f} s" if code == 0 else f"failed with exit code {code}", flush=True)
    return code == 0


def indexes(listed: str) -> dict[str, str]:
    """What `pip config list` says about indexes, in uv's variables; those that the user has set stay."""
    found: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        name = HANDED_ON.get(key.rpartition(".")[2])
        if name is not None and name not in os.environ:
            separator = "," if name == "UV_FIND_LINKS" else " "
            found[name] = separator.join(value.strip("'\"").replace("\\n", " ").split())
    if "UV_INDEX" in found:
        found.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # pip looks for the version in all of them, too
    return found


def main(spec: str) -> int:
    """Returns the exit code."""
    what = ["--constraint", "constraints.txt", "--editable", spec]
    if stage("getting uv", [*PIP, "install", "--constraint", "constraints.txt", "uv"]):
        listed = subprocess.run([*PIP[:3], "config", "list"], capture_output=True, text=True, check=False).stdout
        uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable]
        if sys.dont_write_bytecode:                        # otherwise the first start compiles what it imports, once
            uv.append("--compile-bytecode")
        if stage(f"installing {spec} by uv", [*uv, *what], **indexes(listed)):
            return 0
    return 0 if stage(f"installing {spec} by pip, which takes minutes", [*PIP, "install", *what]) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
