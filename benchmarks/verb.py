"""The command line as a function, for the benchmarks beside this file."""

from __future__ import annotations

import json
import subprocess
import sys


def mobilenets(*arguments: object) -> dict:
    """Run a verb with `--json` and give its answer; its messages go to standard error."""
    command = [sys.executable, "-m", "mobilenets", *map(str, arguments), "--json"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command[2:])} ended with {done.returncode}")
    return json.loads(done.stdout)
