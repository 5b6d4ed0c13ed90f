"""Chat templates in the files of a model, read without its tokenizer: loads neither torch nor transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from manners.templates import DEFAULT

PROCESSOR = "chat_template.json"
"""Where processors keep a template; a tokenizer without one of its own shares it."""
TEMPLATES = ("special_tokens_map.json", "chat_template.jinja", "additional_chat_templates/*.jinja", PROCESSOR)
"""What templates are read from beside the tokenizer's configuration."""


def of_folder(folder: Path) -> tuple[object, dict[str, str]]:
    """Read from a model's folder what its tokenizer would bring, as `made` takes it: templates, and tokens by name."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            config |= json.loads((folder / name).read_text(encoding="utf-8"))
    tokens = {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in config.items()
        if name.endswith("_token") and isinstance(value, str | dict)
    }
    files = {file.stem: file for file in (folder / "additional_chat_templates").glob("*.jinja")}
    if (folder / "chat_template.jinja").is_file():
        files[DEFAULT] = folder / "chat_template.jinja"
    named = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    found = named or config.get("chat_template")
    if found is None and (folder / PROCESSOR).is_file():
        found = in_json(folder / PROCESSOR)
    return found, tokens


def in_json(file: Path) -> object:
    """Read the template, or several, that the processor of a model which also looks at pictures keeps in a file."""
    read = json.loads(file.read_text(encoding="utf-8"))
    return read.get("chat_template") if isinstance(read, dict) else read
