"""What a database refuses for reasons outside the program, said in one sentence with what to do about it."""

from __future__ import annotations

import re
import sqlite3
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DataError, DBAPIError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft

from manners.errors import MannersError, Unavailable

ADVICE = {
    r'database ".*" does not exist': "make it with `createdb`, or correct its name in the URL",
    r"permission denied|read-?only": "have its owner grant this user the right to write and to create tables in it",
    r'role ".*" does not exist|password|authentication|pg_hba': (
        "check the user in the URL, and the password in ~/.pgpass, in PGPASSFILE's file or in PGPASSWORD"
    ),
    r"too many (clients|connections)|connection slots": "close what else uses it, or raise its max_connections",
    r"resolve host|connection (failed|is bad)": "check host and port in the URL, and that the server runs",
    r"not a database": "name the SQLite file that `manners init` made, or put a backup back with `manners restore`",
    r"malformed|disk I/O error|no such (table|column)": "it is damaged: put a backup back with `manners restore`",
}
"""What to do, by what the database says; the first that fits."""
OTHERWISE = "check that it can be reached, that its disk has room and that no other program holds it"
_NO_RIGHTS = ("42501", "25006")
"""PostgreSQL's codes for a right that is missing, and for a database that takes no writes."""
_TOO_LARGE = "54"
"""How its codes begin for what is larger than it can hold or index."""
DAMAGE = ("not a database", "malformed")
"""What SQLite says of a file that something else has written into."""


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """Turn what the database called `name` refuses into a MannersError; what is our own mistake passes through.

    What it can hold nowhere is the fault of what was sent; of all else the sender is innocent, so that is Unavailable.
    """
    try:
        yield
    except NoConnectionLeft as error:
        raise Unavailable(f"All connections to {name} are in use; try again when it is less busy.") from error
    except PendingRollbackError as error:
        if "reconnect" not in str(error):
            raise
        raise _refused(name, "the connection failed in the middle of a change") from error
    except OverflowError as error:
        if "SQLite" not in str(error):
            raise
        raise MannersError(f"The database {name} cannot hold a number as large as that; leave it out.") from error
    except sqlite3.Error as error:
        raise _refused(name, str(error)) from error
    except (ValueError, KeyError) as error:
        if not _was_read(error):
            raise
        raise _refused(name, "database disk image is malformed: a row holds what was never written") from error
    except DBAPIError as error:
        said = str(error.orig).strip().partition("\n")[0]
        if isinstance(error, DataError) or _code(error).startswith(_TOO_LARGE):
            raise MannersError(f"The database {name} cannot hold this ({said}); leave out what it names.") from error
        if not _is_outside(error, said):
            _leave_out_the_row(error, said)
            raise
        raise _refused(name, said) from error


def _leave_out_the_row(error: DBAPIError, said: str) -> None:
    """Keep what an error says to its first line: below it PostgreSQL quotes the row, which may be somebody's words."""
    if isinstance(error.orig, Exception):
        error.orig.args = (said,)
    error.args = (said,)


def _was_read(error: Exception) -> bool:
    """Return whether an error is of the database's driver, or of what a row was made of, on its way to one of ours."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1] in ("enum", "manners.store.records") or any(name.startswith("sqlalchemy.") for name in frames)


def _refused(name: str, said: str) -> Unavailable:
    advice = next((advice for pattern, advice in ADVICE.items() if re.search(pattern, said)), OTHERWISE)
    return Unavailable(f"The database {name} refused ({said}); {advice}.")


def _is_outside(error: DBAPIError, said: str) -> bool:
    return (
        isinstance(error, OperationalError)
        or error.connection_invalidated
        or _code(error) in _NO_RIGHTS
        or any(word in said for word in DAMAGE)
    )


def _code(error: DBAPIError) -> str:
    """Return PostgreSQL's code for an error, nothing where it has none."""
    return str(getattr(error.orig, "sqlstate", None) or "")
