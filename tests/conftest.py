"""What the tests share: the data beside the repository, and a fixed number of threads."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("manners", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("manners")


def pytest_collection_finish() -> None:
    """Let torch, where a test has imported it, use one thread: tiny models are faster so, and the same."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with data sets; where there is none the test is skipped, and fails if it runs in CI."""
    path = Path(os.environ.get("MANNERS_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not path.is_dir():
        reason = f"{path} is not there; set MANNERS_DATA to the folder with the data sets"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
