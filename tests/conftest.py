"""What the tests share: the data beside the repository, a PostgreSQL server, and a fixed number of threads."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import pytest
from argon2 import PasswordHasher
from hypothesis import HealthCheck, settings
from sqlalchemy import make_url

from manners.store import Store, accounts
from manners.workspace import Workspace
from tests import postgres

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("manners", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("manners")
# A shell that starts the tests in the background has them pass over Ctrl-C, and what they interrupt inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)]
"""What holds a store. A database on the server takes ten times as long to make as a file, so those tests are long."""
HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
"""What passwords are hashed by: a hash that takes 64 MB and a fifth of a second of a core guards nobody here."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make soak` ask for more of the same."""
    parser.addoption("--times", type=int, default=1, help="studies, kills and examples, so many times as many")


def some(among: Iterable[Any], quick: int) -> list[Any]:
    """Return the cases of a test: of all, `quick` far from each other are for every run, and the others long."""
    cases = list(among)
    kept = {round(at * (len(cases) - 1) / max(1, quick - 1)) for at in range(quick)}
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*one, marks=[] if at in kept else pytest.mark.long) for at, one in enumerate(values)]


@pytest.fixture
def times(request: pytest.FixtureRequest) -> int:
    """By what a long test multiplies its studies, kills or examples."""
    return int(request.config.getoption("times"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let `make test` start no PostgreSQL: whoever asks for the server is long."""
    for item in items:
        if "server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.long)


def pytest_collection_finish() -> None:
    """Let torch, where a test has imported it, use one thread: tiny models are faster so, and the same."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def shipped_hasher() -> Iterator[PasswordHasher]:
    """What passwords are hashed by outside of tests; here a hash takes no time."""
    shipped = accounts._hasher
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts, "_hasher", HASHER)
        yield shipped


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with data sets; where there is none the test is skipped, and fails if it runs in CI."""
    path = Path(os.environ.get("MANNERS_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not path.is_dir():
        lack(f"{path} is not there; set MANNERS_DATA to the folder with the data sets")
    return path


def lack(reason: str) -> NoReturn:
    """Skip a test for want of a part; in CI, where every part has to be, let it fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    """A PostgreSQL server, one for all tests of a process."""
    if reason := postgres.why_not():
        lack(reason)
    with postgres.start() as server:
        yield server


@pytest.fixture(params=DATABASES)
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """A function that names one more place for a store: on SQLite a path, on PostgreSQL an empty database's URL."""
    if request.param == "sqlite":
        numbers = itertools.count()
        yield lambda: str(tmp_path / f"store{next(numbers)}.db")
        return
    server: postgres.Server = request.getfixturevalue("server")
    with ExitStack() as databases:
        yield lambda: databases.enter_context(server.database())


@pytest.fixture
def database(new_database: Callable[[], str]) -> str:
    """A place for a store, on SQLite and on PostgreSQL."""
    return new_database()


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with an empty store, to be copied: to make its tables takes longer than what most tests do."""
    file = tmp_path_factory.mktemp("empty") / "store.db"
    Store.create(file).close()
    return file


@pytest.fixture
def new_workspace(empty_file: Path) -> Callable[[Path], Workspace]:
    """A function that makes a workspace with an empty store on SQLite."""

    def make(root: Path) -> Workspace:
        workspace = Workspace.create(root)
        shutil.copyfile(empty_file, workspace.database)
        return workspace

    return make


@pytest.fixture(scope="session")
def empty_database(server: postgres.Server) -> Iterator[str]:
    """The name of a PostgreSQL database with an empty store, to be copied."""
    with server.database() as url:
        Store.create(url).close()
        yield str(make_url(url).database)


@pytest.fixture(params=DATABASES)
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """A function that names one more empty store, on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        file: Path = request.getfixturevalue("empty_file")
        numbers = itertools.count()
        yield lambda: str(shutil.copyfile(file, tmp_path / f"empty{next(numbers)}.db"))
        return
    template: str = request.getfixturevalue("empty_database")
    server: postgres.Server = request.getfixturevalue("server")
    with ExitStack() as databases:
        yield lambda: databases.enter_context(server.database(template))
