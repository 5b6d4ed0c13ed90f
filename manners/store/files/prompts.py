"""Prompts come in from files, each on the side that it is for, and go out again."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, func, select

from manners.errors import MannersError, Unavailable, UsageError
from manners.store.comparisons import STRICTEST, stricter_openings, tried_openings
from manners.store.files.columns import refuse_absent_columns, refuse_unknown_fields, renamed
from manners.store.files.containers import Layout, guesses
from manners.store.files.exchanges import MESSAGE_FIELDS, PROMPT_FIELDS, parse_asked
from manners.store.files.fields import prompt_text
from manners.store.files.formats import IMPORTED, detect
from manners.store.files.reading import KNOWN, Oddities, Reading, complaint, survey
from manners.store.files.rowfiles import layouts, rows_of, suffix_of, write_rows
from manners.store.files.rows import BadRow, Fields, Reason
from manners.store.files.shapes import shape_of
from manners.store.files.transfer import SKIP, ExportResult
from manners.store.never import Never
from manners.store.prompts import TOMBSTONE, select_private
from manners.store.records import from_messages
from manners.store.staging import decided
from manners.store.store import Store
from manners.store.tables import PromptRow, VersionRow
from manners.store.texts import Placed, prompt_digest, source_of
from manners.types import VERSUS, AskedHow, Dialogue, PromptUse, opening

PROMPT_COLUMNS: dict[str, type] = {"prompt": str}
TRIES = 5
"""How often an import begins anew where others bring in its prompts meanwhile."""
Shares = Mapping[PromptUse, float]
"""What share of the openings each use gets; 1 in all."""
TRIED = "asked to compare a candidate: for evaluation, and not to train on"
STRICTER = "begins as a prompt for a stricter use does"
"""Why a prompt is in no file of its use."""
PRIVATE = "brought in by people in their conversations, or by programs, and by nobody else"
UNREADABLE = "not read back as it is: it has a turn without words"
"""Why a prompt is in no file."""


@dataclass(frozen=True, slots=True)
class PromptsImported:
    """What an import of prompts added, and where those of the file stand now."""

    taken_from: str
    """`prompts`, `messages`, or the format of the comparisons that the prompts were taken out of."""
    new: int
    known: int
    """Distinct prompts of the file that were there already, for whatever use."""
    duplicates: int
    """Rows whose prompt an earlier row of the file has."""
    uses: Mapping[PromptUse, int]
    """The distinct prompts of the file by what they are for now."""
    moved: int
    """Prompts that were there to train on, and went where the split puts their opening."""
    followed: int
    """New prompts that went where the store has their opening, and not where the split would put it."""
    left_out_of_training: int
    """Comparisons of the store that nothing is trained on any more, by the opening of their prompt."""
    unused: tuple[str, ...]
    """Columns that no prompt was taken from."""
    notes: tuple[str, ...]
    """What was guessed about the file."""
    skipped: Mapping[Reason, int]


@dataclass(frozen=True, slots=True)
class Asked:
    """How the prompts of a file are read."""

    path: Path
    mapping: Mapping[str, str]
    files: tuple[Layout, ...]
    columns: frozenset[str]
    """Under our names."""
    comparisons: Reading | None
    """How its comparisons are read, where it holds such and the prompts are taken out of them."""
    notes: tuple[str, ...]
    asked: defaultdict[Dialogue, set[AskedHow]] = field(default_factory=lambda: defaultdict(set))
    """How the prompts of its comparisons were asked about, which grows as rows are read."""

    @property
    def taken_from(self) -> str:
        """`prompts`, the name of the field with messages, or the format of the comparisons."""
        if self.comparisons is not None:
            return self.comparisons.name
        return "prompts" if "prompt" in self.columns else next((n for n in MESSAGE_FIELDS if n in self.columns), "")

    @property
    def unused(self) -> tuple[str, ...]:
        """The columns that no prompt is taken from."""
        carry = {"prompt"} if "prompt" in self.columns else _CARRY | ({"input"} if self.comparisons else set())
        return tuple(sorted(self.columns - carry - {"system"}))

    def items(self) -> Iterator[tuple[int, Dialogue | BadRow]]:
        """Yield the prompt of each row with its number; what no prompt comes of for a good reason is passed over."""
        if self.comparisons is not None:
            for line, one in self.comparisons.items(IMPORTED):
                if not isinstance(one, BadRow):
                    self.asked[one.prompt].add(one.asked_how)
                    yield line, one.prompt
                elif not one.harmless:
                    yield line, one
            return
        for line, fields in rows_of(self.files):
            try:
                yield line, fields if isinstance(fields, BadRow) else parse_asked(renamed(fields, self.mapping))
            except BadRow as bad:
                yield line, bad


_CARRY = {*MESSAGE_FIELDS, "chosen", "rejected", "conversation_a", "conversation_b", "context", "history", "question"}
_CARRY |= {"instruction", "info", "message_id", "parent_id", "text", "role"}
"""Columns out of which a prompt is taken where none is called so."""
_ELSEWHERE = ("arena", "trees")
"""Published shapes whose `prompt` is not the prompt as it was said."""


def parse_split(text: str) -> Shares:
    """Return the shares that `train=0.8,validate=0.1,evaluate=0.1` states. Raises UsageError."""
    shares: dict[PromptUse, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            use, share = PromptUse(name.strip()), float(value)
        except ValueError:
            use, share = PromptUse.TRAIN, -1.0
        if not 0 <= share <= 1 or use in shares:
            raise UsageError(
                f"--split {text}: give each of {', '.join(PromptUse)} one share from 0 to 1, for example"
                " --split train=0.8,validate=0.1,evaluate=0.1."
            )
        shares[use] = share
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise UsageError(f"--split {text}: the shares come to {sum(shares.values()):g}, and must come to 1.")
    return shares


def side(dialogue: Dialogue, shares: Shares) -> PromptUse:
    """Return what a split puts a prompt on: by a hash of its opening, so the same for all that begin alike, always."""
    number = int.from_bytes(hashlib.sha256(f"split {opening(dialogue)}".encode()).digest()[:8]) / 2**64
    last = PromptUse.TRAIN
    for use in PromptUse:
        if share := shares.get(use, 0.0):
            last = use
            if (number := number - share) < 0:
                return use
    return last


def import_prompts(
    store: Store,
    path: Path,
    shares: Shares,
    mapping: Mapping[str, str] | None = None,
    *,
    skip_known: bool = False,
    skip_bad: bool = False,
) -> PromptsImported:
    """Add the prompts of a file, all of them or none: of all its rows one side, or by a split.

    A row has a `prompt` (`.txt`: one on each line), `messages`, or a comparison. By a split, a new prompt goes where
    the store has its opening; and as long as no version has been trained, what the store would train on goes where the
    split puts it. Raises MannersError, and adds nothing, at the first bad row, and where a prompt is there for another
    use; with `skip_bad` and `skip_known` such rows are left out, or such prompts as they are.
    """
    asked = look(path, mapping or {})
    prompts, skipped = _read(asked, skip_bad)
    distinct = dict.fromkeys(prompts)
    kept = store.kept_openings()
    for _ in range(TRIES):
        plan = _plan(store, distinct, shares, skip_known)
        if store.place_prompts(plan.placed(asked), plan.holds):
            break
    else:
        raise Unavailable(f"others have brought in prompts of {path} at the same time, {TRIES} times: run it again")
    uses = Counter((plan.stored | plan.moving).get(dialogue, use) for dialogue, use in plan.wanted.items())
    return PromptsImported(
        taken_from=asked.taken_from,
        new=len(distinct.keys() - plan.stored.keys()),
        known=len(distinct.keys() & plan.stored.keys()),
        duplicates=len(prompts) - len(distinct),
        uses={use: uses[use] for use in PromptUse if use in uses or use in shares},
        moved=len(plan.moving),
        followed=plan.followed,
        left_out_of_training=_left_out(store, kept),
        unused=asked.unused,
        notes=asked.notes,
        skipped=skipped,
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the prompts of a file go, by what the store held when it was looked at."""

    stored: dict[Dialogue, PromptUse]
    wanted: dict[Dialogue, PromptUse]
    """The file's, each with the use that it has where it is new."""
    moving: dict[Dialogue, PromptUse]
    """The store's that get another use."""
    followed: int
    openings: frozenset[str]
    """Of the file's prompts."""
    newest: int
    """The highest id of a prompt."""
    imports: int
    """How many imports had been decided."""
    is_trained: bool
    """Whether there was a version."""

    def placed(self, file: Asked) -> list[Placed]:
        """Return what is to be written: the file's prompts, and those that move."""
        ours = {one: self.moving.get(one, self.stored.get(one, use)) for one, use in self.wanted.items()}
        sources = {one: source_of(file.asked[one], file.path.name) for one in ours}
        new = [Placed(prompt_digest(one), use, one, sources[one]) for one, use in ours.items()]
        return new + [Placed(prompt_digest(dialogue), to) for dialogue, to in self.moving.items()]

    def holds(self, connection: Connection) -> bool:
        """Tell whether it would be the same now: no import has moved anything, and nothing new begins as ours do."""
        if decided(connection) != self.imports or (self.moving and _is_trained(connection) != self.is_trained):
            return False
        since = connection.execute(select(PromptRow.turns).where(PromptRow.id > self.newest)).scalars()
        return self.openings.isdisjoint(opening(from_messages(turns)) for turns in since)


