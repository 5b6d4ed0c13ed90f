"""What limits a weight limits a part in training: the gradients of a whole pass are shared out as the weights are."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from manners.direct import train as direct
from manners.direct.learner import Course, Done, Learner, Referred
from manners.models.pretrained import Pretrained
from manners.reward import train as module
from manners.reward.labelled import Counts, LabelledPair
from manners.reward.pairs import ReadPairs
from manners.reward.passes import Job
from manners.reward.train import Member
from manners.reward.verdicts import label
from manners.settings import RewardSettings, Settings
from manners.training import Training
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Response, Role, Turn, Verdict
from tests.worlds import tiny_pretrained

SIDES = Response("a", "x"), Response("b", "x")


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


class Known(ReadPairs):
    """Pairs whose margin is one number a party, in favour of what was chosen: all gradients of a party are alike."""

    def __init__(self, pairs: Sequence[LabelledPair]) -> None:
        self.pairs = pairs
        self.party = [pair.prompt[0].text.partition(" ")[0] for pair in pairs]
        self.names = sorted(set(self.party))
        self.liked = nn.Parameter(torch.zeros(len(self.names)))

    def micro_batches(self, batch: Sequence[int]) -> list[list[int]]:
        return [list(batch[:5]), list(batch[5:])] if len(batch) > 5 else [list(batch)]

    def scores(self, member: Any, which: Sequence[int]) -> Tensor:
        turned = torch.tensor([1.0 if self.pairs[i].counts.left else -1.0 for i in which])
        left = self.liked[[self.names.index(self.party[i]) for i in which]] * turned
        return torch.stack([left, torch.zeros_like(left)], dim=1)

    def shares(self, training: Training, batches: int, step: Callable[[], object]) -> dict[str, float]:
        """Sum the gradients of as many steps, none of which is taken, and return each party's part of them."""
        total = torch.zeros(len(self.names))

        def gather() -> None:
            assert self.liked.grad is not None
            total.add_(self.liked.grad)

        vars(training.optimiser)["step"] = gather
        for _ in range(batches):
            step()
        return dict(zip(self.names, (total / total.sum()).tolist(), strict=True))


def of_reward(world: Pretrained, data: Known, batch: int) -> dict[str, float]:
    settings = RewardSettings(batch=batch)
    member = Member(settings, Job(0, list(range(len(data.pairs))), 1), world, data)
    member.training = Training([data.liked], 0.1, max_norm=1.0)
    return data.shares(member.training, len(member.batches), lambda: module._step(member, data))


def of_direct(world: Pretrained, data: Known, batch: int) -> dict[str, float]:
    settings = Settings()
    settings = replace(settings, dpo=replace(settings.dpo, batch=batch))
    learn = Referred(data, torch.zeros(len(data.pairs), 2))
    course = Course(settings, world, learn, learn, cast(Any, None), None)
    learner = Learner(course, range(len(data.pairs)), 1, 0)
    learner.training = Training([data.liked], 0.1, max_norm=1.0)
    going = cast(Any, SimpleNamespace(advance=lambda count: None))
    return data.shares(learner.training, len(learner.batches), lambda: direct._step(course, learner, Done(), going))


