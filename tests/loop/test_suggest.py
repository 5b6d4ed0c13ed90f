"""What is suggested for a model and the data at hand: lengths by the tokenizer alone, memory as the model takes it."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from manners import cli
from manners.errors import MannersError
from manners.loop import evaluate, ppo, reward, sample, suggest
from manners.loop.lengths import AtHand, of_file, renderer_of
from manners.loop.plan import OVERHEAD, Part, Plan
from manners.loop.suggest import Machine, Suggestion
from manners.models.paper import Outline, outline, paper, trunk_on_paper
from manners.models.pretrained import load
from manners.settings import ModelSettings, Settings
from manners.settings_load import load as load_settings
from manners.types import PromptUse
from manners.workspace import Workspace
from tests.loop import tiny
from tests.worlds import save_tiny, tiny_tokenizer

CPU = torch.device("cpu")
PLENTY = Machine(CPU, 10**12, 10**12)


def pairs(folder: Path, words: list[int]) -> Path:
    """A file of comparisons with answers of so many words."""
    file = folder / "pairs.jsonl"
    rows = [{"prompt": f"bread {n}?", "chosen": "noon " * n, "rejected": "sea"} for n in words]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"prompt": "no answers"}\n')
    return file


def tokens(prompt: str, answer: str) -> tuple[int, int]:
    """Tokens of a prompt, up to where the assistant begins, and of an answer with its end: by the tokenizer alone."""
    tokenizer: Any = tiny_tokenizer()
    turns = [{"role": "user", "content": prompt}]
    laid = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    return len(laid), len(tokenizer.encode(answer, add_special_tokens=False)) + 1


def chosen(found: list[Suggestion]) -> dict[str, Any]:
    return {one.field: one.value for one in found}


def reasons(found: list[Suggestion]) -> dict[str, str]:
    return {one.field: one.reason for one in found}


def test_context_and_length_of_answers_come_from_the_data(tmp_path: Path) -> None:
    words = [*range(1, 20), 40]  # of 40 responses, 39 are shorter than the last
    described = outline(str(save_tiny(tmp_path / "model")))
    data = of_file(pairs(tmp_path, words), renderer_of(described.tokenizer, ModelSettings()), {})
    lengths = [tokens(f"bread {n}?", "noon " * n) for n in words]
    short = tokens("", "sea")[1]
    assert sorted(data.exchanges) == sorted((prompt, max(answer, short)) for prompt, answer in lengths)
    assert sorted(data.responses) == sorted([answer for _, answer in lengths] + [short] * len(words))
    assert "1 rows of it left out" in data.source and (data.pairs, data.distinct) == (20, 20)
    found = suggest.suggest(described, data, PLENTY, Settings())
    usual = sorted(data.responses)[37]  # 38 of 40 are no longer
    new_tokens = -(-usual // 16) * 16
    longest = max(prompt + max(answer, new_tokens) for prompt, answer in lengths)
    assert chosen(found)["sample.max_new_tokens"] == new_tokens
    assert chosen(found)["model.context"] == min(256, -(-longest // 64) * 64), "the model has 256 positions"
    assert f"at most {usual:,} tokens" in reasons(found)["sample.max_new_tokens"]
    assert f"takes {longest:,} tokens" in reasons(found)["model.context"]


def test_a_context_is_never_longer_than_the_model_and_says_what_is_shortened(tmp_path: Path) -> None:
    described = outline(str(save_tiny(tmp_path / "model", max_position_embeddings=96)))
    found = suggest.suggest(
        described,
        of_file(pairs(tmp_path, [3, 4, 200]), renderer_of(described.tokenizer, ModelSettings()), {}),
        PLENTY,
        Settings(),
    )
    assert chosen(found)["model.context"] == 96 and chosen(found)["sample.max_new_tokens"] <= 48
    assert "1 of 3 are longer and are shortened; the model takes up to 96" in reasons(found)["model.context"]
    without = suggest.suggest(described, AtHand("no data"), PLENTY, Settings())
    assert (chosen(without)["model.context"], chosen(without)["sample.max_new_tokens"]) == (96, 48)


@pytest.mark.long
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("llama", {"lora_rank": 3}),
        ("llama", {"dtype": "bfloat16", "recompute": True}),
        ("gpt2", {"trainable_layers": "all"}),
        ("gemma2", {}),
    ],
)
def test_what_stands_on_paper_is_what_the_loaded_model_takes(
    tmp_path: Path, model_type: str, changes: dict[str, Any]
) -> None:
    folder = save_tiny(tmp_path / "model", model_type)
    model = replace(ModelSettings(name=str(folder), trainable_layers=2, device="cpu", context=128), **changes)
    settings = Settings(model=model, sample=replace(Settings().sample, max_new_tokens=16))
    trunk = load(model).trunk

    def parts(trunk: Any) -> list[Any]:
        return [
            *sample.memory_parts(trunk, settings.sample, 40, 20),
            *reward.memory_parts(trunk, settings.reward, 30, 20),
            *ppo.memory_parts(trunk, settings, 64, 40, 20),
            *evaluate.memory_parts(trunk, settings, 24, 1, 20),
        ]

    with paper():
        drawn = trunk_on_paper(outline(str(folder)).config, model, CPU)
        found = parts(drawn)
        assert drawn.cut == trunk.cut and drawn.hash == "on paper"
    # What the proof finds out is taken as it costs most on paper.
    lays_out = drawn.compute.lays_out
    same = replace(trunk, compute=replace(trunk.compute, shares_prompts=False, by_row=False, lays_out=lays_out))
    expected = parts(same)
    assert [part.name for part in found] == [part.name for part in expected]
    for on_paper, real in zip(found, expected, strict=True):
        # With numbers, a mask that hides nothing is left out; without a tokenizer, no token is shut out.
        low, high = (0.999, 1.15) if on_paper.name == "forward_and_backward" else (1.0, 1.0)
        assert low * real.size <= on_paper.size <= high * real.size, on_paper.name
    assert sum(p.size for p in parts(trunk)) <= sum(p.size for p in found) * 1.02


@pytest.mark.long
def test_what_does_not_fit_is_made_smaller_by_what_the_plan_names_until_it_fits(tmp_path: Path) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "vocab_size": 32_000}
    config = AutoConfig.for_model("llama", num_hidden_layers=6, max_position_embeddings=256, **sizes)
    described = Outline(config, tiny_tokenizer())
    data = of_file(pairs(tmp_path, [3, 8, 20]), renderer_of(described.tokenizer, ModelSettings()), {})
    data = replace(data, distinct=400)
    seen = list[dict[str, Any]]()
    unlimited = reasons(suggest.suggest(described, data, PLENTY, Settings()))["model.trainable_layers"]
    most = int(max(map(float, re.findall(r"`\w+` ([\d.]+) GB", unlimited))) * 1e9)
    for free in (2 * most, most, most * 2 // 3, most // 2):
        found = suggest.suggest(described, data, Machine(CPU, free, 10**12), Settings())
        seen.append(chosen(found))
        assert all(one.reason for one in found)
        takes = re.findall(r"`\w+` ([\d.]+) GB", reasons(found)["model.trainable_layers"])
        assert len(takes) == 5 and all(float(size) * 1e9 <= 0.9 * free + 5e7 for size in takes)
    assert "model.lora_rank" not in seen[0] and seen[0]["sample.batch"] == 96
    assert seen[-1] != seen[0] and len(seen[-1]) > len(seen[0])
    with pytest.raises(MannersError, match=r"is too large for this machine: `\w+` takes .* GB of memory at least, and"):
        suggest.suggest(described, data, Machine(CPU, OVERHEAD + 1_000_000, 10**12), Settings())


def test_half_a_batch_leaves_no_answer_alone(tmp_path: Path) -> None:
    ppo_settings = replace(Settings().ppo, batch=50, minibatch=50, validation_prompts=10)  # 25 would be 6 * 4 + 1
    described = outline(str(save_tiny(tmp_path / "model")))
    search = suggest._Search(described, AtHand("no data"), PLENTY, replace(Settings(), ppo=ppo_settings))
    part = Part("drawing_responses", 10**9, "ppo.batch")
    assert suggest._lower(search, part, Plan("ppo", {}, 0, (part,), 10**9))
    assert (search.settings.ppo.batch, search.settings.ppo.minibatch) == (24, 24)


def test_what_validation_draws_is_made_smaller_by_its_own_setting(tmp_path: Path) -> None:
    search = suggest._Search(outline(str(save_tiny(tmp_path / "model"))), AtHand("no data"), PLENTY, Settings())
    for lower, changed in (("ppo.batch", False), ("ppo.validation_prompts", True), ("ppo.batch", True)):
        part = Part("drawing_responses", 10**9, lower)  # 80 answers are drawn, then 40, where a batch has 64
        assert suggest._lower(search, part, Plan("ppo", {}, 0, (part,), 10**9)) is changed
    assert (search.settings.ppo.validation_prompts, search.settings.ppo.batch) == (20, 32)


def test_states_that_the_disk_cannot_hold_are_computed_anew(tmp_path: Path) -> None:
    described = outline(str(save_tiny(tmp_path / "model")))
    data = of_file(pairs(tmp_path, [3, 8]), renderer_of(described.tokenizer, ModelSettings()), {})
    assert "model.trunk_states" not in chosen(suggest.suggest(described, data, PLENTY, Settings()))
    found = suggest.suggest(described, data, Machine(CPU, 10**12, 100), Settings())
    assert chosen(found)["model.trunk_states"] == "recomputed"


def run(*args: str) -> int:
    return cli.main([*args])


def test_init_writes_settings_with_their_reasons_and_settings_suggest_shows_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = save_tiny(tmp_path / "model"), pairs(tmp_path, [3, 8, 20])
    root = tmp_path / "work"
    monkeypatch.chdir(tmp_path)
    assert run("init", str(root), "--model", "./model", "--comparisons", str(file), "--json") == 0
    made = json.loads(capsys.readouterr().out)
    text = (root / "manners.toml").read_text()
    flat = {f"{stage}.{name}": v for stage, table in tomllib.loads(text).items() for name, v in table.items()}
    assert flat.pop("model.name") == str(model)
    assert flat == {row["field"]: row["value"] for row in made["settings"]}
    assert {"model.context", "model.dtype", "model.trainable_layers", "sample.max_new_tokens"} <= flat.keys()
    for line, before in zip(text.splitlines()[6:], text.splitlines()[5:], strict=False):
        assert "=" not in line.partition("#")[0] or before.startswith("# "), f"a reason stands above {line}"
    assert load_settings(root / "manners.toml").settings.model.context == flat["model.context"]
    assert run("comparisons", "import", str(file), "--skip-bad", "--workspace", str(root)) == 0
    capsys.readouterr()
    assert run("settings", "--suggest", "--workspace", str(root), "--json") == 0
    shown = json.loads(capsys.readouterr().out)["settings"]
    assert {row["field"]: row["suggested"] for row in shown} == flat == {row["field"]: row["now"] for row in shown}
    assert all("this workspace (3 comparisons" in r["reason"] for r in shown if r["field"] == "model.context")


def test_init_reads_columns_of_other_names_and_whatever_verdicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lengths hang on no verdict: those of the same dialogues in our own words are chosen for."""
    model, own, theirs = save_tiny(tmp_path / "model"), tmp_path / "own.jsonl", tmp_path / "theirs.csv"
    said = [(f"bread {n}?", "noon " * n, "sea") for n in (3, 8, 20)]
    names = "prompt", "left", "right"
    own.write_text("".join(json.dumps(dict(zip(names, one, strict=True)) | {"verdict": "left"}) + "\n" for one in said))
    theirs.write_text("question,answer 1,answer 2,who\n" + "".join(f"{','.join(one)},A wins\n" for one in said))
    maps = [f"--map={column}={ours}" for column, ours in zip(("question", "answer 1", "answer 2"), names, strict=True)]
    maps += ["--map=who=verdict"]
    found = []
    for folder, file, options in (("a", own, []), ("b", theirs, maps)):
        command = ("init", str(tmp_path / folder), "--model", str(model), "--comparisons", str(file))
        assert run(*command, *options, "--json") == 0
        rows = json.loads(capsys.readouterr().out)["settings"]
        found.append({row["field"]: row["value"] for row in rows})
        assert f"{file.name} (3 comparisons)" in " ".join(row["reason"] for row in rows)
    assert found[0] == found[1] and "sample.max_new_tokens" in found[0]
    assert run("init", str(tmp_path / "c"), "--model", str(model), *maps) == 2
    assert "--map says how to read the FILE of --comparisons" in capsys.readouterr().err