def _plan(store: Store, distinct: Iterable[Dialogue], shares: Shares, skip_known: bool) -> _Plan:
    """Choose where the prompts of a file go. Raises MannersError where one is there for another use."""
    with store.read() as connection:
        imports = decided(connection)
    store.finish_imports()  # what has been decided counts as there; what is decided from here on is seen by the number
    with store.read() as connection:
        newest = connection.execute(select(func.coalesce(func.max(PromptRow.id), 0))).scalar_one()
        stored, is_trained = _stored(connection, newest), _is_trained(connection)
    followed, wanted = 0, {dialogue: side(dialogue, shares) for dialogue in distinct}
    moving: dict[Dialogue, PromptUse] = {}
    if len(shares) > 1:
        if not skip_known and not is_trained:
            moving = _moving(stored, wanted)
        followed = _follow(stored | moving, wanted)
    if not skip_known:
        _refuse_other_use(stored | moving, distinct, shares)
    return _Plan(stored, wanted, moving, followed, frozenset(map(opening, wanted)), newest, imports, is_trained)


def _is_trained(connection: Connection) -> bool:
    return connection.execute(select(VersionRow.id).limit(1)).first() is not None


def look(path: Path, mapping: Mapping[str, str]) -> Asked:
    """Read a file through and return how to read its prompts. Raises MannersError where that cannot be."""
    refuse_unknown_fields(mapping, KNOWN | {*PROMPT_FIELDS})
    files = tuple(layouts(path))
    columns: dict[str, None] = {}
    theirs: set[str] = set()
    compares: bool | None = None
    oddities = Oddities()
    for _, fields in rows_of(files):
        if not isinstance(fields, BadRow):
            theirs |= fields.keys()
            ours = renamed(fields, mapping)
            columns |= dict.fromkeys(ours)
            oddities.look(ours)
            compares = _compares(ours) if compares is None else compares
    if theirs:
        refuse_absent_columns(path, mapping, theirs)
    reading = survey(path, mapping, None, None) if compares else None
    notes = tuple(guesses(files) + oddities.notes()) if reading is None else reading.notes
    return Asked(path, mapping, files, frozenset(columns), reading, notes)


