"""The web application: which pages there are, and how they say that something went wrong."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from manners.errors import MannersError, Unavailable
from manners.types import AccountRole
from manners.web import auth, chat, dashboard, label, log, openai, people, programs, review, rounds, watch
from manners.web.auth import Anybody, NotSignedIn, sign_in_address
from manners.web.faults import Faults
from manners.web.gate import Gate
from manners.web.prefix import Prefix
from manners.web.sending import Sending
from manners.web.shapes import problem, what_is_wrong
from manners.web.shield import Shield, too_often
from manners.web.site import FOLDER, Site

OPEN = frozenset({"/health", "/sign-in", "/sign-in/{secret}", "/join/{secret}", "/sign-out", "/static"})
"""Paths that need nobody to be signed in; every other route names its roles."""

NOWHERE = (404, 405)
"""What is answered where no route is."""
RETRY_SECONDS = "2"
"""When to come again while the database is away or busy."""


def create_app(site: Site) -> FastAPI:
    """Return the application of a site."""
    # From a path with a slash too many the router would lead to one without the prefix, on a host of its own guess.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, title="manners", redirect_slashes=False)
    app.state.site = site
    app.router.route_class = Gate
    app.add_middleware(Faults)
    app.add_middleware(Sending, limits=site.limits)
    app.add_middleware(Shield, site=site)
    app.add_middleware(watch.Watched, figures=site.figures)
    app.add_middleware(Prefix, prefix=site.prefix)
    app.mount("/static", StaticFiles(directory=FOLDER / "static"), name="static")
    pages = (auth, chat, dashboard, label, log, openai, people, programs, review, rounds, watch)
    routers = [page.router for page in pages]
    for router in routers:
        app.include_router(router)
    app.add_api_route("/", _home, include_in_schema=False)
    app.add_api_route("/health", _health)
    app.add_exception_handler(NotSignedIn, _not_signed_in)
    for kind in (MannersError, RequestValidationError, StarletteHTTPException):
        app.add_exception_handler(kind, _failed)
    _refuse_name_of_a_page(site.prefix, [*app.routes, *(route for router in routers for route in router.routes)])
    return app


def _refuse_name_of_a_page(prefix: str, routes: Iterable[BaseRoute]) -> None:
    """Raise MannersError where a proxy that takes the prefix off would leave requests that could mean two pages."""
    first = prefix.strip("/").split("/")[0]
    if first and first in {one.path.split("/")[1] for one in routes if isinstance(one, Route | Mount)}:
        raise MannersError(
            f"the path of --base-url begins with /{first}, which is the name of a page: where a proxy takes it off, no"
            " request says which of the two it means; choose another, like /manners"
        )


async def _home(visitor: Anybody, request: Request) -> Response:
    """Lead everybody to what they are here for."""
    site: Site = request.app.state.site
    looks = visitor.role is AccountRole.VIEWER
    return RedirectResponse(f"{site.prefix}/{'dashboard' if looks else 'label'}", 303)


async def _health() -> dict[str, str]:
    """Say that the server is there."""
    return {"status": "ok"}


async def _not_signed_in(request: Request, error: Exception) -> Response:
    site: Site = request.app.state.site
    if _wants_page(request):
        return RedirectResponse(sign_in_address(site, request), 303)
    assert isinstance(error, NotSignedIn)
    return _error(request, 401, error.message, error.code)


async def _failed(request: Request, error: Exception) -> Response:
    """Say in one sentence what went wrong: as a page to a browser that asked for one, as JSON to a program."""
    match error:
        case StarletteHTTPException():
            if error.status_code in NOWHERE and not hasattr(request.state, "visitor"):
                site: Site = request.app.state.site
                if (refusal := too_often(site, request)) is not None:  # no door has counted it
                    return refusal
            return _error(request, error.status_code, str(error.detail), headers=dict(error.headers or {}))
        case RequestValidationError():
            param, message, too_many = what_is_wrong(error)
            return _error(request, 422 if too_many else 400, message, param=param)
        case Unavailable():
            return _error(request, 503, str(error), headers={"Retry-After": RETRY_SECONDS})
    return _error(request, 400, str(error))


def _error(
    request: Request,
    status: int,
    message: str,
    code: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    if _wants_page(request):
        site: Site = request.app.state.site
        title = HTTPStatus(status).phrase
        page = site.page(request, "error.html.j2", status=status, title=title, message=message)
        page.headers.update(headers or {})
        return page
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse(problem(message, kind, param, code), status, headers)


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/v1/")
