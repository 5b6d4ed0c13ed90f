"""What a step of PPO minimises, term by term: who adds a term, or weighs one otherwise, does it here."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from manners.ppo.course import Course
from manners.ppo.curves import DEVIATION
from manners.ppo.objective import policy_loss, value_loss
from manners.ppo.rollout import Episodes
from manners.training import Loss, Term


def objective(course: Course, episodes: Episodes, number: int) -> list[Term]:
    """Return the terms of the loss on some episodes of a minibatch; that on prose is taken once a step.

    L = policy + ppo.value_coefficient * value, means over kept tokens, + ppo.prose_coefficient * prose +
    ppo.ptx_coefficient * ptx, means over the tokens of part `number` of the prose, in nats: the divergence from the
    start version, and the likelihood of the text. Source: Schulman et al. 2017, eq. 9, without an entropy bonus; ptx:
    Ouyang et al. 2022, eq. 2.
    """
    ppo = course.settings
    roles = course.roles
    keep = episodes.keep

    @cache
    def hidden() -> Tensor:
        return roles.policy.hidden(episodes.states, episodes.batch)

    def policy() -> Loss:
        logprobs = roles.policy.logprobs(hidden(), episodes.batch, course.sample.temperature)
        loss, seen = policy_loss(logprobs, episodes.logprobs, episodes.advantages, keep, ppo.clip)
        return loss, {
            "policy/approxkl_avg": seen.approxkl,
            "policy/clipfrac_avg": seen.clipfrac,
            "val/ratio": seen.ratio,
            DEVIATION: seen.deviations,
        }

    def value() -> Loss:
        values = roles.value(episodes.states, hidden(), episodes.batch)
        loss, seen = value_loss(values, episodes.values, episodes.returns, keep, ppo.value_clip)
        return loss, {"val/clipfrac_avg": seen.clipfrac}

    def prose() -> Loss:
        return course.prose.divergence(roles.policy, number), {}

    def ptx() -> Loss:
        return course.prose.loss(roles.policy, number), {}

    baseline = "policy" if ppo.value == "shared" else "value"
    terms = [
        Term("policy", 1.0, "policy", policy),
        Term("value", ppo.value_coefficient, baseline, value),
    ]
    if ppo.prose_coefficient > 0 and course.prose.parts:
        terms.append(Term("prose", ppo.prose_coefficient, "prose", prose, once=True))
    if ppo.ptx_coefficient > 0 and course.prose.parts:
        terms.append(Term("ptx", ppo.ptx_coefficient, "ptx", ptx, once=True))
    return terms
