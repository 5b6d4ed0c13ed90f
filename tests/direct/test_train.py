"""DPO on a tiny world with a planted preference, and on one with none."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from manners.checkpoint import Run
from manners.direct import learner as learning
from manners.direct.loss import dpo
from manners.direct.train import LOOKS, Material, Trained, train
from manners.errors import MannersError
from manners.metrics import RunLog, read
from manners.models.branches import Branch
from manners.models.pretrained import Pretrained
from manners.models.vocabulary import Vocabulary
from manners.reward.groups import slice_off
from manners.reward.labelled import LeftOut
from manners.reward.measure import measure
from manners.reward.pairs import ReadPairs
from manners.reward.passes import SLICE
from manners.settings import DPOSettings, RewardSettings, SampleSettings, Settings
from manners.text import Rendered, Renderer
from manners.types import Annotator, AnnotatorKind, Choice, Comparison, FinishReason, Response, Role, Turn, Verdict
from tests.conftest import some
from tests.models.exchanges import trained as moved
from tests.reward.planted import comparisons, turned
from tests.reward.test_assisted import HUMAN, JUDGED, WHO
from tests.worlds import END_IDS, TEMPLATE, tiny_pretrained, with_compute

SETTINGS = Settings(
    sample=SampleSettings(temperature=1.0, max_new_tokens=6),
    reward=RewardSettings(set_aside=0.35),
    dpo=DPOSettings(beta=0.3, passes=4, batch=8, learning_rate=0.005, kl_stop=1000.0),
)
PLANTED = comparisons(80, agreement=0.95)


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


def run_of(
    world: Pretrained,
    folder: Path,
    given: Sequence[Comparison] = PLANTED,
    run: Run | None = None,
    start: Branch | None = None,
    seed: int = 0,
    judges: frozenset[Annotator] = frozenset(),
    **changes: Any,
) -> Trained:
    prompts = [world.renderer.prompt_ids((Turn(Role.USER, f"bread {n}?"),))[0] for n in range(4)]
    chosen = replace(SETTINGS, seed=seed, dpo=replace(SETTINGS.dpo, **changes))
    keep = 0 if run is None else run.state.get("curves", 0)
    with RunLog(folder / "curves", keep) as log:
        return train(chosen, world, Material(given, prompts, judges), log, run, start, folder / "scratch")


@pytest.fixture(scope="module")
def trained(world: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return run_of(world, tmp_path_factory.mktemp("trained"))


def weights(found: Trained) -> list[torch.Tensor]:
    return list(found.policy.own_tensors().values())


def same(a: Trained, b: Trained) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def test_it_finds_what_annotators_like(trained: Trained) -> None:
    found = measure(np.asarray(trained.margins.double()), trained.split.train, trained.split.held_out, seed=0)
    assert found.interval is not None and found.interval[0] > 0.6
    polite = np.array(["thank" in pair.left.text for pair in trained.split.held_out])
    assert np.mean((np.asarray(trained.margins) > 0) == polite) > 0.9
    assert trained.before["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert trained.after["loss"] < trained.before["loss"]
    assert trained.after["rewards/chosen"] > trained.after["rewards/rejected"]


def test_margins_are_the_log_odds_of_whole_responses(world: Pretrained, trained: Trained) -> None:
    # By plain forward passes of the whole models, a response at a time.
    pair = trained.split.held_out[0]

    def logprob(branch: Branch, side: Any) -> float:
        rendered = world.renderer.render(pair.prompt, side)
        ids = torch.tensor([rendered.prompt_ids + rendered.response_ids])
        logits = branch.assembled(world.trunk)(input_ids=ids).logits[0, len(rendered.prompt_ids) - 1 : -1]
        logits[:, world.trunk.vocabulary.unseen] = -torch.inf
        ends = world.trunk.vocabulary.ends
        merged = logits[:, ends].logsumexp(1)
        logits[:, ends], logits[:, world.trunk.vocabulary.end] = -torch.inf, merged
        wanted = torch.tensor(rendered.response_ids)
        assert int(wanted[-1]) == world.renderer.end_id, "the end is a part of what is said"
        return float(logits.log_softmax(1)[torch.arange(len(wanted)), wanted].sum())

    reference = Branch(world.trunk, trainable=False)
    with torch.no_grad():
        left, right = (logprob(trained.policy, s) - logprob(reference, s) for s in (pair.left, pair.right))
    assert float(trained.margins[0]) == pytest.approx(0.3 * (left - right), abs=1e-3)


def test_an_answer_that_was_cut_to_fit_does_not_end_where_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's context cut it: nobody said that it ends there, and a policy must not learn it."""
    small = tiny_pretrained(context=96)
    long = Response("the bread takes long " * 20, "b", FinishReason.STOP)
    given = [*PLANTED[:20], replace(PLANTED[20], left=long)]
    read_as: dict[Any, Rendered] = {}

    def noted(pretrained: Pretrained, pairs: Any, rendered: Any, *rest: Any) -> ReadPairs:
        read_as.update(rendered)
        return ReadPairs(pretrained, pairs, rendered, *rest)

    monkeypatch.setattr("manners.direct.train.ReadPairs", noted)
    trained = run_of(small, tmp_path, given, passes=1)
    end = small.renderer.end_id
    cut = read_as[PLANTED[20].prompt, long]
    assert cut.shortened and end not in cut.response_ids and cut.length == 95
    assert all(one.response_ids[-1] == end for one in read_as.values() if one is not cut)
    assert trained.shortened.count == 1 and trained.shortened.tokens == cut.dropped


