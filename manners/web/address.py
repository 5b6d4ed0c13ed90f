"""How browsers reach the server of a workspace, for the commands that print links beside it."""

from __future__ import annotations

from manners.workspace import Workspace, atomic_write

FILE = "serve.address"


def remember(workspace: Workspace, base_url: str) -> None:
    """Write down how browsers reach the server that starts."""
    atomic_write(workspace.root / FILE, base_url + "\n")


def link(workspace: Workspace, path: str) -> dict[str, str]:
    """Return a link as a command prints it: whole, by the address of the last server, or its end and what to do."""
    try:
        address = (workspace.root / FILE).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        address = ""
    if not address.startswith(("http://", "https://")):
        return {"path": path, "note": "the server's address goes before it: `manners serve` prints that, and keeps it"}
    return {"link": f"{address}{path}", "path": path}
