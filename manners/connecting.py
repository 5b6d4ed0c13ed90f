"""Clients of other servers, as the surroundings say: through which proxy, by whose certificates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from manners.errors import MannersError

Client = TypeVar("Client")


def client(kind: Callable[..., Client], **given: Any) -> Client:
    """Return a client of httpx; raises MannersError where the surroundings name what cannot be used."""
    try:
        return kind(**given)
    except (ImportError, OSError, ValueError) as error:
        raise MannersError(
            f"no connection can be made as the environment says ({error}): look at HTTPS_PROXY, HTTP_PROXY and"
            " ALL_PROXY, and at SSL_CERT_FILE and SSL_CERT_DIR"
        ) from error
