"""What a model's chat template refuses of what people bring: counted by reason, named by row, and left out.

Found when it is imported, where the model's files are at hand, and at the latest before a stage begins. Loads no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from manners.errors import MannersError
from manners.settings import ModelSettings
from manners.store.files.rowfiles import places
from manners.template_files import of_folder
from manners.templates import NEVER, Template, made
from manners.types import Dialogue

NAMED = 8
"""Rows of each reason that are named; the others are counted."""

Refusals = Mapping[str, list[int]]
"""By reason, the numbers of the rows that a template refuses."""


def refusals(template: Template, rows: Iterable[tuple[int, Dialogue]]) -> Refusals:
    """Return which dialogues a template refuses or drops a turn of, by reason."""
    rows = list(rows)
    found = dict[str, list[int]]()
    known = template.objections(dialogue for _, dialogue in rows)
    for number, dialogue in rows:
        if why := known[dialogue]:
            found.setdefault(why, []).append(number)
    return found


def tell(found: Refusals, what: str, file: Path | None = None) -> None:
    """Say on stderr what is left out of training for the template's sake; `what` they are, in the plural.

    The numbers are those of the store or, with `file`, those of its rows.
    """
    for why, numbers in found.items():
        more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
        told = f"number {', '.join(map(str, numbers[:NAMED]))}" if file is None else places(file, numbers[:NAMED])
        print(f"{len(numbers)} {what} cannot be used with this model: {why} ({told}{more})", file=sys.stderr)


def counts(found: Refusals) -> dict[str, int]:
    """Return how many there are of each reason."""
    return {why: len(numbers) for why, numbers in found.items()}


def of_file(rows: Iterable[tuple[int, Dialogue]], settings: ModelSettings) -> Refusals:
    """Return which of the dialogues in a file the model's chat template refuses, by the numbers of their rows.

    Only by the model's files, and nothing where they are not on this machine: a stage looks again when it has loaded
    the model. What is wrong with the template itself is said on stderr.
    """
    try:
        template = at_hand(settings)
    except MannersError as error:
        print(f"{settings.name}: {error}", file=sys.stderr)
        return {}
    return {} if template is None else refusals(template, rows)


def at_hand(settings: ModelSettings) -> Template | None:
    """Make a model's template from its files alone, where they are on this machine, with any date."""
    folder = Path(settings.name).expanduser()
    if not folder.is_dir():
        cached = in_hub_cache(settings.name)
        if cached is None:
            return None
        folder = cached
    try:
        found, tokens = of_folder(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MannersError(f"the chat template cannot be read ({error})") from error
    if found is None and settings.chat_template is None:
        return None
    return made(
        found,
        tokens,
        wanted=settings.chat_template,
        arguments=settings.template_arguments,
        day=lambda: NEVER,
    )


def in_hub_cache(name: str) -> Path | None:
    """Return the folder in which the hub's client keeps a model's tokenizer, where it does."""
    if name.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(name, "tokenizer_config.json")
    except HFValidationError:  # it is no id at all
        return None
    return Path(file).parent if isinstance(file, str) else None
