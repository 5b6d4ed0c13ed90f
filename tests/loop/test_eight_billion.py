"""A model of eight billion parameters on one card, on paper: the plan counts what arithmetic by hand does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx.experimental import _config as unknown_shapes
from transformers import AutoModelForCausalLM, LlamaConfig, masking_utils

from manners.loop import learning, stages
from manners.loop import session as session_module
from manners.loop.plan import OVERHEAD
from manners.loop.round import PPO, REWARD
from manners.loop.session import Session
from manners.loop.stage import Stage
from manners.models import trunk as trunk_module
from manners.models.pretrained import Pretrained
from manners.models.trunk import grow_trunk
from manners.settings import ModelSettings
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, PromptUse, Response, Verdict
from tests.loop import tiny
from tests.worlds import tiny_renderer

LAYERS, WIDTH, INNER, HEADS, GROUPS, WORDS = 32, 4096, 14_336, 32, 8, 128_256
"""Those of Llama 3 8B."""
TRAINED, BYTES = 4, 2
"""Layers above the cut; bytes of a bfloat16."""
LAYER = 2 * WIDTH * WIDTH + 2 * WIDTH * (WIDTH // HEADS * GROUPS) + 3 * WIDTH * INNER + 2 * WIDTH
"""Parameters: queries and output, keys and values, gate, up and down, two norms."""
HEAD = WORDS * WIDTH
POLICY = TRAINED * LAYER + WIDTH + HEAD
"""Parameters of a policy's branch: its layers, the last norm, and the head, which is not tied."""
SCORED = POLICY - HEAD
STATE = 2 + 4 + 4 + 8
"""Bytes beside a trained bfloat16: its gradient, that as it is summed, the float32 weight, two moments."""
PROMPT, RESPONSE = 500, 524
CARD = 80_000_000_000


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A project with comparisons, for a model without numbers."""
    # Without numbers it can be said neither whether a mask hides anything nor where it does.
    monkeypatch.setattr(masking_utils, "is_tracing", lambda *_: True)
    monkeypatch.setattr(trunk_module, "_hashes", lambda *_: ("paper", "paper"))
    monkeypatch.setattr(learning, "longest_exchange", lambda *_: (PROMPT, RESPONSE))
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=8192,
    )

    def load(chosen: ModelSettings, *_: object) -> Pretrained:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        trunk = grow_trunk(model, TRAINED)
        trunk = replace(trunk, recompute=chosen.recompute, keeps_states=chosen.trunk_states == "kept")
        return Pretrained("8b", trunk, tiny_renderer(context=PROMPT + RESPONSE), "")

    monkeypatch.setattr(session_module, "load", load)
    session = tiny.project(tmp_path / "project", tmp_path / "8b")
    session.store.add_comparisons(
        Comparison(
            prompt=prompt,
            left=Response("one", "someone"),
            right=Response("other", "someone"),
            asked_how=AskedHow.IMPORTED,
            verdicts=(Verdict(choice, Annotator("anna", AnnotatorKind.HUMAN)),),
        )
        for prompt, choice in zip(tiny.PROMPTS[PromptUse.TRAIN], [Choice.LEFT, Choice.RIGHT] * 12, strict=True)
    )
    shapes: Any = unknown_shapes
    with shapes.patch(meta_nonzero_assume_all_nonzero=True):
        yield session


def planned(session: Session, stage: Stage, **model: Any) -> dict[str, Any]:
    """What `--plan` says."""
    settings = session.settings
    reward = replace(settings.reward, members=3, curve=True)
    chosen = replace(settings, model=replace(settings.model, dtype="bfloat16", **model), reward=reward)
    return stages.perform(session.workspace, chosen, stage, plan=True)


def test_the_plan_of_reward_training_is_the_arithmetic(session: Session) -> None:
    plan = planned(session, REWARD)
    little = planned(session, REWARD, recompute=True)
    without_disk = planned(session, REWARD, trunk_states="recomputed")
    memory = plan["memory_bytes"]
    members = 3 + 2  # two more for the learning curve
    assert memory["model"] == BYTES * (LAYERS * LAYER + 2 * HEAD + WIDTH) == 16_060_522_496
    assert memory["members"] in (members * BYTES * SCORED, members * BYTES * POLICY)
    assert memory["gradient_and_adam"] == STATE * SCORED
    # States: two answers a pair, each with its prompt at most; two bytes a number.
    pairs = plan["comparisons"]
    assert plan["trunk_states_on_disk_bytes_at_most"] == 2 * pairs * (PROMPT + RESPONSE) * WIDTH * BYTES
    assert without_disk["trunk_states_on_disk_bytes_at_most"] == 0
    # A trunk's forward of 28 layers, a third of what they would take with their backward, beside 4 layers with theirs.
    assert (plan["work_with_trunk"], without_disk["work_with_trunk"]) == (1.0, pytest.approx(1 + 28 / 12, abs=0.01))
    # Four layers keep four times what one does; computed again, one does, and each keeps what it was given.
    tokens = 4 * (PROMPT + RESPONSE)
    given = TRAINED * tokens * WIDTH * BYTES
    backward = tokens * (4 * WIDTH + 3 * INNER) * BYTES
    much, few = (p["memory_bytes"]["forward_and_backward"] - backward for p in (plan, little))
    assert few == pytest.approx(much / TRAINED + given, rel=1e-6)
    per_token = kept_by_a_layer(PROMPT + RESPONSE)
    assert much / TRAINED / tokens == pytest.approx(per_token, rel=0.01)
    assert memory["model"] + plan["memory_needed_bytes"] < CARD
    total = sum(size for name, size in little["memory_bytes"].items() if name not in ("model", "overhead"))
    assert little["memory_needed_bytes"] == OVERHEAD + total


def kept_by_a_layer(columns: int) -> int:
    """Bytes a token that a layer keeps for its backward, attention written out in float32."""
    norms = 2 * (4 * WIDTH + BYTES * WIDTH)  # the input in float32, and what its weight multiplies
    attention = 3 * 4 * WIDTH + 4 * HEADS * columns  # queries, keys and values, each for all heads; weights
    inner = 4 * BYTES * INNER  # gate, what its bend makes of it, up, and the product of the two
    products = 3 * BYTES * WIDTH  # what goes into attention, out of it, and into what follows
    return norms + attention + inner + products


def test_the_plan_of_ppo_is_the_arithmetic(session: Session) -> None:
    plan, little = (planned(session, PPO, recompute=on) for on in (False, True))
    memory = plan["memory_bytes"]
    assert memory["policy_and_value"] == memory["best_version_kept"] == BYTES * POLICY
    assert memory["gradient_and_adam"] == STATE * POLICY
    tokens, rest = divmod(memory["rollout_states"], session.settings.ppo.batch * WIDTH * BYTES)
    assert rest == 0 and 16 < tokens < 64, "short prompts, and eight new tokens"
    assert memory["model"] + plan["memory_needed_bytes"] < CARD
    assert little["memory_needed_bytes"] < plan["memory_needed_bytes"]