def prompts_of(path: Path, mapping: Mapping[str, str]) -> Iterator[tuple[int, Dialogue]]:
    """Yield the prompt of each row of a file that can be read, with its number."""
    for line, item in look(path, mapping).items():
        if not isinstance(item, BadRow):
            yield line, item


def _compares(fields: Fields) -> bool:
    """Tell whether a row holds a comparison that its prompt is to be taken out of."""
    if detect(fields) is not None:
        return True
    shape = shape_of(fields)
    return shape is not None and (shape.name in _ELSEWHERE or not {*PROMPT_FIELDS} & fields.keys())


def _read(asked: Asked, skip_bad: bool) -> tuple[list[Dialogue], Mapping[Reason, int]]:
    """Read the prompts of a file. Raises MannersError at the first bad row, and where there are none."""
    prompts: list[Dialogue] = []
    skipped: Counter[Reason] = Counter()
    for line, item in asked.items():
        if not isinstance(item, BadRow):
            prompts.append(item)
        elif skip_bad:
            skipped[item.reason] += 1
        else:
            where = asked.comparisons
            told = where.complaint(line, item, SKIP) if where else complaint(asked.path, line, item, SKIP)
            raise told from item
    if not prompts:
        passed = f" ({skipped.total()} bad rows passed over)" if skipped else ""
        raise MannersError(f"{asked.path} holds no prompts{passed}; check that it is the file you meant.")
    return prompts, dict(skipped)


def _stored(connection: Connection, newest: int) -> dict[Dialogue, PromptUse]:
    query = select(PromptRow.turns, PromptRow.use).where(PromptRow.id <= newest).order_by(PromptRow.id)
    rows = connection.execute(query)
    return {from_messages(row.turns): PromptUse(row.use) for row in rows}


