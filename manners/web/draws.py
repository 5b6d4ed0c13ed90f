"""What is drawn from what a browser knows as well: with a secret of the workspace, so that nobody else can draw it too.

The secret stays over a restart, so that what was drawn before is drawn alike. It is in no backup: where it is lost
another one is made, and from then on draws are others.
"""

from __future__ import annotations

import hmac
import os
import secrets
import threading

from manners.workspace import Workspace

FILE = "draws.secret"
SECRET_BYTES = 32
_making = threading.Lock()
"""One server has a workspace, and two of its threads may want the secret first."""


def secret_of(workspace: Workspace) -> bytes:
    """Return the workspace's secret, which its owner alone can read; one that is not there, or not whole, is made."""
    file = workspace.root / FILE
    with _making:
        secret = file.read_bytes() if file.is_file() else b""
        if len(secret) != 2 * SECRET_BYTES:
            secret = secrets.token_hex(SECRET_BYTES).encode()
            file.unlink(missing_ok=True)  # as it was, others might read it
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as made:
                made.write(secret)
    return secret


def drawn(secret: bytes, what: str) -> bytes:
    """Return 32 bytes that follow from a secret and from what is drawn for (HMAC-SHA-256)."""
    return hmac.digest(secret, what.encode(), "sha256")
