"""How long the verbs that need no torch take to answer, and how long importing torch takes.

    python benchmarks/startup.py

Prints the median of ten starts in seconds, and the ratio to a start that imports torch.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

LIMIT = 0.4
COMMANDS = (
    ["cost", "1.0-224", "0.5-160"],
    ["pick", "--max-mult-adds", "150M"],
    ["pick", "--max-mult-adds", "150M", "--any"],
    ["paper", "table", "4"],
    ["paper", "table", "9"],
    ["--help"],
    ["--version"],
)


def seconds(command: list[str], repeats: int = 10) -> float:
    """Median wall time of a command, after one start that fills the disk cache."""
    spent = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        spent.append(time.perf_counter() - started)
    return statistics.median(spent[1:])


def main() -> None:
    torch = seconds([sys.executable, "-c", "import torch"], repeats=3)
    print(f"import torch: {torch:.2f} s")
    for command in COMMANDS:
        spent = seconds([sys.executable, "-m", "mobilenets", *command])
        verdict = "under" if spent < LIMIT else "OVER"
        print(
            f"mobilenets {' '.join(command):40} {spent:.2f} s, {verdict} {LIMIT} s, "
            f"{spent / torch:.2f} of importing torch"
        )


if __name__ == "__main__":
    main()
