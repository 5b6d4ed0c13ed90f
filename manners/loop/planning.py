"""What a training stage will take, in memory and work, said before it starts."""

from __future__ import annotations

import shutil

from manners.loop.session import Facts, Session
from manners.models.trunk import layer_list
from manners.reward.data import label, set_aside
from manners.reward.train import CURVE_SHARES
from manners.types import PromptUse

FLOAT = 4
"""Bytes of a float32."""


def plan_reward(session: Session) -> Facts:
    """Memory and forward-backward work of reward training; raises MannersError when there is nothing to learn from."""
    settings, sizes = session.settings.reward, _sizes(session)
    pairs = label(session.store.comparisons()).pairs
    split = set_aside(pairs, settings.set_aside, session.settings.seed)
    learned = min(settings.limit or len(split.train), len(split.train))
    runs = settings.members * [learned] + [round(share * learned) for share in CURVE_SHARES if settings.curve]
    tokens = 2 * len(pairs) * session.pretrained.renderer.context
    member = sizes["branch"] * FLOAT
    return {
        "stage": "reward",
        "comparisons": len(pairs),
        "trained_on": learned,
        "optimizer_steps": settings.epochs * sum(-(-run // settings.batch) for run in runs),
        "pair_passes": settings.epochs * sum(runs),
        "memory_bytes": {
            "model": sizes["whole"] * FLOAT,
            "members": settings.members * member,
            "gradient_and_adam": 3 * member,
            "activations": _activations(session, rows=16),
        },
        "trunk_states_on_disk_bytes_at_most": tokens * sizes["width"] * FLOAT,
        "disk_free_bytes": shutil.disk_usage(session.workspace.root).free,
    }


def plan_policy(session: Session) -> Facts:
    """Memory and steps of PPO."""
    ppo, sizes = session.settings.ppo, _sizes(session)
    branch = sizes["branch"] * FLOAT
    trained = 1 if ppo.value == "shared" else 2
    tokens = session.pretrained.renderer.context
    return {
        "stage": "ppo",
        "episodes": ppo.updates * ppo.batch,
        "optimizer_steps": ppo.updates * ppo.epochs * -(-ppo.batch // ppo.minibatch),
        "prompts": len(session.store.prompts(PromptUse.TRAIN)),
        "memory_bytes": {
            "model_and_reference": sizes["whole"] * FLOAT,
            "policy_and_value": trained * branch,
            "gradient_and_adam": 3 * trained * branch,
            "best_version_kept": branch,
            "reward_members": session.settings.reward.members * branch,
            "rollout_states_at_most": ppo.batch * tokens * sizes["width"] * FLOAT,
            "activations": _activations(session, rows=16),
        },
    }


def _sizes(session: Session) -> dict[str, int]:
    trunk = session.pretrained.trunk
    branch = sum(p.numel() for p in trunk.whole.parameters() if id(p) in trunk.own)
    return {"whole": session.pretrained.parameters, "branch": branch, "width": trunk.width}


def _activations(session: Session, rows: int) -> int:
    """Rough bytes that a micro-batch keeps for its backward: about 16 widths a token and layer, and two logit rows."""
    trunk = session.pretrained.trunk
    layers = len(layer_list(trunk.whole)) - trunk.cut
    tokens = min(256, session.pretrained.renderer.context)
    vocabulary = int(trunk.whole.config.get_text_config().vocab_size)
    new = min(tokens, session.settings.sample.max_new_tokens)
    return rows * tokens * layers * 16 * trunk.width * FLOAT + 2 * rows * new * vocabulary * FLOAT