def _moving(stored: Mapping[Dialogue, PromptUse], wanted: Mapping[Dialogue, PromptUse]) -> dict[Dialogue, PromptUse]:
    """Return the prompts to train on whose opening a split puts elsewhere, with where that is."""
    elsewhere = {opening(dialogue): use for dialogue, use in wanted.items() if use is not PromptUse.TRAIN}
    for use, dialogues in _by_use(stored).items():
        if use is not PromptUse.TRAIN:  # what is kept already stays where it is
            kept = set(map(opening, dialogues))
            elsewhere = {first: to for first, to in elsewhere.items() if first not in kept}
    train = _by_use(stored)[PromptUse.TRAIN]
    return {dialogue: elsewhere[first] for dialogue in train if (first := opening(dialogue)) in elsewhere}


def _follow(stored: Mapping[Dialogue, PromptUse], wanted: dict[Dialogue, PromptUse]) -> int:
    """Put new prompts where the store has their opening; return how many the split would have put elsewhere."""
    there: dict[str, PromptUse] = {}
    for use, dialogues in reversed(_by_use(stored).items()):
        there |= dict.fromkeys(map(opening, dialogues), use)
    changed = {
        dialogue: to
        for dialogue, use in wanted.items()
        if dialogue not in stored and (to := there.get(opening(dialogue), use)) is not use
    }
    wanted |= changed
    return len(changed)


def _by_use(stored: Mapping[Dialogue, PromptUse]) -> dict[PromptUse, list[Dialogue]]:
    """Return the prompts of each use, the strictest use first."""
    return {use: [dialogue for dialogue, found in stored.items() if found is use] for use in STRICTEST}


def _refuse_other_use(stored: Mapping[Dialogue, PromptUse], prompts: Iterable[Dialogue], shares: Shares) -> None:
    for dialogue in prompts:
        use = side(dialogue, shares)
        if stored.get(dialogue, use) is not use:
            raise MannersError(
                f"The prompt {dialogue[-1].text[:60]!r} is in the store for `{stored[dialogue]}` and cannot be added"
                f" for `{use}`; leave it out, or leave such prompts as they are with --skip-known."
            )


def _left_out(store: Store, kept: frozenset[str]) -> int:
    """Count the comparisons, of no two versions, about openings that are kept now and were not in `kept`."""
    if not (newly := store.kept_openings() - kept):
        return 0
    return sum(c.asked_how not in VERSUS and opening(c.prompt) in newly for c in store.comparisons())


def export_prompts(store: Store, path: Path, use: PromptUse | None = None) -> ExportResult:
    """Write the prompts of one use, or of all, to a file; `.txt` holds single lines only.

    Left out and counted is what was deleted, what people's conversations or programs alone have brought in, and what no
    import would read back. Of one use, so is what begins as a prompt of a stricter one does, and of those to train on
    what begins as one does that was asked about a candidate.
    """
    with store.read() as connection:
        private = select_private(connection, programs=True)
        stricter = frozenset[str]() if use is None else stricter_openings(connection, use)
        tried = tried_openings(connection) if use is PromptUse.TRAIN else frozenset[str]()

    def why_not(one: Dialogue) -> str:
        theirs = Never.DELETED if one == TOMBSTONE else PRIVATE if one in private else ""
        apart = STRICTER if opening(one) in stricter else TRIED if opening(one) in tried else ""
        return theirs or apart or ("" if _is_read_back(one) else UNREADABLE)

    told = [(prompt.dialogue, why_not(prompt.dialogue)) for prompt in store.prompts(use)]
    written = [dialogue for dialogue, why in told if not why]
    if suffix_of(path) == ".txt" and not all(map(_fits_a_line, written)):
        raise MannersError(f"{path} cannot hold prompts of several lines or turns; choose a name that ends in .jsonl.")
    write_rows(path, PROMPT_COLUMNS, ({"prompt": prompt_text(dialogue)} for dialogue in written))
    return ExportResult(len(written), dict(Counter(why for _, why in told if why)))


def _is_read_back(dialogue: Dialogue) -> bool:
    try:
        return parse_asked({"prompt": prompt_text(dialogue)}) == dialogue
    except BadRow:
        return False


def _fits_a_line(dialogue: Dialogue) -> bool:
    return prompt_text(dialogue) == dialogue[0].text and not {"\n", "\r"} & set(dialogue[0].text)
