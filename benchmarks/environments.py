"""The peers' virtual environments: made when first needed, and anew when their pins change."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / ".venvs"
PINS = Path(__file__).parent / "peers"
TORCH = "torch==2.13.0"
"""The version that manners itself is measured with."""


def interpreter(peer: str) -> Path:
    """Return the Python of a peer's environment, with what `peers/<peer>.txt` pins installed."""
    folder, pins = FOLDER / peer, PINS / f"{peer}.txt"
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    wanted = f"{TORCH}\n{pins.read_text(encoding='utf-8')}"
    if installed.is_file() and installed.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {peer} into {folder} (a few minutes, once)", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    # torch goes in alone and first: whichever build of it this machine can have, the rest is chosen around it.
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, "-r", str(pins)], check=True)
    installed.write_text(wanted, encoding="utf-8")
    return python
