"""What versions make of plain text and of questions: the figures that forgetting is found in."""

from __future__ import annotations

from collections.abc import Sequence

from manners.data import Question
from manners.evaluate.forgetting import Reading
from manners.models.branches import Branch
from manners.models.perplexity import answer_logprobs, paragraph_nll
from manners.models.pretrained import Pretrained


def read(
    branches: Sequence[Branch], pretrained: Pretrained, paragraphs: Sequence[str], asked: Sequence[Question]
) -> list[Reading]:
    """Return what each branch makes of the same paragraphs and questions, from one pass of the trunk over each.

    A version that is a whole model of its own, as one that was trained on all layers, is read as the `Branch` of its
    own `Pretrained`; its readings compare with those of another as long as both see the same tokens in the text.
    """
    nll, tokens = paragraph_nll(branches, pretrained, paragraphs)
    answers = answer_logprobs(branches, pretrained, [(q.context, q.answers) for q in asked])
    return [Reading(one, tokens, of_one) for one, of_one in zip(nll, answers, strict=True)]
