"""What comes with a model is read and never run: folders with code in every place from which some library takes it."""

from __future__ import annotations

import ast
import builtins
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file

import manners
from manners.checkpoint import Run
from manners.errors import MannersError
from manners.models import paper, versions, whole
from manners.models.pretrained import load
from manners.settings import ModelSettings, Settings
from manners.settings_load import to_dict
from manners.templates import Refused, Template
from manners.types import VersionKind
from manners.workspace import Workspace
from tests.conftest import some
from tests.models.test_adapters import adapter
from tests.worlds import TEMPLATE, save_tiny

EVERY_CLASS = {
    "AutoConfig": "evil.Evil",
    "AutoModel": "evil.Evil",
    "AutoModelForCausalLM": "evil.Evil",
    "AutoModelForSequenceClassification": "evil.Evil",
    "AutoModelForImageClassification": "evil.Evil",
    "AutoProcessor": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
}


@pytest.fixture
def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is there once any of the code was run; whoever is asked whether to run it, says yes, and it shows."""
    trip = tmp_path / "tripped"

    def yes(*_: object) -> str:
        trip.write_text("somebody was asked")
        return "y"

    monkeypatch.setattr(builtins, "input", yes)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "evil.py").write_text(code(trip))
    yield trip
    sys.modules.pop("evil", None)


def code(trip: Path) -> str:
    return f"open({str(trip)!r}, 'w').write('ran')\nclass Evil:\n    pass\n"


def with_code(folder: Path, trip: Path) -> None:
    for name in ("evil.py", "custom_generate/generate.py", "tokenization_evil.py", "configuration_evil.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code(trip))


def changed(folder: Path, name: str, **entries: Any) -> None:
    file = folder / name
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**known, **entries}))


class Runs:
    """Unpickled, it trips the wire."""

    def __init__(self, trip: Path) -> None:
        self.trip = trip

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trip}",)


def auto_map(*classes: str, model_type: str | None = None) -> Callable[[Path, Path], None]:
    def make(folder: Path, _: Path) -> None:
        chosen = {name: EVERY_CLASS[name] for name in classes or EVERY_CLASS}
        changed(folder, "config.json", auto_map=chosen, **({} if model_type is None else {"model_type": model_type}))

    return make


def tokenizer(**entries: Any) -> Callable[[Path, Path], None]:
    def make(folder: Path, _: Path) -> None:
        changed(folder, "tokenizer_config.json", **entries)

    return make


def both(*makers: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    def make(folder: Path, trip: Path) -> None:
        for one in makers:
            one(folder, trip)

    return make


def processor(folder: Path, _: Path) -> None:
    for name in ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"):
        changed(folder, name, auto_map=EVERY_CLASS, processor_class="EvilProcessor")


def elsewhere(folder: Path, _: Path) -> None:
    changed(folder, "config.json", auto_map={"AutoModelForCausalLM": "some/repository--evil.Evil"}, model_type="evil")


def pickled(name: str) -> Callable[[Path, Path], None]:
    def make(folder: Path, trip: Path) -> None:
        tensors = load_file(folder / "model.safetensors") if name == "pytorch_model.bin" else {}
        torch.save({**tensors, "more": Runs(trip)}, folder / name)
        if tensors:
            (folder / "model.safetensors").unlink()

    return make


def sharded(folder: Path, trip: Path) -> None:
    pickled("pytorch_model.bin")(folder, trip)
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00001.bin")
    names = dict.fromkeys(["more"], "pytorch_model-00001-of-00001.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def generation(folder: Path, _: Path) -> None:
    changed(folder, "generation_config.json", custom_generate=str(folder), auto_map=EVERY_CLASS, trust_remote_code=True)


def believing(folder: Path, trip: Path) -> None:
    """A folder that says of itself that it is to be trusted."""
    auto_map(model_type="evil")(folder, trip)
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        changed(folder, name, trust_remote_code=True, auto_map=EVERY_CLASS)


FOLDERS: dict[str, Callable[[Path, Path], None]] = {
    "a configuration of an unknown kind": auto_map(model_type="evil"),
    "a configuration of a known kind": auto_map(),
    "only the model": auto_map("AutoModelForCausalLM"),
    "only the model, of an unknown kind": auto_map("AutoModelForCausalLM", model_type="evil"),
    "code of another repository": elsewhere,
    "a tokenizer": tokenizer(auto_map={"AutoTokenizer": ["evil.Evil", None]}),
    "a fast tokenizer": tokenizer(auto_map={"AutoTokenizer": [None, "evil.Evil"]}),
    "a tokenizer as in old files": tokenizer(auto_map=["evil.Evil", None]),
    "a tokenizer with a class of its own": tokenizer(
        tokenizer_class="EvilTokenizer", auto_map={"AutoTokenizer": ["evil.Evil", None]}
    ),
    "a tokenizer that is a model": both(
        auto_map("AutoModelForImageClassification"), tokenizer(tokenizer_class="AutoModelForImageClassification")
    ),
    "a tokenizer that is a processor": both(processor, auto_map(), tokenizer(tokenizer_class="AutoProcessor")),
    "a tokenizer that is a tokenizer": both(auto_map(), tokenizer(tokenizer_class="AutoTokenizer")),
    "a tokenizer with a module's name": tokenizer(tokenizer_class="evil.Evil"),
    "a configuration that names the tokenizer": both(
        auto_map("AutoTokenizer"), lambda f, _: changed(f, "config.json", tokenizer_class="EvilTokenizer")
    ),
    "a processor": processor,
    "a pickle": pickled("pytorch_model.bin"),
    "a pickle in a shard": sharded,
    "a pickle beside the weights": both(pickled("training_args.bin"), pickled("optimizer.pt"), pickled("vocab.pkl")),
    "a way to generate": generation,
    "a kernel for its attention": lambda f, _: changed(f, "config.json", attn_implementation="evil/kernel"),
    "a folder that asks to be trusted": believing,
}


@pytest.mark.parametrize("case", some(FOLDERS, 7))
def test_code_in_a_folder_is_not_run_and_nobody_is_asked(tmp_path: Path, wire: Path, case: str) -> None:
    folder = save_tiny(tmp_path / "model")
    with_code(folder, wire)
    FOLDERS[case](folder, wire)
    _tried(folder, wire)


@pytest.mark.parametrize("entries", [
    {"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}, "task_type": None},
    {"megatron_config": {"tensor_model_parallel_size": 1}, "megatron_core": "evil"},
    {"megatron_config": {"tensor_model_parallel_size": 1}, "megatron_core": "megatron.core.evil"},
    {"peft_type": "evil.Evil"},
    {"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {"trust_remote_code": True}, "prompt_tuning_init": "TEXT"},
    {"auto_map": EVERY_CLASS, "trust_remote_code": True},
])  # fmt: skip
def test_code_that_an_adapter_names_is_not_run(tmp_path: Path, wire: Path, entries: dict[str, Any]) -> None:
    folder = adapter(tmp_path / "adapter", save_tiny(tmp_path / "base"))
    with_code(folder, wire)
    changed(folder, "adapter_config.json", **entries)
    _tried(folder, wire)


@pytest.mark.parametrize("case", ["weights", "tokenizer", "base"])
def test_code_beside_an_adapter_is_not_run(tmp_path: Path, wire: Path, case: str) -> None:
    base = save_tiny(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", base)
    with_code(folder, wire)
    if case == "weights":
        (folder / "adapter_model.safetensors").unlink()
        torch.save({"more": Runs(wire)}, folder / "adapter_model.bin")
    elif case == "tokenizer":
        shutil.copy(base / "tokenizer.json", folder)  # one without words is not read
        changed(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    else:
        believing(base, wire)
        with_code(base, wire)
    assert "never run" in _tried(folder, wire) or case == "weights"


def test_code_beside_a_gguf_file_is_not_run(tmp_path: Path, wire: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    with_code(folder, wire)
    believing(folder, wire)
    writer = gguf.GGUFWriter(folder / "some.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert "it holds no weights" in _tried(folder / "some.gguf", wire)


def test_what_was_refused_for_its_code_says_so_in_one_sentence(tmp_path: Path, wire: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    auto_map(model_type="evil")(folder, wire)
    said = _tried(folder, wire)
    assert str(folder) in said and "code that comes with a model is never run" in said


def test_code_in_a_version_of_a_workspace_is_not_run(tmp_path: Path, wire: Path) -> None:
    workspace = Workspace.create(tmp_path / "ws")
    folder = save_tiny(workspace.models / "pretrain-1")
    with_code(folder, wire)
    believing(folder, wire)
    settings = ModelSettings(name="pretrain-1", trainable_layers=2, device="cpu", context=64)
    described = versions.Version(
        "pretrain-1",
        VersionKind.PRETRAIN,
        "pretrain-1",
        "",
        2,
        "",
        "float32",
        "",
        settings=to_dict(Settings(model=settings)),
    )
    versions.write_description(described, folder)
    for read in (lambda: whole.load(settings, workspace), lambda: whole.outline(workspace, "pretrain-1")):
        with pytest.raises(MannersError, match="never run"):
            read()
    assert not wire.exists()


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, wire: Path) -> None:
    run = Run(tmp_path / "runs", "manners ppo", {"seed": 0}, 0.0)
    run.save({"more": Runs(wire)})
    with pytest.raises(MannersError, match="is no checkpoint of ours"):
        Run(tmp_path / "runs", "manners ppo", {"seed": 0}, 0.0).go_on()
    assert not wire.exists()


ESCAPES = (
    "{{ cycler.__init__.__globals__.os.system(COMMAND) }}",
    "{{ namespace.__init__.__globals__['os'].system(COMMAND) }}",
    "{{ lipsum.__globals__['os'].popen(COMMAND).read() }}",
    "{{ raise_exception.__globals__['json'].codecs.sys.modules['os'].system(COMMAND) }}",
    "{{ raise_exception.__code__ }}{{ dict.__mro__[1].__subclasses__() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{0.__class__}'.format_map({'0': ''}) }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages|tojson(cls=cycler) }}",
    "{{ messages|tojson(default=raise_exception.__globals__) }}",
    "{{ self.__init__.__globals__ }}{{ self._TemplateReference__context }}",
    "{{ (joiner|attr('__init__')).__globals__ }}",
    "{% for c in ().__class__.__base__.__subclasses__() %}{{ c.__init__.__globals__ }}{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system(COMMAND) }}",
    "{% extends '/etc/passwd' %}",
    "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "{{ messages[0].update({'role': 'user'}) }}",
    "{% set x = namespace(a=1) %}{{ x._Namespace__attrs.__class__.__mro__ }}",
    "{{ g.gi_frame.f_back.f_globals }}{% set g = messages|map('upper') %}{{ g.gi_frame.f_globals }}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
)


@pytest.mark.parametrize("escape", ESCAPES)
def test_no_template_gets_out_of_its_sandbox(wire: Path, escape: str) -> None:
    source = escape.replace("COMMAND", f"'touch {wire}'") + TEMPLATE
    messages = [{"role": "user", "content": "Hi"}]
    try:
        text = Template(source, {}, day=date(2026, 1, 1)).render(messages)
    except (Refused, MannersError):
        text = ""
    assert not wire.exists() and messages == [{"role": "user", "content": "Hi"}]
    for shows in ("<class", "root:", "subclasses", "built-in", "<module", "<function", "__"):
        assert shows not in text


SAFE = {
    "from_pretrained": ("trust_remote_code", False),
    "from_config": ("trust_remote_code", False),
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
"""What a call that loads something must say, in so many words."""
OTHERS = ("PeftConfig.from_pretrained", "ScriptDirectory.from_config")
"""Of these names and no loaders of models: peft's reads JSON, and Alembic's our own migrations."""
RUNNERS = {"eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "yaml.load", "joblib.load"}
RUNNERS |= {"marshal.loads", "torch.hub.load", "torch.jit.load", "runpy.run_path", "os.system", "os.popen"}


def test_no_call_in_the_package_lacks_the_word_that_it_runs_nothing() -> None:
    seen = 0
    for file in sorted(Path(manners.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in RUNNERS, f"{file.name}:{node.lineno} calls {name}"
            shells = [word for word in node.keywords if word.arg == "shell"]
            assert not shells, f"{file.name}:{node.lineno} gives a command to a shell"
            rule = SAFE.get(name) or SAFE.get(name.rpartition(".")[2] if "." in name else "")
            if rule is None or name.endswith(OTHERS):
                continue
            said = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            assert said.get(rule[0]) is rule[1], f"{file.name}:{node.lineno}: {name} without {rule[0]}={rule[1]}"
            seen += 1
    assert seen > 10


def _tried(source: Path, wire: Path) -> str:
    """Read a source as a model, and on paper; return what was said, if it was refused."""
    said = ""
    settings = ModelSettings(name=str(source), trainable_layers=2, device="cpu", context=64)
    for read in (lambda: load(settings), lambda: paper.outline(str(source))):
        try:
            read()
        except MannersError as error:
            said = said or str(error)
            assert "\n" not in str(error)
    assert not wire.exists(), wire.read_text()
    return said
