"""Settings: what they may be, where they come from, and that each of them is read by somebody."""

from __future__ import annotations

import ast
import json
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import manners
from manners.errors import MannersError, UsageError
from manners.settings import PPOSettings, RewardSettings, Settings
from manners.settings_load import (
    WITHDRAWN,
    Origin,
    as_toml,
    describe,
    from_dict,
    known_fields,
    load,
    parse,
    to_dict,
    to_toml,
)
from manners.settings_values import allowed

PACKAGE = Path(manners.__file__).parent


def test_defaults_are_allowed_and_every_field_says_what_it_means() -> None:
    """Every row has a meaning; without file or override every origin is the default."""
    rows = describe(load(None))
    assert [row.field for row in rows] == list(known_fields())
    assert {"seed", "ppo.clip", "model.name"} <= known_fields().keys()
    assert all(row.meaning.endswith(".") and row.value == row.default for row in rows)
    assert {row.origin for row in rows} == {Origin.DEFAULT}


def test_the_later_origin_wins(tmp_path: Path) -> None:
    """Default, then manners.toml, then --set, each with its origin."""
    toml = tmp_path / "manners.toml"
    toml.write_text('seed = 3\n[ppo]\nclip = 1\nkl_target = "none"\n[model]\ntrainable_layers = "all"\n')
    loaded = load(toml, ["ppo.clip=0.3", "ppo.updates=5"])
    assert (loaded.settings.seed, loaded.settings.model.trainable_layers) == (3, "all")
    assert (loaded.settings.ppo.clip, loaded.settings.ppo.updates, loaded.settings.ppo.kl_target) == (0.3, 5, None)
    assert loaded.origins["seed"] is loaded.origins["ppo.kl_target"] is Origin.TOML
    assert loaded.origins["ppo.clip"] is loaded.origins["ppo.updates"] is Origin.SET
    assert loaded.origins["ppo.gamma"] is Origin.DEFAULT
    assert load(tmp_path / "absent.toml").settings == Settings()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("ppo.updates=7", 7),
        ("ppo.clip=1e-1", 0.1),
        ("ppo.clip=1", 1.0),
        ("ppo.kl_target=none", None),
        ("ppo.kl_target=6", 6.0),
        ("reward.limit=100", 100),
        ("reward.annotators=human", "human"),
        ("reward.annotators=none", None),
        ("reward.curve=false", False),
        ("model.trainable_layers=all", "all"),
        ("model.trainable_layers=2", 2),
        ("model.name=135", "135"),
        ("model.name = a=b ", "a=b"),
        ("model.device=cuda", "cuda"),
    ],
)
def test_overrides_have_the_type_of_their_field(text: str, value: object) -> None:
    """A number stays a number, a name that looks like one a text, and none is None."""
    name = text.partition("=")[0].strip()
    [row] = describe(load(None, [text]), name)
    assert row.value == value
    assert type(row.value) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ppo.clap=1", "ppo.clap is not a setting: did you mean ppo.clip?"),
        ("poo.clip=1", "did you mean ppo.clip?"),
        ("clip=1", "did you mean ppo.clip?"),
        ("sed=1", "did you mean seed?"),
        ("ppo=1", "ppo is not a setting"),
        ("qqqq=1", "`manners settings` lists them all"),
        ("ppo.clip", "stage.field=value"),
        ("ppo.clip=40", "--set ppo.clip cannot be '40': it takes 0.001 to 10."),
        ("ppo.clip=nan", "ppo.clip cannot be 'nan'"),
        ("ppo.clip=true", "ppo.clip cannot be 'true'"),
        ("ppo.clip=none", "ppo.clip cannot be 'none'"),
        ("ppo.updates=1.5", "a whole number, 1 to 1000000"),
        ("sample.max_new_tokens=0", "sample.max_new_tokens cannot be '0': it takes a whole number, 1 to 100000."),
        ("reward.annotators=people", "human | ai | simulated | human+ai, or none"),
        ("reward.limit=1", "a whole number, 2 to 1000000000, or none"),
        ("model.device=tpu", "auto | cpu | cuda | mps"),
        ("reward.curve=perhaps", "true | false"),
    ],
)
def test_a_bad_override_is_told_in_one_sentence(text: str, says: str) -> None:
    """The message names the field, the value and what it takes, or the nearest name."""
    with pytest.raises(UsageError) as caught:
        load(None, [text])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[ppo]\nclip = 40", "ppo.clip cannot be 40"),
        ("[ppo]\nclip = [1]", "ppo.clip cannot be [1]"),
        ("[model]\nname = []", "model.name cannot be []"),
        ("[pop]\nclip = 1", "pop.clip is not a setting"),
        ("clip", "is not TOML"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    """What is wrong in manners.toml is told with the file's name."""
    toml = tmp_path / "manners.toml"
    toml.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(toml)
    assert says in str(caught.value)
    assert str(toml) in str(caught.value)


@given(st.text(st.characters(codec="utf-8")))
@example('"\\ \t\n\r\x00\x1b\x7f\x85\u2028 \N{FACE WITH TEARS OF JOY}')
def test_any_text_is_written_so_that_it_is_read_as_it_was(text: str) -> None:
    """Also in what TOML and JSON do not write alike: beyond U+FFFF, DEL, and tables."""
    for value in (text, [text, "x"], {text: [text], "n": 1}, 3, 1e-07, True):
        assert tomllib.loads(f"value = {to_toml(value)}")["value"] == value


def test_what_is_no_unicode_is_written_to_no_file() -> None:
    """A name on the disk may be any bytes: Python has half a pair of surrogates for those that it cannot read."""
    with pytest.raises(MannersError, match=r"a.udcff.* cannot be written to a settings file"):
        to_toml("a\udcff")


def test_a_record_made_in_code_is_checked_too() -> None:
    """Python callers meet the same ranges, by the same names."""
    with pytest.raises(UsageError, match=r"ppo\.clip cannot be 0: it takes 0\.001 to 10"):
        PPOSettings(clip=0)
    with pytest.raises(UsageError, match=r"reward\.members cannot be True"):
        RewardSettings(members=True)
    with pytest.raises(UsageError, match=r"^seed cannot be -1"):
        Settings(seed=-1)


def test_settings_are_written_so_that_they_are_read_as_they_were(tmp_path: Path) -> None:
    assert as_toml(Settings()).strip() == ""
    # By hand, in the values that TOML has: whole numbers and others, texts, lists, tables.
    by_hand = """
        seed = 5
        [model]
        name = "a \\"b\\" é"
        template_arguments = {thinking = false, depth = 2}
        [sample]
        temperature = 0.5
        [reward]
        curve = false
        annotators = ["human", "ai"]
        learning_rate = 0.0005
        [ppo]
        updates = 3
    """
    (tmp_path / "by-hand.toml").write_text(by_hand, encoding="utf-8")
    settings = load(tmp_path / "by-hand.toml").settings
    (tmp_path / "written.toml").write_text(as_toml(settings), encoding="utf-8")
    assert load(tmp_path / "written.toml").settings == settings
    written = tomllib.loads(as_toml(settings))
    assert set(written) == {"seed", "model", "sample", "reward", "ppo"}
    assert written["model"]["name"] == 'a "b" é'


def test_json_round_trip() -> None:
    """What a version stores is what it was trained with; fields that an older record lacks take their defaults."""
    settings = load(None, ["ppo.kl_target=6", "model.trainable_layers=all", "seed=4"]).settings
    assert from_dict(json.loads(json.dumps(to_dict(settings)))) == settings
    assert from_dict({"seed": 4}) == Settings(seed=4)
    with pytest.raises(UsageError, match=r"ppo\.clop is not a setting: did you mean ppo\.clip"):
        from_dict({"ppo": {"clop": 1.0}})


@pytest.mark.parametrize("value", ["k1", "k3"])
def test_a_withdrawn_setting_is_told_what_became_of_it(tmp_path: Path, value: str) -> None:
    """One sentence, and no guess at what else may have been meant, wherever it is still set."""
    toml = tmp_path / "manners.toml"
    toml.write_text(f'[ppo]\nkl_estimator = "{value}"\n')
    for where, overrides in ((toml, []), (None, [f"ppo.kl_estimator={value}"])):
        says = r"ppo\.kl_estimator is no longer a setting: the penalty in the reward is always k1"
        with pytest.raises(UsageError, match=says) as caught:
            load(where, overrides)
        assert "did you mean" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_record_that_names_a_withdrawn_setting_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is said where nothing has changed; a sentence where it said something else."""
    old = to_dict(Settings(seed=4))
    assert from_dict(old | {"ppo": old["ppo"] | {"kl_estimator": "k1"}}) == Settings(seed=4)
    assert capsys.readouterr().err == ""
    assert from_dict(old | {"ppo": old["ppo"] | {"kl_estimator": "k3"}}) == Settings(seed=4)
    said = capsys.readouterr().err
    assert said.startswith("ppo.kl_estimator is no longer a setting: ") and said.endswith("; this record says k3\n")
    assert not WITHDRAWN.keys() & known_fields().keys()


@given(st.floats(0.001, 10.0), st.integers(1, 1_000_000), st.text().map(str.strip))
def test_parse_reads_what_str_writes(number: float, whole: int, text: str) -> None:
    """Any value in range survives being written as text; a text field takes any text as it is."""
    assert parse(repr(number), known_fields()["ppo.clip"].hint) == number
    assert parse(str(whole), known_fields()["ppo.updates"].hint) == whole
    assert parse(text, str) == text


def test_describe_takes_a_stage_a_field_or_nothing() -> None:
    """`ppo` lists a stage, `ppo.clip` one field, and a wrong name is refused with the nearest."""
    loaded = load(None)
    assert {row.field.partition(".")[0] for row in describe(loaded, "ppo")} == {"ppo"}
    assert len(describe(loaded, "ppo")) == len(fields(PPOSettings))
    assert [row.allowed for row in describe(loaded, "ppo.clip")] == ["0.001 to 10"]
    with pytest.raises(UsageError, match="did you mean ppo"):
        describe(loaded, "pppo")
    assert allowed(str) == "text"


def bound_names(node: ast.AST) -> list[tuple[str, str]]:
    """Return the names that an argument or an assignment binds, each with what says to what it is bound."""
    match node:
        case ast.arg(arg=name, annotation=ast.Name(id=kind)):
            return [(name, kind)]
        case ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id=kind)):
            return [(name, kind)]
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Attribute(attr=stage)):
            return [(name, stage)]
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(targets) == len(values):
            pairs = [ast.Assign([target], value) for target, value in zip(targets, values, strict=True)]
            return [found for pair in pairs for found in bound_names(pair)]
    return []


def reads_of(source: str) -> set[str]:
    """Return the settings that a module reads: `x.field` where `x` is, or is bound to, a stage's settings."""
    nodes = list(ast.walk(ast.parse(source)))
    hints = {name: hint for name, hint in get_type_hints(Settings).items() if name != "seed"}
    kinds = {hint.__name__: stage for stage, hint in hints.items()} | {stage: stage for stage in hints}
    owners = {(stage, stage) for stage in hints} | {("settings", "")}
    owners |= {(name, kinds[kind]) for node in nodes for name, kind in bound_names(node) if kind in kinds}
    reads = set()
    for node in nodes:
        match node:
            case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr=field):
                reads |= {f"{stage}.{field}".lstrip(".") for name, stage in owners if name == owner.lstrip("_")}
    return reads


