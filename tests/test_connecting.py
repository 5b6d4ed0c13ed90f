"""What the environment says about connections, where it says what cannot be used."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from manners.audit import fetch
from manners.cli import main
from manners.errors import MannersError
from manners.feedback.judge_endpoint import Budget, Endpoint
from manners.web.upstream import Upstream
from manners.workspace import Workspace

SAID = "no connection can be made as the environment says"


@pytest.mark.parametrize(("name", "value"), [("ALL_PROXY", "nonsense://x"), ("SSL_CERT_FILE", "/no/such/file")])
@pytest.mark.parametrize(
    "connects",
    [
        lambda folder: fetch.fetch("xstest", folder, []),
        lambda _: Endpoint("https://127.0.0.1:9/v1", "judge", "", 1.0, 0, 1, Budget(1, 1)),
        lambda _: Upstream("https://127.0.0.1:9/v1"),
    ],
)
def test_a_proxy_or_a_certificate_that_is_not_there_is_one_sentence(
    name: str, value: str, connects: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(MannersError, match=rf"^{SAID} \(.+\): look at HTTPS_PROXY"):
        connects(tmp_path / "sets")
    assert not list(tmp_path.iterdir())


def test_the_command_says_it_and_no_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    workspace = Workspace.create(tmp_path / "workspace")
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file")
    assert main(["audit", "data", "--fetch", "xstest", "--workspace", str(workspace.root)]) == 1
    assert re.search(rf"^manners: {SAID}", capsys.readouterr().err, re.M)
