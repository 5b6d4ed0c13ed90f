"""All experiments, one after another: `python -m benchmarks.evidence`, or those that are named."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence import FOLDER, ROOT


def names(folder: Path = FOLDER) -> list[str]:
    """Name the experiments: every module of the folder that does not begin with an underscore."""
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def main(chosen: Sequence[str]) -> int:
    """Run each in a process of its own, the others too where one fails; return how many failed."""
    failed = 0
    for name in chosen or names():
        begin = time.perf_counter()
        status = subprocess.run([sys.executable, "-m", f"benchmarks.evidence.{name}"], cwd=ROOT, check=False).returncode
        failed += status != 0
        print(f"{name}: {time.perf_counter() - begin:.0f} s{f', failed ({status})' if status else ''}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
