"""Every family of chat templates: laid out as its makers do, ended where they end, forged by nobody, and exported."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from manners.models import versions
from manners.models.branches import Branch, ScalarBranch
from manners.models.pretrained import Pretrained
from manners.models.proof import proved
from manners.models.trunk import grow_trunk
from manners.models.vocabulary import Vocabulary
from manners.reward import stored
from manners.reward.ensemble import RewardModel, score_exchanges
from manners.text import Renderer
from manners.turns import template_of
from manners.types import Dialogue, FinishReason, Response, Role, Sampling, Turn
from tests.conftest import some
from tests.families import FAMILIES, Family, tokenizer_of
from tests.worlds import tiny_model

DAY = date(2026, 3, 5)
USER, SYSTEM = Turn(Role.USER, "How do I bake bread?"), Turn(Role.SYSTEM, "Be kind.")
TALK = (USER, Turn(Role.ASSISTANT, "Mix flour and water."), Turn(Role.USER, "How long?"))
TALKS = {"one turn": (USER,), "talk": TALK, "system": (SYSTEM, USER), "system talk": (SYSTEM, *TALK)}
ANSWERS = ("An hour.", "  spaces before and after \n", "<think>\nwell\n</think>\n\nAn hour.", "- one\n- two")


def renderer_of(family: Family) -> Renderer:
    tokenizer = tokenizer_of(family)
    template = template_of(tokenizer, None, family.arguments, lambda: DAY)
    ends: Any = [tokenizer.convert_tokens_to_ids(name) for name in (family.special[1], *family.named)]
    return Renderer(tokenizer, frozenset(ends), 512, template)


def messages(dialogue: Dialogue) -> list[dict[str, str]]:
    return [{"role": turn.role.value, "content": turn.text} for turn in dialogue]


def folded(family: Family, dialogue: Dialogue) -> Dialogue:
    """What a template that refuses system turns is given instead."""
    if not family.folds or dialogue[0].role is not Role.SYSTEM:
        return dialogue
    return (Turn(Role.USER, f"{dialogue[0].text}\n\n{dialogue[1].text}"), *dialogue[2:])


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
def test_a_prompt_is_what_plain_transformers_renders(family: Family, talk: Dialogue) -> None:
    tokenizer, renderer = tokenizer_of(family), renderer_of(family)
    ids, _ = renderer.prompt_ids(talk)
    if family.template is None:
        written = "".join(f"{turn.role.capitalize()}: {turn.text}\n\n" for turn in talk)
        wanted: Any = tokenizer.encode(f"{written}Assistant:")
    else:
        fixed = family.template.replace('strftime_now("%d %b %Y")', '"05 Mar 2026"')
        asked = {"add_generation_prompt": True, "chat_template": fixed, "return_dict": False, **family.arguments}
        wanted = tokenizer.apply_chat_template(messages(folded(family, talk)), **asked)
    assert list(ids) == list(wanted)
    assert ids.count(tokenizer.bos_token_id) == wanted.count(tokenizer.bos_token_id)


def test_an_answer_ends_with_what_the_template_writes_and_only_once(family: Family) -> None:
    renderer = renderer_of(family)
    tokenizer = renderer.tokenizer
    end = tokenizer.convert_tokens_to_ids(family.end)
    assert renderer.end_id == end and renderer.end_ids == {end, tokenizer.eos_token_id}
    for text in (*ANSWERS, f"An hour.{family.end}", family.end, f"An hour.{tokenizer.eos_token}"):
        for sampling in (None, Sampling(1.0, 8, 0)):
            ids = renderer.response_ids(Response(text, "x", FinishReason.STOP, sampling))
            assert ids[-1] == end and not renderer.end_ids.intersection(ids[:-1]), text
    drawn = tokenizer.encode("An hour.", add_special_tokens=False)
    assert renderer.decode([*drawn, end]) == "An hour.", "and what is decoded has none"


def test_no_text_forges_a_control_token(family: Family) -> None:
    renderer = renderer_of(family)
    tokenizer = renderer.tokenizer
    names = [name for name in tokenizer.added_tokens_encoder if not name.isspace()]
    control = {tokenizer.convert_tokens_to_ids(name) for name in names} - {tokenizer.unk_token_id}
    assert control <= renderer._spelling.control_ids, "in these families every added token is one"
    for name in names:
        for text in (name, f"so{name}so", f" {name} {name}\n", f"hi{name}\n{names[-1]}assistant"):
            for shape in TALKS.values():
                spelt = tuple(replace(turn, text=text) for turn in shape)
                harmless = tuple(replace(turn, text="hi") for turn in shape)
                (ids, _), (plain, _) = renderer.prompt_ids(spelt), renderer.prompt_ids(harmless)
                assert [i for i in ids if i in control] == [i for i in plain if i in control], text
            ids = renderer.response_ids(Response(text, "someone", FinishReason.STOP))
            assert not control.intersection(ids[:-1])
            assert renderer.decode(ids) == text


def test_a_thought_that_the_model_itself_drew_is_its_tokens_again() -> None:
    renderer = renderer_of(FAMILIES["qwen-3"])
    encode = renderer.tokenizer.encode
    drawn = [*encode("<think>\nwell\n</think>\n\nAn hour.", add_special_tokens=False), renderer.end_id]
    text = renderer.decode(drawn)
    assert text.startswith("<think>") and drawn[0] == renderer.tokenizer.convert_tokens_to_ids("<think>")
    assert list(renderer.response_ids(Response(text, "policy-1", FinishReason.STOP, Sampling(1.0, 8, 0)))) == drawn
    brought = renderer.response_ids(Response(text, "a file", FinishReason.STOP))
    assert drawn[0] not in brought and renderer.decode(brought) == text


@pytest.mark.parametrize("family", some(FAMILIES, 6), indirect=True)
@torch.no_grad()
def test_exports_lay_dialogues_out_as_here_and_score_them_alike(family: Family, tmp_path: Path) -> None:
    renderer = renderer_of(family)
    tokenizer = renderer.tokenizer
    model = tiny_model(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, max_position_embeddings=512)
    trunk = proved(grow_trunk(model, 2), 128)
    pretrained = Pretrained("tiny", replace(trunk, vocabulary=Vocabulary.of(renderer, model)), renderer, "")

    # A policy: another program asks it what is asked here, and its answers end where they end here.
    versions.export_policy(Branch(trunk, trainable=True), pretrained, tmp_path / "policy")
    exported: Any = AutoTokenizer.from_pretrained(tmp_path / "policy")
    policy: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert set(policy.generation_config.eos_token_id) == renderer.end_ids
    for talk in TALKS.values():
        asked = exported.apply_chat_template(messages(talk), add_generation_prompt=True, return_dict=False)
        assert list(asked) == list(renderer.prompt_ids(talk)[0])

    # A reward model: the documentation's own lines give the same score.
    branch = ScalarBranch(trunk, None)
    branch.scalar.weight.normal_(generator=torch.Generator().manual_seed(1))
    reward = RewardModel((branch,), (0.3,), (2.0,))
    shift = stored.export_reward(reward, 0, pretrained, tmp_path / "reward")
    scorer = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    exported = AutoTokenizer.from_pretrained(tmp_path / "reward")
    exchanges = [(talk, Response(text, "x", FinishReason.STOP)) for talk in TALKS.values() for text in ANSWERS]
    exchanges = [(t, r) for t, r in exchanges if "<think>" not in r.text or "<think>" not in exported.get_vocab()]
    dialogues = [messages((*talk, Turn(Role.ASSISTANT, response.text))) for talk, response in exchanges]
    texts = [exported.apply_chat_template(d, tokenize=False).rstrip() for d in dialogues]
    batch = exported(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    theirs = scorer(**batch).logits.squeeze(1) - shift
    (ours,) = score_exchanges(reward, pretrained, exchanges)
    torch.testing.assert_close(theirs, ours.mean, atol=2e-4, rtol=2e-4)
