"""Reference answers of the start version: what its answers to one prompt differ by in score is the unit of rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from manners.errors import MannersError
from manners.loop.prompts import answerable, short_enough
from manners.loop.session import Session, digest
from manners.models import versions
from manners.models.answer import answer
from manners.progress import steps
from manners.reward.groups import Split
from manners.store import Newest
from manners.text import Rendered
from manners.types import Dialogue, PromptUse

PROMPTS, ANSWERS = 64, 4
"""Prompts, and answers to each: 64 * (4 - 1) degrees of freedom, by which the unit's standard error is about 5 % for
normal scores."""


@dataclass(frozen=True)
class Reference:
    """Answers of the start version, each with the place of its prompt."""

    rendered: list[Rendered]
    places: list[int]


def draw(session: Session, start: str, split: Split, upto: Newest | None = None) -> Reference:
    """Let the start version answer `PROMPTS`, by the same random numbers each time; see `prompts_of`."""
    prompts = prompts_of(session, split, upto)
    policy = versions.load_policy(session.workspace, start, session.pretrained)
    each = answers_each(prompts)
    sample, seed = session.settings.sample, session.settings.seed
    with steps("answers to measure scores in", each * len(prompts)) as advance:
        drawn = list(answer(policy, session.pretrained, prompts, each, sample, seed, start, on_step=advance))
    # As texts, which is how answers that are compared are read: a special token that was drawn is in none.
    answers = [given for batch in drawn for given in batch.answers]
    rendered = [session.pretrained.renderer.render(given.prompt, given.response) for given in answers]
    return Reference(rendered, [place for batch in drawn for place in batch.places])


def prompts_of(session: Session, split: Split, upto: Newest | None = None) -> list[Dialogue]:
    """Return the prompts of reference answers: those set aside, then those to validate by, then those trained on.

    Of more than enough of a sort it takes those of the smallest hashes, so that most stay when others arrive; with
    `upto`, of those that were there when a run was begun. Raises MannersError where none leaves room for an answer.
    """
    held_out, trained_on = ([pair.prompt for pair in pairs] for pairs in (split.held_out, split.train))
    chosen: dict[Dialogue, None] = {}
    for some in (held_out, answerable(session, PromptUse.VALIDATE, upto), trained_on):
        order = sorted(set(some) - chosen.keys(), key=lambda prompt: digest((session.settings.seed, prompt)))
        for prompt in order:
            if len(chosen) < PROMPTS and short_enough(session, [prompt]).prompts:
                chosen[prompt] = None
    if not chosen:
        raise MannersError(
            "no prompt leaves room for an answer of sample.max_new_tokens, so that there is nothing to measure scores"
            " in; raise model.context, or lower sample.max_new_tokens"
        )
    return list(chosen)


def answers_each(prompts: Sequence[Dialogue]) -> int:
    """Return how often each reference prompt is answered: more often where there are few, for as many in all."""
    return -(-PROMPTS * ANSWERS // len(prompts))
