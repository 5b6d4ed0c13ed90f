"""Any two phases are compared, each by its own template and tokenizer, and nothing is decided."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from manners.cli import main
from manners.data import plain_text
from manners.errors import MannersError, UsageError
from manners.loop import stages
from manners.loop.options import EvaluateOptions
from manners.loop.session import Session
from manners.types import PromptUse
from manners.workspace import Workspace
from tests.loop import tiny
from tests.loop.test_chain import described_as, named, taught
from tests.worlds import save_tiny


@pytest.fixture
def begun(model: Path, tmp_path: Path) -> Session:
    session = tiny.project(tmp_path / "project", model)
    taught(session)
    return session


@torch.no_grad()
def bits(session: Session) -> float:
    """By the plain model alone, a paragraph at a time."""
    pretrained, nats, count = session.pretrained, 0.0, 0
    tokenizer: Any = pretrained.tokenizer
    for text in plain_text(PromptUse.EVALUATE):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) > session.settings.model.context:
            continue
        logprobs = pretrained.trunk.whole(torch.tensor([ids])).logits[0].log_softmax(dim=1)
        nats -= float(sum(logprobs[at - 1, ids[at]] for at in range(1, len(ids))))
        count += len(text.encode()) - len(tokenizer.decode(ids[:1]).encode())
    return nats / math.log(2) / count


def test_two_phases_with_one_trunk(begun: Session) -> None:
    facts = stages.compare_phases(begun.workspace, begun.settings, "sft-1", "initial")
    assert (facts["version"], facts["against"], facts["prompts"], facts["source"]) == ("sft-1", "initial", 12, "none")
    assert facts["bits_per_byte_before"] == pytest.approx(bits(begun), rel=1e-4)
    after = Session(begun.workspace, named(begun.settings, "sft-1"))
    assert facts["bits_per_byte_after"] == pytest.approx(bits(after), rel=1e-4)
    change = facts["bits_per_byte_change"]
    assert change["estimate"] == pytest.approx(facts["bits_per_byte_after"] - facts["bits_per_byte_before"])
    assert change["low"] <= change["estimate"] <= change["high"]
    assert begun.workspace.current_policy() == "initial" and not begun.store.rounds()
    # The other way round everything is the opposite.
    turned = stages.compare_phases(begun.workspace, begun.settings, "initial", "sft-1")
    assert turned["bits_per_byte_change"]["estimate"] == pytest.approx(-change["estimate"])
    assert turned["length_change"]["estimate"] == pytest.approx(-facts["length_change"]["estimate"])


def test_phases_of_other_templates_and_vocabularies(begun: Session, tmp_path: Path) -> None:
    other = save_tiny(begun.workspace.models / "pretrain-1", chat_template=None, seed=7)
    shutil.copy(begun.workspace.models / "sft-1" / "version.json", other)
    described_as(begun.workspace, "pretrain-1", name="pretrain-1", kind="pretrain")
    chatml = Session(begun.workspace, named(begun.settings, "pretrain-1", chat_template="chatml"))
    taught(chatml, "sft-2")
    facts = stages.compare_phases(begun.workspace, begun.settings, "sft-2", "pretrain-1")
    assert facts["prompts"] == 12 and facts["bits_per_byte_after"] != facts["bits_per_byte_before"]
    facts = stages.compare_phases(begun.workspace, begun.settings, "sft-2", "sft-1")
    assert facts["prompts"] == 12 and "Bits per byte on plain text change by" in facts["verdict"]


def test_the_crowds_taste_judges_where_it_is_known(copy: Workspace, settings: object, model: Path) -> None:
    chosen = tiny.settings(model)
    taught(Session(copy, chosen))
    facts = stages.compare_phases(copy, chosen, "sft-1", "policy-1")
    assert facts["source"] == "simulated" and 0 <= facts["win_rate"]["low"] <= facts["win_rate"]["high"] <= 1
    turned = stages.compare_phases(copy, chosen, "policy-1", "sft-1")
    assert turned["win_rate"]["estimate"] == pytest.approx(1 - facts["win_rate"]["estimate"])
    assert "By the simulated crowd's taste sft-1" in facts["verdict"]


def test_what_is_no_phase_is_one_sentence(begun: Session, copy: Workspace, model: Path) -> None:
    with pytest.raises(MannersError, match=r"there is no version sft-9"):
        stages.compare_phases(begun.workspace, begun.settings, "sft-9", "initial")
    with pytest.raises(MannersError, match="sft-1 is both of the phases that are compared"):
        stages.compare_phases(begun.workspace, begun.settings, "sft-1", "sft-1")
    with pytest.raises(MannersError, match="reward-1 is a reward model, which scores and writes nothing"):
        stages.compare_phases(copy, tiny.settings(model), "reward-1", "initial")
    for options in (EvaluateOptions(version="sft-1", ask=5), EvaluateOptions(version="sft-1", close=True)):
        with pytest.raises(UsageError, match="VERSION is compared with that of --against"):
            options.check(plan=False, resume=False)
    few = tiny.settings(model, sample=replace(begun.settings.sample, max_new_tokens=10_000))
    with pytest.raises(MannersError, match="takes at least 2 prompts for evaluation that both can answer, and 0 of 12"):
        stages.compare_phases(begun.workspace, few, "sft-1", "initial")


def test_its_command(begun: Session, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(begun.workspace.root)
    assert main(["evaluate", "sft-1", "--against", "initial", "--workspace", root, "--json"]) == 0
    assert '"version": "sft-1"' in capsys.readouterr().out
