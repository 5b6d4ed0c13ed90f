"""The path of `--base-url`: a proxy takes it off what it passes on, or leaves it on, and both work."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class Prefix:
    """Takes a prefix off the path of a request, where the proxy has left it on."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        """Stand before an application; `prefix` has a slash at its beginning and none at its end, or is empty."""
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on as if the proxy had taken the prefix off."""
        if self._prefix and scope["type"] == "http" and f"{scope['path']}/".startswith(f"{self._prefix}/"):
            path = scope["path"][len(self._prefix) :] or "/"
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)