def said(who: Sequence[Annotator], party: str, count: int, how: AskedHow) -> list[Comparison]:
    """Verdicts on as many prompts, for either side in turn."""
    return [
        Comparison(
            (Turn(Role.USER, f"{party} {n}?"),),
            *SIDES,
            how,
            verdicts=(Verdict((Choice.LEFT, Choice.RIGHT)[n // len(who) % 2], who[n % len(who)]),),
        )
        for n in range(count)
    ]


ANNA = Annotator("Anna", AnnotatorKind.HUMAN)
LABELLED = said([ANNA], "labellers", 50, AskedHow.RANDOM)


def one_user() -> tuple[Sequence[LabelledPair], dict[str, float]]:
    """By hand: 5 % of the whole for whoever gave 1,000 of 1,050 verdicts."""
    busy = said([Annotator("Ben", AnnotatorKind.HUMAN, 7)], "user", 1000, AskedHow.CHAT)
    return label([*LABELLED, *busy], user_share=0.05).pairs, {"labellers": 0.95, "user": 0.05}


def one_account() -> tuple[Sequence[LabelledPair], dict[str, float]]:
    """By hand: a quarter of the whole for an account that names forty users."""
    users = [Annotator(f"app:{n}", AnnotatorKind.HUMAN, 7) for n in range(40)]
    busy = said(users, "account", 1000, AskedHow.API)
    pairs = label([*LABELLED, *busy], user_share=0.05, account_share=0.25).pairs
    return pairs, {"account": 0.25, "labellers": 0.75}


def one_judge() -> tuple[Sequence[LabelledPair], dict[str, float]]:
    """By hand: 150 verdicts of people and 1,500 of a judge, a tenth of a verdict each, are half and half."""
    people = label(said([ANNA], "people", 150, AskedHow.RANDOM)).pairs
    judged = label(said([ANNA], "judge", 1500, AskedHow.RANDOM)).pairs
    lighter = [replace(pair, weights=Counts(*(0.1 * weight for weight in pair.weights))) for pair in judged]
    return [*people, *lighter], {"judge": 0.5, "people": 0.5}


@pytest.mark.parametrize("learns", [of_reward, of_direct])
@pytest.mark.parametrize("case", [one_user, one_account, one_judge])
def test_a_part_in_training_is_the_share_of_the_weight(
    world: Pretrained,
    case: Callable[[], tuple[Sequence[LabelledPair], dict[str, float]]],
    learns: Callable[[Pretrained, Known, int], dict[str, float]],
) -> None:
    pairs, wanted = case()
    assert learns(world, Known(pairs), 12) == pytest.approx(wanted, abs=0.02)


def test_a_prompt_with_most_verdicts_has_most_steps(world: Pretrained) -> None:
    """By hand: 900 pairs on one prompt are 75 batches of 12, and 100 on others are nine, or ten where one is cut."""
    one = [replace(c, prompt=(Turn(Role.USER, "hi"),)) for c in said([ANNA], "hi", 900, AskedHow.RANDOM)]
    one = [replace(c, left=replace(c.left, text=f"answer {n}")) for n, c in enumerate(one)]
    data = Known(label([*one, *said([ANNA], "others", 100, AskedHow.RANDOM)]).pairs)
    batches = data.batches(range(1000), 12, random.Random(0))
    assert sorted(i for batch in batches for i in batch) == list(range(1000))
    assert max(map(len, batches)) == 12 and 84 <= len(batches) <= 86
    held = Counter(party for batch in batches for party in {data.party[i] for i in batch})
    assert held["hi"] == 75 and held["others"] <= 11
    assert of_reward(world, data, 12) == pytest.approx({"hi": 0.9, "others": 0.1}, abs=0.02)
    places = [place for place, batch in enumerate(batches) if data.party[batch[0]] == "hi"]
    assert places != list(range(places[0], places[0] + len(places))), "they stand between the others"


def test_prompts_that_fit_stay_whole_and_in_the_order_that_they_had() -> None:
    """By hand, with the same random numbers: prompts are shuffled and joined as long as they fit."""
    few = [replace(c, prompt=(Turn(Role.USER, f"{n // 3}?"),)) for n, c in enumerate(LABELLED[:30])]
    few = [replace(c, left=replace(c.left, text=f"answer {n}")) for n, c in enumerate(few)]
    data = Known(label(few).pairs)
    prompts = [[3 * n, 3 * n + 1, 3 * n + 2] for n in range(10)]
    random.Random(5).shuffle(prompts)
    joined = [prompts[at] + prompts[at + 1] for at in range(0, 10, 2)]
    assert data.batches(range(30), 8, random.Random(5)) == joined


@pytest.mark.parametrize("weight", [0.5, 1.0, 3.0, 0.1])
def test_where_all_pairs_weigh_the_same_a_batch_is_the_mean_that_it_was(weight: float) -> None:
    pairs = [replace(pair, weights=Counts(weight, 0.0, 0.0)) for pair in label(LABELLED).pairs]
    data, every = Known(pairs), range(50)
    counted = [torch.tensor(data.weight(range(n)) / (n * data.usual(every))) for n in range(1, 51)]
    assert all(float(one) == 1.0 for one in counted), "in float32, in which gradients are multiplied by it"
