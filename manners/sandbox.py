"""Where chat templates run: the programs of strangers, given what `transformers` gives them and nothing else."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class _GenerationTag(Extension):
    """`{% generation %}`, with which templates mark what an assistant wrote: laid out as what stands in it."""

    tags = {"generation"}  # noqa: RUF012 (as its base has it)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Take what stands between the tags."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


@cache
def environment() -> ImmutableSandboxedEnvironment:
    """Return what `transformers` gives chat templates, and nothing more (source: its chat_template_utils)."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **how)

    def new_dict(*items: Any, **named: Any) -> dict[Any, Any]:
        return dict(*items, **named)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "dict": new_dict, "namespace": Namespace}
    return environment


@cache
def compiled(text: str) -> Template:
    """Return a template, compiled once."""
    return environment().from_string(text)
