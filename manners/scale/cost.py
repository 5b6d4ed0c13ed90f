"""What workers take, and what travels, in bytes; by the same formulas as the plans of all stages."""

from __future__ import annotations

from manners.models.cost import FLOAT, drawing_bytes, own_bytes, states_bytes
from manners.models.trunk import Trunk
from manners.settings import Settings

LIBRARIES = 700_000_000
"""Of a worker's process before it loads a model: Python, torch, transformers, Ray."""


def handed_over_bytes(trunk: Trunk) -> int:
    """Bytes of what is put into the object store after an update: the policy's own parameters."""
    return own_bytes(trunk, head=True)


def returned_bytes(trunk: Trunk, settings: Settings, rows: int, longest: int) -> int:
    """Bytes that come back of `rows` responses: trunk states, ids and masks, two log-probabilities a token, scores."""
    new_tokens = settings.sample.max_new_tokens
    tokens = rows * (longest + new_tokens)
    return states_bytes(trunk, tokens) + 9 * tokens + rows * FLOAT * (2 * new_tokens + settings.reward.members)


def store_bytes(trunk: Trunk, settings: Settings, rows: int, longest: int) -> int:
    """Bytes that the object store holds at most: weights, the ones before them until they are let go, and a rollout."""
    return 2 * handed_over_bytes(trunk) + returned_bytes(trunk, settings, rows, longest)


def worker_bytes(trunk: Trunk, settings: Settings, rows: int, distinct: int, longest: int, beside: int = 0) -> int:
    """Bytes of a worker that draws `rows` at a time: the model, the policy's branch, the reward's, and drawing.

    `beside` are the policy's branches that are loaded too: that of a start version, if it is not the initial model.
    """
    new_tokens = settings.sample.max_new_tokens
    model = sum(parameter.numel() for parameter in trunk.whole.parameters()) * trunk.whole.dtype.itemsize
    policies = (1 + beside) * handed_over_bytes(trunk)
    scalars = settings.reward.branches * own_bytes(trunk, head=False)
    states = 2 * states_bytes(trunk, rows * (longest + new_tokens))  # as they come, and as they are sent
    drawing = drawing_bytes(trunk, rows, distinct, longest, new_tokens)
    return LIBRARIES + model + policies + scalars + states + drawing