def test_reads_are_found_however_the_settings_are_called() -> None:
    source = """
def train(s: PPOSettings, all: Settings) -> None:
    evaluation, seed = session.settings.evaluate, 3
    mine = session.settings.reward
    print(s.clip, evaluation.prompts, mine.epochs, self.settings.seed, settings.model.name, other.gamma)
"""
    found = reads_of(source) & known_fields().keys()
    assert found == {"ppo.clip", "evaluate.prompts", "reward.epochs", "seed", "model.name"}


def test_every_setting_is_read_somewhere() -> None:
    """A setting that no stage reads is a promise that nobody keeps."""
    modules = [path for path in PACKAGE.rglob("*.py") if not path.name.startswith("settings")]
    read = set().union(*(reads_of(path.read_text(encoding="utf-8")) for path in modules))
    assert sorted(known_fields().keys() - read) == []


def test_a_list_of_annotators_is_both_of_them(tmp_path: Path) -> None:
    file = tmp_path / "manners.toml"
    file.write_text('[reward]\nannotators = ["human", "ai"]\n', encoding="utf-8")
    assert load(file).settings.reward.annotators == "human+ai"
    file.write_text('[reward]\nannotators = ["ai", "human"]\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"reward.annotators cannot be 'ai.human'"):
        load(file)
