"""Which answers were liked least: by a judge that can be asked, by scores, or by nobody."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from manners.evaluate.judged import Answered, Compared, liked_least
from manners.feedback.judges import VerdictJudge
from manners.types import Answer, Dialogue, Response
from tests.evaluate.test_promotion import Marks

Make = Callable[..., Answer]
NOBODY = VerdictJudge(())
"""People who were asked about other comparisons than these."""


@dataclass(frozen=True)
class Side:
    """Texts and scores of a version, by prompt."""

    version: str
    texts: list[list[str]]
    scores: list[list[float]]

    def answered(self, answer: Make) -> Answered:
        answers = [[answer(f"p{i}", text, self.version) for text in some] for i, some in enumerate(self.texts)]
        return Answered(self.version, answers, self.scores, 0.0)


OLD = Side("initial", [["a", "b!"], ["c!", "d"], ["e", "same"], ["x", "x"]], [[1.0, 1.0]] * 4)
NEW = Side(
    "policy-1",
    [["A", "B"], ["C", "D"], ["E!", " same "], ["x", "x"]],
    [[0.0, 3.0], [-4.0, 2.0], [0.5, -9.0], [0.0, 0.0]],
)


def test_without_a_judge_scores_say_which_and_of_a_prompt_only_the_worst(answer: Make) -> None:
    """Leads of the old answers: 1 and -2, 5 and -1, 0.5 (10 is of two answers that say the same), none."""
    old, new = OLD.answered(answer), NEW.answered(answer)
    assert liked_least(old, new, NOBODY, 12) == [(1, 0), (0, 0), (2, 0)]
    assert liked_least(old, new, NOBODY, 2) == [(1, 0), (0, 0)]


def test_a_judge_goes_before_scores(answer: Make) -> None:
    """Who counts exclamation marks: the second answer to the first prompt lost, and the first to the second, by far."""
    assert liked_least(OLD.answered(answer), NEW.answered(answer), Marks(), 12) == [(1, 0), (0, 1), (2, 0)]


def test_where_neither_has_an_opinion_nothing_is_said(answer: Make) -> None:
    unscored = [[math.nan, math.nan]] * 4
    old, new = (
        Answered(one.version, one.answers, unscored, 0.0) for one in (OLD.answered(answer), NEW.answered(answer))
    )
    assert liked_least(old, new, NOBODY, 12) is None
    assert liked_least(old, new, Marks(), 2) == [(0, 1), (1, 0)]


def test_a_judge_is_asked_about_the_old_answer_first(answer: Make) -> None:
    """What is worst is where the old one is preferred: a judge that likes every new one finds its nearest miss."""

    @dataclass(frozen=True)
    class Newer(Marks):
        def prefers(self, prompt: Dialogue, a: Response, b: Response) -> float:
            assert (a.author, b.author) == ("initial", "policy-1")
            return 0.2 if prompt[-1].text == "p2" else 0.1

    found = liked_least(OLD.answered(answer), NEW.answered(answer), Newer(), 1)
    assert found == [(2, 0)]


def test_the_answers_have_a_name_that_others_do_not_share(answer: Make) -> None:
    """What they hang on is in it: the texts of both versions, and what they answer; not who judges, or the scores."""
    old, new = OLD.answered(answer), NEW.answered(answer)
    name = Compared(old, old, new).drawn
    assert name == Compared(new, old, new).drawn == Compared(old, old, replace(new, scores=OLD.scores)).drawn
    fewer = (replace(old, answers=old.answers[:3]), replace(new, answers=new.answers[:3]))
    elsewhere = [replace(new.answers[0][0], prompt=new.answers[1][0].prompt), *new.answers[0][1:]]
    others = [(new, old), (old, old), fewer, (old, replace(new, answers=[elsewhere, *new.answers[1:]]))]
    assert len({name, *(Compared(old, *both).drawn for both in others)}) == 5
