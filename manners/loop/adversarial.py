"""Adversarial round: what a reward model likes best, and shows signs of being wrong about, is put before people first.

A policy that is trained against it, or best-of-n, finds such answers by itself; people's verdicts on them mend what it
would exploit. They are trained on, and nothing is ever measured on them: the model has chosen them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from manners.audit.signs import Sign, signs
from manners.checkpoint import Run
from manners.errors import MannersError
from manners.loop import sample
from manners.loop.options import SampleOptions
from manners.loop.plan import Part, Plan, make_plan
from manners.loop.prompts import answerable, draw_prompts, fitting, own_seed, prompt_lengths
from manners.loop.session import Session, digest
from manners.loop.stage import Inputs
from manners.models import versions
from manners.models.cost import head_bytes, layer_bytes, own_bytes, rows_at_once
from manners.results import AdversarialResult
from manners.reward import stored
from manners.reward.ensemble import score_rendered
from manners.reward.groups import divided, drawn_aside
from manners.reward.pairs import render_compared
from manners.reward.suspicion import liked
from manners.reward.verdicts import label
from manners.types import Answer, AskedHow, Comparison, Dialogue, PromptUse, Response, VersionKind, opening
from manners.workspace import INITIAL

ANSWERS = 16
"""Drawn to each prompt: the best of them is what best-of-16 would choose."""
AMONG = 4
"""Prompts that are answered for each one that is asked about: those where most is wrong."""
SIGN = 1.0
"""What signs of an answer (`audit.signs`) add to its suspicion, in units of what answers to one prompt differ by."""
REWARD_MODEL, POLICY = "the reward model", "the policy"
"""What `Inputs.decides` calls them."""


@dataclass(frozen=True, kw_only=True)
class AdversarialInputs(Inputs):
    """Who answers, and whom that is to please."""

    count: int
    crowd: bool
    reward: str
    policy: str


@dataclass(frozen=True)
class _Found:
    """What the reward model likes best on a prompt, beside an ordinary answer."""

    best: Answer
    ordinary: Answer
    doubt: float
    """How far a member does not like it, in units."""
    signs: frozenset[Sign]
    """What it shows and the ordinary one does not."""

    @property
    def suspicion(self) -> float:
        """By what prompts are ordered."""
        return self.doubt + SIGN * bool(self.signs)


def inputs(session: Session, options: SampleOptions, begun: Mapping[str, Any]) -> AdversarialInputs:
    """Take the newest reward model and who exploits it, or those that the run that goes on was begun with.

    Raises MannersError where there is no reward model, or one of another model.
    """
    assert options.adversarial is not None, "it is what the stage is chosen by"
    crowd = bool(begun.get("--crowd", options.crowd))
    reward = begun.get(REWARD_MODEL) or versions.latest(session.workspace, VersionKind.REWARD)
    versions.fitting(session.workspace, reward, VersionKind.REWARD, session.pretrained)
    policy = begun.get(POLICY) or who_exploits(session, reward)
    if policy != INITIAL:
        versions.fitting(session.workspace, policy, VersionKind.POLICY, session.pretrained)
    return AdversarialInputs(
        decides={"--adversarial": options.adversarial, "--crowd": crowd, REWARD_MODEL: reward, POLICY: policy},
        count=options.adversarial,
        crowd=crowd,
        reward=reward,
        policy=policy,
    )


def who_exploits(session: Session, reward: str) -> str:
    """Return the newest policy that was trained against a reward model, promoted or not; the current one if none was.

    One that was rejected for what it had learned to please the model with has most to show.
    """
    trained = reversed(versions.names(session.workspace, VersionKind.POLICY))
    against = (name for name in trained if versions.describe(session.workspace, name).reward == reward)
    return next(against, session.workspace.current_policy())


def plan(session: Session, inputs: AdversarialInputs) -> Plan:
    """Memory of answering the prompts, and of scoring the answers beside it."""
    prompts = prompt_lengths(session, PromptUse.TRAIN)
    settings, trunk = replace(session.settings.sample, answers=ANSWERS), session.pretrained.trunk
    count = min(AMONG * inputs.count, prompts.counts[PromptUse.TRAIN].fit)
    [drawing] = sample.memory_parts(trunk, settings, count, prompts.longest)
    length = prompts.longest + settings.max_new_tokens
    scoring = layer_bytes(trunk, rows_at_once(trunk, length) * length) + head_bytes(trunk)
    needed = [
        Part("reward_members", session.settings.reward.branches * own_bytes(trunk, head=False), "reward.members"),
        max(drawing, Part("scoring_responses", scoring, "sample.batch"), key=lambda part: part.size),
    ]
    if inputs.policy != INITIAL:
        needed.append(Part("policy", own_bytes(trunk, head=True), "model.trainable_layers"))
    return make_plan(session, "adversarial", {"prompts": prompts.facts}, needed)


def run(session: Session, run: Run, inputs: AdversarialInputs) -> AdversarialResult:
    """Draw many answers to each prompt, and open comparisons of the most suspicious that the reward model likes best.

    Each is put beside an ordinary answer to its prompt, with the sides drawn by coin. With `--crowd`, the simulated
    annotators give their verdicts at once.
    """
    # 1. Which prompts is settled once: comparisons that this run has opened must not change it.
    if "prompts" not in run.state:
        run.state |= _whom_to_ask(session, inputs)
    prompts, seed = run.state["prompts"], run.state["seed"]
    # 2. Many answers to each, all different; what was deleted meanwhile must not be stored again.
    drawn, alike = sample.answers_to(session, run, prompts, inputs.policy, ANSWERS, seed, 1)
    there = set(answerable(session, PromptUse.TRAIN))
    answers = [given for given in drawn if given[0].prompt in there]
    # 3. Of each prompt the answer that is liked best; of all prompts those where it is most suspicious.
    found = sorted(_liked_best(session, inputs.reward, answers), key=lambda one: -one.suspicion)
    chosen = found[: inputs.count]
    # 4. A comparison of each with an ordinary answer, the most suspicious first, judged at once by the crowd if asked.
    comparisons = [_comparison(one, inputs.reward, seed) for one in chosen]
    if inputs.crowd:
        comparisons = sample.judged_by_crowd(session, comparisons)
    run.save()
    session.store.merge_comparisons(comparisons)  # merged, for a process killed after this has stored them already
    left_out = {
        **run.state["left out"],
        "answers alike or empty": alike,
        "prompt deleted meanwhile": len(drawn) - len(answers),
        "less suspicious than those asked about": len(found) - len(chosen),
    }
    return AdversarialResult(
        policy=inputs.policy,
        reward=inputs.reward,
        prompts=len(answers),
        responses=sum(map(len, answers)),
        comparisons=len(comparisons),
        members_differ=sum(one.doubt > 1 for one in chosen),
        signs=dict(sorted(Counter(str(sign) for one in chosen for sign in one.signs).items())),
        suspicion=(chosen[0].suspicion, chosen[-1].suspicion) if chosen else None,
        left_out={reason: count for reason, count in left_out.items() if count},
    )


def _whom_to_ask(session: Session, inputs: AdversarialInputs) -> dict[str, Any]:
    """Return the prompts that are answered, drawn by the seed, and a seed of their own for the answers.

    None whose opening is set aside to measure with, or will be once it has been asked about by chance, for verdicts on
    it would teach nothing then; none that was asked about like this before with verdicts that the reward model has not
    learned from. Raises MannersError for too few.
    """
    comparisons = session.store.comparisons()
    before = [one for one in comparisons if one.by_model]
    learned = versions.describe(session.workspace, inputs.reward).watermark or 0
    open_still = {one.prompt for one in before if not any((v.arrived or 0) <= learned for v in one.verdicts)}
    aside = _set_aside(session, comparisons)
    there = answerable(session, PromptUse.TRAIN)
    share, drawn_by = session.settings.reward.set_aside, session.settings.seed
    teaching = [
        prompt
        for prompt in there
        if (first := opening(prompt)) not in aside and not drawn_aside(first, share, drawn_by)
    ]
    wanted = fitting(session, PromptUse.TRAIN, [prompt for prompt in teaching if prompt not in open_still])
    if len(wanted.prompts) < inputs.count:
        raise MannersError(
            f"{inputs.count} prompts were asked for, and {len(wanted.prompts)} of {len(there)} training prompts can be"
            f" asked about: the others are set aside to measure with, too long, or were asked about like this since"
            f" {inputs.reward} was trained; ask for fewer, or add some with `manners prompts import FILE`"
        )
    seed = own_seed(session.seed, f"{inputs.policy} {inputs.reward} {len(before)}")
    chosen = draw_prompts(wanted.prompts, AMONG * inputs.count, seed)
    left = {
        "set aside to measure with": len(there) - len(teaching),
        "asked about before, and not learned from yet": len(teaching) - len(wanted.prompts) - wanted.too_long,
        "prompt longer than the context": wanted.too_long,
        "not drawn": len(wanted.prompts) - len(chosen),
    }
    return {"prompts": chosen, "seed": seed, "left out": left}


def _set_aside(session: Session, comparisons: Sequence[Comparison]) -> set[str]:
    """Return the openings that the next reward training sets aside, as the record stands; none where it refuses it."""
    settings = session.settings.reward
    try:
        counted = label(comparisons, settings.annotators, settings.user_share, settings.account_share)
        return {opening(pair.prompt) for pair in divided(counted.pairs, settings, session.settings.seed).held_out}
    except MannersError:
        return set()


def _liked_best(session: Session, name: str, answers: Sequence[Sequence[Answer]]) -> list[_Found]:
    """Score the answers to each prompt by all members, and return what is liked best, and what is wrong with it."""
    if not answers:
        return []
    pretrained = session.pretrained
    reward = stored.load_reward(session.workspace, name, pretrained)
    exchanges = [(one.prompt, one.response) for given in answers for one in given]
    rendered = render_compared(pretrained.renderer, exchanges)
    scores = score_rendered(reward, pretrained, [rendered[exchange] for exchange in exchanges]).double().cpu().numpy()
    found, start = [], 0
    for given in answers:
        best, ordinary, doubt = liked(scores[:, start : start + len(given)])
        start += len(given)
        found.append(_Found(given[best], given[ordinary], doubt, _signs(given[best]) - _signs(given[ordinary])))
    return found


def _signs(answer: Answer) -> frozenset[Sign]:
    return signs(answer.prompt[-1].text, answer.response)


def _comparison(found: _Found, reward: str, seed: int) -> Comparison:
    """Return the comparison that is opened; which of its sides is liked nobody can tell.

    Each has a coin of its own: what a run that goes on lacks by now turns no other round, which would be opened twice.
    """
    prompt: Dialogue = found.best.prompt
    exchanged = random.Random(f"adversarial {seed} {digest(prompt)}").random() < 0.5
    sides: list[Response] = [found.best.response, found.ordinary.response][:: -1 if exchanged else 1]
    return Comparison(prompt, sides[0], sides[1], AskedHow.ADVERSARIAL, asked_by=reward)