def test_a_crowd_that_tosses_coins_teaches_nothing(world: Pretrained, tmp_path: Path) -> None:
    found = run_of(world, tmp_path, comparisons(80, agreement=0.5), passes=1)
    shown = measure(np.asarray(found.margins.double()), found.split.train, found.split.held_out, seed=0)
    assert shown.interval is not None and shown.interval[0] < 0.5 < shown.interval[1]


def test_what_is_set_aside_is_not_trained_on(world: Pretrained, trained: Trained, tmp_path: Path) -> None:
    # Turning round every verdict that was set aside must not move a single weight; turning one trained on must.
    held_out = {pair.comparison_id for pair in trained.split.held_out}
    assert 10 < len(held_out) < 50
    before = run_of(world, tmp_path, passes=1)
    assert same(before, run_of(world, tmp_path, [turned(c) if c.id in held_out else c for c in PLANTED], passes=1))
    taught = next(c.id for c in PLANTED if c.id not in held_out)
    assert not same(before, run_of(world, tmp_path, [turned(c) if c.id == taught else c for c in PLANTED], passes=1))


def test_seeds(world: Pretrained, tmp_path: Path) -> None:
    first, again, other = (run_of(world, tmp_path, seed=seed, passes=1) for seed in (1, 1, 2))
    assert same(first, again) and not same(first, other)