def test_init_writes_the_name_of_a_model_beyond_the_basic_plane(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And any other that a folder may have: JSON's pairs of surrogates are no TOML, and neither is DEL as it is."""
    model = save_tiny(tmp_path / 'a \N{ROCKET} "b" \x7f\x1b')
    file = tmp_path / "\x7f\N{ROCKET}.jsonl"
    pairs(tmp_path, [3, 8]).rename(file)
    assert run("init", str(tmp_path / "work"), "--model", str(model), "--comparisons", str(file), "--json") == 0
    capsys.readouterr()
    assert load_settings(tmp_path / "work" / "manners.toml").settings.model.name == str(model)


def test_init_that_cannot_choose_makes_nothing_and_a_workspace_keeps_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run("init", str(tmp_path / "work"), "--model", str(tmp_path)) == 1
    assert "a folder without config.json" in capsys.readouterr().err
    assert run("init", str(tmp_path / "work"), "--model", "nobody/nothing") == 1
    assert not (tmp_path / "work").exists()
    Workspace.create(tmp_path / "work")
    (tmp_path / "work" / "manners.toml").write_text("seed = 5\n")
    assert run("init", str(tmp_path / "work"), "--model", str(save_tiny(tmp_path / "model"))) == 2
    assert "`manners settings --suggest` shows" in capsys.readouterr().err
    assert (tmp_path / "work" / "manners.toml").read_text() == "seed = 5\n"


def test_prompts_alone_decide_a_context_too(tmp_path: Path) -> None:
    session = tiny.project(tmp_path / "work", save_tiny(tmp_path / "model"))
    found = suggest.for_workspace(session.workspace, session.settings)
    longest = max(tokens(prompt[0].text, "")[0] for use in PromptUse for prompt in tiny.PROMPTS[use])
    assert chosen(found)["sample.max_new_tokens"] == 128, "half of what the model takes"
    assert f"takes {longest + 128} tokens" in reasons(found)["model.context"]
