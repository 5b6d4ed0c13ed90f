"""Forgetting on models: what a run made to forget loses is found, and what is no loss is left in peace."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import binomtest
from torch import Tensor

from benchmarks.evidence._audits import Bench, permuted
from manners.data import plain_text, questions
from manners.evaluate.forgetting import FORGOTTEN, WORSE
from manners.models.branches import Branch, ScalarBranch
from manners.models.pretrained import Pretrained
from manners.models.trunk import States
from manners.ppo.learner import Learner
from manners.results.evaluation import Forgetting
from manners.reward.ensemble import RewardModel
from manners.settings import SFTSettings
from manners.sft.examples import Example, lay_out
from manners.sft.train import split
from manners.sft.train import train as learn_examples
from manners.text import Batch, Packed
from manners.types import PromptUse, Role, Turn
from tests.evaluate.knowing import ANIMALS, SAMPLE, bench, colour, paragraphs
from tests.ppo.scripted import SETTINGS, keep, run
from tests.worlds import tiny_pretrained

RATE = 0.001
AUDITS = 200


class LikesOne(ScalarBranch):
    """A member that likes one token: four times its share of the response."""

    def __init__(self, pretrained: Pretrained) -> None:
        super().__init__(pretrained.trunk, None)
        self.liked = pretrained.tokenizer.encode("e")[0]

    def scores(self, states: States, batch: Batch | Packed) -> Tensor:
        assert isinstance(batch, Batch)
        share: Tensor = ((batch.response_ids == self.liked) & batch.keep).sum(dim=1) / batch.keep.sum(dim=1)
        return share * 4.0


@pytest.fixture(scope="module")
def there() -> Bench:
    return bench()


def trained(there: Bench, folder: Path, rate: float, held: bool = True) -> Branch:
    """The last policy of a run of PPO, held to prose as usual or not."""
    settings = replace(SETTINGS, learning_rate=rate, validate_every=1, kl_stop=1000.0)
    reward = RewardModel((LikesOne(there.pretrained),), (0.0,), (1.0,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "offer", keep)
        return run(settings, there.pretrained, reward, folder, held_to=paragraphs(12, 3) if held else ()).policy


def worse(found: Forgetting) -> set[str]:
    return {check.check for check in found.checks or () if check.verdict == WORSE}


@pytest.mark.long
def test_it_knows_what_it_was_taught_and_without_it_is_at_chance(there: Bench) -> None:
    taught, untaught = (b.audit(v := b.version(b.initial, 0), v).questions for b in (there, bench(0)))
    assert taught is not None and untaught is not None
    assert min(share.after for share in taught.values()) >= 0.9
    assert max(share.after for share in untaught.values()) <= 0.6
    assert [share.chance for share in taught.values()] == pytest.approx([1 / 3, 1 / 3])


@pytest.mark.parametrize("seed", range(3))
def test_a_random_model_answers_the_questions_that_ship_by_chance(seed: int) -> None:
    pretrained = tiny_pretrained(seed=seed)
    there = Bench(pretrained, [], plain_text(PromptUse.EVALUATE)[:3], questions(), SAMPLE)
    (reading,) = [there.reading(there.initial)]
    families = Counter[str]()
    right = Counter[str]()
    for question, scores in zip(there.asked, reading.answers, strict=True):
        assert scores is not None, "it fits into the 256 tokens of this model"
        families[question.family] += 1
        right[question.family] += scores[0] > max(scores[1:])
    for family, count in families.items():
        chance = 1 / 2 if family == "agreement" else 1 / 3
        assert binomtest(right[family], count, chance).pvalue > 0.001, (family, right[family])


@pytest.mark.long
def test_a_run_made_to_forget_is_caught_by_text_by_questions_and_by_what_it_says(there: Bench, tmp_path: Path) -> None:
    """Thirty times the rate and nothing that holds it to prose; of a usual run nothing is shown."""
    before = there.version(there.initial, 0)
    usual = there.audit(before, there.version(trained(there, tmp_path / "usual", RATE), 1))
    assert usual.outcome != FORGOTTEN
    lost = there.audit(before, there.version(trained(there, tmp_path / "fast", 30 * RATE, held=False), 1))
    assert lost.outcome == FORGOTTEN, lost.checks
    assert {"perplexity", "questions"} <= worse(lost), lost.checks
    assert worse(lost) & {"distinct_2", "self_similarity"}, lost.checks


def fine_tuned(there: Bench, folder: Path, rate: float) -> Branch:
    """What examples teach of answers that the model could give before, too."""
    folder.mkdir()
    asked = [(f"the {name}?", f"the {name} is {colour(n)}.") for n, name in enumerate(ANIMALS)]
    talks = [Example((Turn(Role.USER, one), Turn(Role.ASSISTANT, said))) for one, said in asked]
    settings = SFTSettings(epochs=6, batch=4, learning_rate=rate, set_aside=0.2)
    parts = split(lay_out(there.pretrained.renderer, talks), settings, 0)
    return learn_examples(settings, 0, there.pretrained, parts, None, folder).branch


@pytest.mark.long
def test_examples_at_thirty_times_the_rate_are_caught_as_well(there: Bench, tmp_path: Path) -> None:
    before = there.version(there.initial, 0)
    usual = there.audit(before, there.version(fine_tuned(there, tmp_path / "usual", RATE), 1))
    assert usual.outcome != FORGOTTEN, usual.checks
    lost = there.audit(before, there.version(fine_tuned(there, tmp_path / "fast", 30 * RATE), 1))
    assert lost.outcome == FORGOTTEN
    # Variety need not go with it: answers that differ were learned by heart.
    assert {"perplexity", "questions"} <= worse(lost), lost.checks


@pytest.mark.long
def test_of_200_audits_of_what_is_no_loss_at_most_one_in_twenty_alarms(
    there: Bench, tmp_path: Path, times: int
) -> None:
    """Other random numbers of the same model, and labels of a trained policy exchanged by coin."""
    policy = trained(there, tmp_path / "usual", RATE)
    before, after = there.version(there.initial, 0), there.version(policy, 1)
    alarms = Counter[str]()
    for number in range(AUDITS * times):
        kind = ("seeds", "permuted")[number % 2]
        if kind == "seeds":
            pair = before, replace(before, said=there.said(there.initial, number + 2))
        else:
            pair = permuted(before, after, number)
        alarms[kind] += there.audit(*pair).outcome == FORGOTTEN
    assert alarms.total() <= 0.05 * AUDITS * times, alarms