def test_micro_batches_change_nothing(world: Pretrained, tmp_path: Path) -> None:
    whole = run_of(world, tmp_path, PLANTED[:30], passes=1, learning_rate=1e-3)
    narrow = replace(world, trunk=with_compute(world.trunk, bucket_tokens=100))
    cut = run_of(narrow, tmp_path, PLANTED[:30], passes=1, learning_rate=1e-3)
    for a, b in zip(weights(cut), weights(whole), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_ties_keep_the_policy_where_it_is(world: Pretrained, trained: Trained, tmp_path: Path) -> None:
    # Every verdict but a few is a tie: the sides stay closer together than where somebody chose.
    person = Annotator("one", AnnotatorKind.HUMAN)
    tied = [replace(c, verdicts=(Verdict(Choice.TIE, person),)) if n > 15 else c for n, c in enumerate(PLANTED)]
    found = run_of(world, tmp_path, tied)
    assert float(found.margins.abs().mean()) < 0.5 * float(trained.margins.abs().mean())


@pytest.mark.parametrize(("layers", "rank"), [("all", None), (2, 4)])
def test_with_all_layers_and_with_adapters(layers: Any, rank: int | None, tmp_path: Path) -> None:
    world = tiny_pretrained(trainable_layers=layers, lora_rank=rank)
    found = run_of(world, tmp_path, learning_rate=0.002 if rank is None else 0.02)
    assert found.after["rewards/accuracies"] > 0.7 and found.looks[0].kl == pytest.approx((0.0,) * 4, abs=1e-3)
    assert len(weights(found)) == (len(list(world.trunk.whole.parameters())) if rank is None else 28)


def test_it_is_looked_at_before_on_the_way_and_at_the_end(world: Pretrained, trained: Trained, tmp_path: Path) -> None:
    steps = [look.step for look in trained.looks]
    assert len(steps) == LOOKS + 1 and steps[0] == 0 and steps[-1] == trained.optimizer_steps
    kl = [sum(look.kl) / 4 for look in trained.looks]
    assert abs(kl[0]) < 1e-3 < kl[-1] and trained.kept is trained.looks[-1]
    found = run_of(world, tmp_path, passes=1)
    points = read(tmp_path / "curves")
    assert [point["step"] for point in points] == list(range(1, found.optimizer_steps + 1))
    assert points[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert found.tokens * 4 == trained.tokens, "of one pass"


def test_a_policy_that_goes_too_far_is_stopped_and_kept_as_it_was(world: Pretrained, tmp_path: Path) -> None:
    whole = run_of(world, tmp_path, learning_rate=0.02, passes=8)
    kl = [sum(look.kl) / 4 for look in whole.looks]
    limit = (max(kl[:2]) + max(kl)) / 2
    far = next(n for n, value in enumerate(kl) if value > limit)
    found = run_of(world, tmp_path, learning_rate=0.02, passes=8, kl_stop=limit)
    assert found.stopped is not None and "above dpo.kl_stop" in found.stopped
    assert len(found.looks) == far + 1 and found.kept == whole.looks[far - 1]
    assert found.optimizer_steps == whole.looks[far].step < whole.optimizer_steps
    assert not same(found, whole)


def test_passes_are_those_of_the_scout_that_did_best(world: Pretrained, tmp_path: Path) -> None:
    found = run_of(world, tmp_path, passes=None)
    assert found.passes == min(found.tried, key=lambda one: one[1])[0]
    losses = [loss for _, loss in found.tried]
    assert all(later < earlier for earlier, later in pairwise(losses[:-1]))
    assert [passes for passes, _ in found.tried] == [1, 2, 4, 8][: len(losses)]


def test_people_say_when_it_is_enough(world: Pretrained, tmp_path: Path) -> None:
    # The scout never learns from the slice: what a judge says there must not change for how long is trained.
    given = [*HUMAN, *JUDGED[:40]]
    how: dict[str, Any] = {"judges": frozenset({WHO}), "passes": None}
    before = run_of(world, tmp_path, given, **how)
    learned = (*before.split.train, *before.assisted.pairs)
    _, off = slice_off(learned, SLICE, 0)
    judged = {learned[i].comparison_id for i in off if not sum(learned[i].counts)}
    assert 0 < len(judged) < len(off)
    after = run_of(world, tmp_path, [turned(c) if c.id in judged else c for c in given], **how)
    assert after.tried == before.tried and after.passes == before.passes


def test_it_begins_at_the_start_version_which_is_its_reference(world: Pretrained, tmp_path: Path) -> None:
    start = moved(Branch(world.trunk, trainable=True)).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in start.own_tensors().items()}
    found = run_of(world, tmp_path, start=start, passes=1, learning_rate=1e-7)
    assert found.before["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert max(map(abs, found.looks[-1].kl)) < 1e-2
    for name, tensor in found.policy.own_tensors().items():
        torch.testing.assert_close(tensor, before[name], atol=1e-4, rtol=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in start.own_tensors().items())


def test_a_policy_that_does_not_begin_as_its_reference_is_refused(
    world: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learning.Learner.__init__

    def elsewhere(self: Any, *given: Any) -> None:
        whole(self, *given)
        moved(self.branch)

    monkeypatch.setattr(learning.Learner, "__init__", elsewhere)
    with pytest.raises(MannersError, match="start-up check failed: before any training the policy's log-probability"):
        run_of(world, tmp_path)


def test_a_gradient_that_is_not_finite_stops(
    world: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formula = dpo
    monkeypatch.setattr(learning, "dpo", lambda *given: (formula(*given)[0] * torch.nan, formula(*given)[1]))
    with pytest.raises(MannersError, match=r"gradient is not finite at step 1 of \d+; lower dpo.learning_rate"):
        run_of(world, tmp_path, PLANTED[:20])


def without_a_letter(world: Pretrained) -> Pretrained:
    """The same model with a tokenizer that has no token for the letter z."""
    known: Any = world.tokenizer
    told = json.loads(known.backend_tokenizer.to_str())
    told["model"]["vocab"]["<unk>"] = told["model"]["vocab"].pop("z")
    told["model"]["unk_token"] = "<unk>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(told)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<|start|>", "<|end|>"],
    )
    tokenizer.chat_template = TEMPLATE
    renderer = Renderer(tokenizer, END_IDS, 256)
    trunk = replace(world.trunk, vocabulary=Vocabulary.of(renderer, world.trunk.whole))
    return replace(world, renderer=renderer, trunk=trunk)


def test_what_no_policy_can_say_is_left_out_and_counted(world: Pretrained, tmp_path: Path) -> None:
    # Its log-probability is -inf, by the policy and by the reference, and their difference is no number.
    unknown = without_a_letter(world)
    odd = {3, 30, 60}

    def with_z(one: Comparison) -> Comparison:
        return replace(one, right=replace(one.right, text=f"{one.right.text} z"))

    found = run_of(unknown, tmp_path, [with_z(c) if c.id in odd else c for c in PLANTED], passes=1)
    assert found.labelled.left_out == {LeftOut.UNSAYABLE: 3} and math.isfinite(found.after["loss"])
    assert same(found, run_of(unknown, tmp_path, [c for c in PLANTED if c.id not in odd], passes=1))
    with pytest.raises(MannersError, match="all 20 comparisons have a response with something that the model's tokeni"):
        run_of(unknown, tmp_path, [with_z(c) for c in PLANTED[:20]], passes=1)


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("passes", some([None, 2], 1))
def test_a_run_killed_after_any_step_ends_to_the_bit_as_one_that_never_was(
    world: Pretrained, passes: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"passes": passes, "batch": 16}
    whole = run_of(world, tmp_path / "whole", PLANTED[:40], **changes)
    curves = [{k: v for k, v in p.items() if k != "lr"} for p in read(tmp_path / "whole" / "curves")]
    stops = range(1, whole.optimizer_steps, 1 if passes else 3)
    assert len(stops) >= 3
    save = Run.save
    for stop in stops:
        root, count = tmp_path / str(stop), 0

        def until(run: Run, more: Any = MappingProxyType({}), last: int = stop) -> None:
            nonlocal count
            save(run, more)
            count += 1
            if count == last:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Run, "save", until)
            with pytest.raises(Killed):
                run_of(world, root, PLANTED[:40], Run(root / "run", "manners dpo", {}, 0.0), **changes)
        again = Run(root / "run", "manners dpo", {}, 0.0)
        assert again.go_on()
        ended = run_of(world, root, PLANTED[:40], again, **changes)
        assert same(ended, whole) and ended.looks == whole.looks and ended.tried == whole.tried
        assert [{k: v for k, v in p.items() if k != "lr"} for p in read(root / "curves")] == curves
