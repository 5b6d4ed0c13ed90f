"""What a database refuses is one sentence, whichever of a library's errors it comes as."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import PendingRollbackError

from manners.errors import Unavailable
from manners.store.refusals import refusals


def test_a_connection_that_fails_in_the_middle_of_a_change_is_the_databases() -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        connection.begin()
        connection.invalidate()  # as where PostgreSQL is started anew
        with pytest.raises(Unavailable, match=r"database here refused \(the connection failed"), refusals("here"):
            connection.execute(text("SELECT 1"))
    engine.dispose()


def test_a_change_that_was_given_up_is_our_own_mistake() -> None:
    with pytest.raises(PendingRollbackError), refusals("here"):
        raise PendingRollbackError("This session's transaction has been rolled back due to a previous exception")
