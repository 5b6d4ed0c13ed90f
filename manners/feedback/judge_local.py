"""A version of the workspace as a judge: its verdict is read off the probabilities of the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from manners.errors import MannersError
from manners.feedback.judge import SHOWN, Reading
from manners.models.branches import Branch
from manners.models.pretrained import Pretrained
from manners.templates import Refused
from manners.text import Rendered, TooLong, collate
from manners.types import Dialogue


@dataclass(frozen=True)
class LocalJudge:
    """A policy that is asked for one letter, a question at a time: what stands beside it in a batch changes nothing."""

    policy: Branch
    pretrained: Pretrained

    @torch.no_grad()
    def ask(self, question: Dialogue) -> Reading:
        """Return P(A) / (P(A) + P(B)) of the next token; unreadable where the question does not fit into the context.

        A shortened question would have lost its rules or its fences.
        """
        renderer, trunk = self.pretrained.renderer, self.pretrained.trunk
        try:
            ids, dropped = renderer.prompt_ids(question, 1)
        except (TooLong, Refused):
            return Reading(None)
        if dropped:
            return Reading(None)
        a, b = self._letters()
        batch = collate([Rendered(ids, (a[0],))], renderer.pad_id).to(trunk.device)
        hidden = self.policy.hidden(trunk.states(batch), batch)
        logits = self.policy.logits(hidden[:, 0])[0].double()
        odds = torch.logsumexp(logits[list(a)], 0) - torch.logsumexp(logits[list(b)], 0)
        return Reading(round(float(torch.sigmoid(odds)), SHOWN))

    def _letters(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens that are A, and those that are B, with a space before it or without."""
        renderer = self.pretrained.renderer
        found = [tuple({ids[0] for text in (x, f" {x}") if len(ids := renderer.text_ids(text)) == 1}) for x in "AB"]
        if not all(found) or set(found[0]) & set(found[1]):
            raise MannersError(
                f"{self.pretrained.name} has no token of its own for each of the letters A and B, by which a judge"
                " answers: name another model, or a server with judge.url"
            )
        return found[0], found[1]
