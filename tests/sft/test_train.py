"""Learning from examples: what is learned, by any kind of branch, and what does not change how it ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from manners.checkpoint import Run
from manners.errors import MannersError
from manners.models.branches import Branch
from manners.models.pretrained import Pretrained
from manners.models.proof import proved
from manners.models.trunk import grow_trunk
from manners.models.vocabulary import Vocabulary
from manners.settings import SFTSettings
from manners.sft.data import ReadExamples
from manners.sft.examples import Example, LaidOut, lay_out
from manners.sft.measure import reading
from manners.sft.train import split, train
from manners.text import Renderer
from manners.types import Role, Turn, opening
from tests.worlds import END_IDS, tiny_model, tiny_tokenizer, with_compute

SETTINGS = SFTSettings(epochs=4, batch=4, set_aside=0.2)
FORM = "Yes, thank you."


def world(layers: int | str = 2, rank: int | None = None) -> Pretrained:
    model = tiny_model()
    trunk = proved(grow_trunk(model, layers, rank), 128)  # type: ignore[arg-type]
    renderer = Renderer(tiny_tokenizer(), END_IDS, 128)
    return Pretrained("tiny", replace(trunk, vocabulary=Vocabulary.of(renderer, model)), renderer, "")


def talks(pretrained: Pretrained, count: int = 24) -> LaidOut:
    """Whatever is asked, the answer is the same: a form that shows on questions that were set aside."""
    asked = [(Turn(Role.USER, f"bread {number}?"), Turn(Role.ASSISTANT, FORM)) for number in range(count)]
    return lay_out(pretrained.renderer, [Example(talk) for talk in asked])


def tensors(branch: Branch) -> list[Tensor]:
    return list(branch.own_tensors().values())


@pytest.mark.parametrize(("layers", "rank"), [(2, None), ("all", None), (2, 4)])
def test_a_form_is_learned_and_shows_on_what_was_set_aside(layers: int | str, rank: int | None, tmp_path: Path) -> None:
    pretrained = world(layers, rank)
    before = {name: p.clone() for name, p in pretrained.trunk.whole.named_parameters()}
    parts = split(talks(pretrained), SETTINGS, 0)
    chosen = replace(SETTINGS, learning_rate=0.01, epochs=6)
    trained = train(chosen, 0, pretrained, parts, None, tmp_path)
    assert trained.after.loss < 0.3 * trained.before.loss
    assert trained.after.right.sum() > trained.before.right.sum()
    assert len(trained.losses) == 6 and trained.losses[-1] == trained.after.loss
    assert trained.tokens == 6 * sum(one.learned for one in parts.train)
    assert all(torch.equal(p, before[name]) for name, p in pretrained.trunk.whole.named_parameters())


def test_packing_changes_nothing_about_how_it_ends(tmp_path: Path) -> None:
    ends = []
    for packs in (True, False):
        pretrained = world()
        pretrained = replace(pretrained, trunk=with_compute(pretrained.trunk, shares_prompts=packs))
        folder = tmp_path / str(packs)
        folder.mkdir()
        ends.append(train(SETTINGS, 0, pretrained, split(talks(pretrained), SETTINGS, 0), None, folder))
    packed, alone = ends
    assert packed.after.loss == pytest.approx(alone.after.loss, abs=1e-4)
    for one, other in zip(tensors(packed.branch), tensors(alone.branch), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_the_first_step_is_plain_adamw_on_the_mean_over_learned_tokens(tmp_path: Path) -> None:
    """By torch alone, on the whole model: its own cross entropy, its own optimiser."""
    pretrained = world("all")
    laid = talks(pretrained, 8)
    parts = split(laid, SETTINGS, 0)
    chosen = replace(SETTINGS, epochs=1, batch=100, learning_rate=0.01)
    trained = train(chosen, 0, pretrained, parts, None, tmp_path)
    model = tiny_model()
    losses = []
    for one in parts.train:
        logits = model(input_ids=torch.tensor([one.ids])).logits[0]
        for start, stop in one.spans:
            targets = torch.tensor(one.ids[start:stop])
            losses.append(torch.nn.functional.cross_entropy(logits[start - 1 : stop - 1], targets, reduction="none"))
    torch.autograd.backward(torch.cat(losses).mean())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-5, weight_decay=0.0).step()
    expected: dict[str, Any] = dict(model.named_parameters())
    assert trained.optimizer_steps == 1
    for name, tensor in trained.branch.own_tensors().items():
        torch.testing.assert_close(tensor, expected[name.removeprefix("model.")], atol=2e-5, rtol=1e-4, msg=name)


class Stopped(Exception):
    """Stands for a kill."""


def test_a_run_that_was_stopped_ends_to_the_bit_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained = world()
    parts = split(talks(pretrained), SETTINGS, 0)

    def run() -> Run:
        return Run(tmp_path / "checkpoints", "manners sft", {}, every=0.0)

    def learn(run: Run | None) -> Any:
        folder = tmp_path / "states"
        folder.mkdir(exist_ok=True)
        return train(SETTINGS, 0, pretrained, parts, run, folder)

    whole = learn(None)
    save = Run.save
    for stop in (1, 5, 9):
        saved: list[int] = []

        def saving(self: Run, more: Any = (), stop: int = stop, saved: list[int] = saved) -> None:
            if len(saved) == stop:
                raise Stopped
            saved.append(1)
            save(self, dict(more))

        first = run()
        first.go_on()
        monkeypatch.setattr(Run, "save", saving)
        with pytest.raises(Stopped):
            learn(first)
        monkeypatch.setattr(Run, "save", save)
    again = run()
    assert again.go_on()
    ended = learn(again)
    assert ended.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(tensors(ended.branch), tensors(whole.branch), strict=True))


def test_no_opening_is_on_both_sides_and_the_draw_stays() -> None:
    pretrained = world()
    laid = talks(pretrained, 40)
    parts = split(laid, SETTINGS, 0)
    sides = [{opening(laid.examples[one.example].dialogue) for one in side} for side in (parts.train, parts.held_out)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 40 and 2 <= len(sides[1]) <= 16
    fewer = split(talks(pretrained, 30), SETTINGS, 0)
    held = {opening(laid.examples[one.example].dialogue) for one in fewer.held_out}
    assert held <= sides[1], "what is held out stays so when more come"
    assert split(laid, replace(SETTINGS, limit=5), 0).past_limit == len(sides[0]) - 5
    with pytest.raises(MannersError, match="the 2 dialogues begin in 2 ways, and 3 are needed"):
        split(talks(pretrained, 2), SETTINGS, 0)


def test_loss_and_accuracy_are_those_of_the_plain_model(tmp_path: Path) -> None:
    pretrained = world()
    sequences = talks(pretrained, 5).sequences
    found = reading(Branch(pretrained.trunk, trainable=False), ReadExamples(pretrained, sequences, tmp_path / "s", ""))
    for at, one in enumerate(sequences):
        with torch.no_grad():
            logits = pretrained.trunk.whole(input_ids=torch.tensor([one.ids])).logits[0]
        [(start, stop)] = one.spans
        targets = torch.tensor(one.ids[start:stop])
        nats = torch.nn.functional.cross_entropy(logits[start - 1 : stop - 1], targets, reduction="sum")
        assert found.nats[at] == pytest.approx(float(nats), rel=1e-4)
        assert found.right[at] == int((logits[start - 1 : stop - 1].argmax(dim=1) == targets).sum())
        assert found.tokens[at] == stop - start
