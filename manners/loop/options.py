"""What the stages may be asked for on the command line, beside `--plan` and `--resume`; loads nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import EnumChoicesFromValues, Positional, UseAppendAction, arg

from manners.errors import UsageError
from manners.facts import Facts
from manners.loop.stage import Options
from manners.settings import Settings
from manners.store.files.formats import Format
from manners.store.files.mapping import mapping_of, words_of

if TYPE_CHECKING:
    from manners.loop.session import Session


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """Options of every stage that trains: by how many processes."""

    processes: Annotated[int | None, arg(metavar="N")] = None
    """Have N processes of this machine train as one: each takes its share of every batch."""
    ray_address: Annotated[str | None, arg(metavar="HOST:PORT")] = None
    """Have them, or the --workers of PPO, on the Ray cluster at this address, or on the one that runs on this machine
    (`auto`)."""

    def check(self, *, plan: bool, resume: bool) -> None:
        """Refuse processes that there cannot be."""
        if self.processes is not None and self.processes < 1:
            raise UsageError("--processes N takes a number from 1 on; leave it out to train in this process alone.")
        if self.ray_address is not None and self.processes is None and not self.plans:
            raise UsageError("--ray-address says where processes are: name their number.")
        if self.ray_address is not None and "://" in self.ray_address:
            raise UsageError("--ray-address takes HOST:PORT or auto: run the command on a machine of the cluster.")

    @property
    def cluster(self) -> str | None:
        """The address of the Ray cluster whose processes do the work; None for this machine."""
        return None if self.processes is None else self.ray_address

    @property
    def together(self) -> int:
        """How many processes of this machine do the work together."""
        return self.processes or 1


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(TrainingOptions):
    """Options of `manners pretrain`: settings that everybody sets, by a shorter name."""

    text: Annotated[Path | None, arg(metavar="PATH")] = None
    """A file or a folder of text: stands for --set pretrain.text=PATH."""
    depth: Annotated[int | None, arg(metavar="N")] = None
    """Layers of a new model, from which everything else follows: stands for --set pretrain.depth=N."""

    def applied(self, settings: Settings) -> Settings:
        """Put them in their places."""
        before = settings.pretrain
        text = before.text if self.text is None else str(self.text)
        depth = before.depth if self.depth is None else self.depth
        return replace(settings, pretrain=replace(before, text=text, depth=depth))


@dataclass(frozen=True, kw_only=True)
class SampleOptions(Options):
    """Options of `manners sample`."""

    crowd: bool = False
    """Have the simulated crowd give its verdicts at once; they are recorded as simulated."""
    again: bool = False
    """Ask known prompts too, where none of the answers that were compared is of the current policy."""
    limit: Annotated[int | None, arg(metavar="N")] = None
    """Ask at most N prompts, drawn by the seed."""
    adversarial: Annotated[int | None, arg(metavar="N")] = None
    """Ask about N answers instead that the newest reward model likes best of many, and that are suspicious: its members
    differ about them, or they repeat themselves, say the prompt again, were cut off."""

    def check(self, *, plan: bool, resume: bool) -> None:
        """Refuse a number that asks nobody, and what does not go together."""
        if self.limit is not None and self.limit < 1:
            raise UsageError("--limit N takes a number from 1 on.")
        if self.adversarial is not None and self.adversarial < 1:
            raise UsageError("--adversarial N takes a number from 1 on.")
        if self.adversarial is not None and (self.again or self.limit is not None):
            raise UsageError(
                "--adversarial N says itself how many prompts are asked about: leave out --again and --limit."
            )

    @property
    def beside(self) -> bool:
        """Whether it is an adversarial round."""
        return self.adversarial is not None


@dataclass(frozen=True, kw_only=True)
class PPOOptions(TrainingOptions):
    """Options of `manners ppo`: who draws and scores the responses."""

    workers: Annotated[int | None, arg(metavar="N")] = None
    """Have N processes draw and score the responses, on Ray (`pip install 'manners[scale]'`); this one learns."""

    def check(self, *, plan: bool, resume: bool) -> None:
        """Refuse workers and processes that there cannot be."""
        super().check(plan=plan, resume=resume)
        if self.workers is not None and self.processes is not None:
            raise UsageError("--workers draw for one process that learns, and --processes draw too: leave one out.")
        if self.workers is not None and self.workers < 1:
            raise UsageError("--workers N takes a number from 1 on; leave it out to draw in this process.")

    @property
    def plans(self) -> bool:
        """Whether workers take memory too."""
        return self.workers is not None


WHAT = ("reward", "policy", "data")
"""What can be audited."""
SHORT = (16, 24)
"""`audit.cases` and `audit.tokens` of a short audit of a policy."""


@dataclass(frozen=True, kw_only=True)
class AuditOptions(Options):
    """Options of `manners audit`: a reward model's likes, a policy's behaviour, or where that stands at the gate."""

    what: Annotated[Positional[str], arg(metavar="reward|policy|data")] = "reward"
    """What is looked at: what a reward model likes, or how a policy behaves; `data` lists the published sets that a
    policy is asked where they are there. With --gate a policy may stand here."""
    version: Annotated[Positional[str | None], arg(metavar="VERSION")] = None
    """The version; the newest if left out: of the reward models, or of the policies."""
    against: Annotated[str | None, arg(metavar="VERSION")] = None
    """Compare a policy's behaviour with that of VERSION instead of the initial model."""
    gate: bool = False
    """Say what has been measured of a policy and of the reward model that taught it, and exit with 1 where that blocks
    its promotion; nothing is measured."""
    comparisons: Annotated[Path | None, arg(metavar="FILE")] = None
    """Measure on a file of comparisons from outside, instead of those set aside from training: the gate is not told."""
    mapping: Annotated[UseAppendAction[tuple[str, ...]], arg(name="map", metavar="COLUMN=FIELD")] = ()
    """Read the file's column COLUMN as our field FIELD."""
    verdict: Annotated[UseAppendAction[tuple[str, ...]], arg(name="verdict", metavar="WORD=VERDICT")] = ()
    """Read the file's WORD as our VERDICT; a number goes by its sign where both signs are given."""
    skip_bad: bool = False
    """Leave the file's bad lines out, and count them by reason."""
    every: Annotated[bool, arg(name="all")] = False
    """Measure on all there is: stands for the largest audit.pairs, audit.most and audit.cases."""
    short: bool = False
    """Measure a policy's behaviour on few prompts and short answers: stands for a smaller audit.cases and
    audit.tokens."""
    fetch: Annotated[str | None, arg(metavar="NAME")] = None
    """With `data`: take the published set NAME from its authors into the folder of sets, each file checked against its
    SHA-256."""
    sha256: Annotated[UseAppendAction[tuple[str, ...]], arg(name="sha256", metavar="HEX")] = ()
    """With --fetch: what a file must have in place of the SHA-256 that ships; once for each of the set's files."""

    def check(self, *, plan: bool, resume: bool) -> None:
        """Refuse what does not go together."""
        beside = self.comparisons or self.every or self.short or self.against or self.fetch
        if self.gate and (plan or resume or beside):
            raise UsageError("--gate reads what has been measured: it goes with a VERSION alone.")
        if not self.gate and self.what not in WHAT:
            raise UsageError(
                f"manners audit {self.what}: what can be audited is a reward model, `manners audit reward`, or a"
                " policy, `manners audit policy`."
            )
        if self.comparisons is None and (self.mapping or self.verdict or self.skip_bad):
            raise UsageError("--map, --verdict and --skip-bad say how to read the FILE of --comparisons: name one.")
        if self.what == "policy" and self.comparisons:
            raise UsageError("--comparisons FILE is for a reward model: manners audit reward.")
        if self.what != "policy" and (self.against or self.short):
            raise UsageError("--against VERSION and --short are for a policy: manners audit policy.")
        if self.what == "data" and (plan or resume or self.every or self.version or self.comparisons):
            raise UsageError("manners audit data lists what is there: of these it goes with --fetch NAME alone.")
        if (self.what != "data" and self.fetch) or (self.sha256 and not self.fetch):
            raise UsageError("--fetch NAME and --sha256 HEX are for published sets: manners audit data --fetch NAME.")
        if bad := [one for one in self.sha256 if not re.fullmatch("[0-9a-f]{64}", one.lower())]:
            raise UsageError(f"--sha256 {bad[0]!r} is no SHA-256: that is 64 digits, 0 to 9 and a to f.")
        if self.short and self.every:
            raise UsageError("--short and --all are opposites: leave one out.")

    def applied(self, settings: Settings) -> Settings:
        """Put `--all` and `--short` in their places."""
        audit = settings.audit
        if self.every:
            audit = replace(audit, pairs=1_000_000, most=10_000_000, cases=1_000_000)
        if self.short:
            audit = replace(audit, cases=SHORT[0], tokens=SHORT[1])
        return replace(settings, audit=audit)

    @property
    def beside(self) -> bool:
        """Whether a policy's behaviour is looked at."""
        return self.what == "policy" and not self.gate

    def other(self, session: Session) -> Facts | None:
        """Say where a policy stands before the gate or which published sets are there, or fetch one."""
        if self.what == "data" and not self.gate:
            from manners.audit import fetch, sets

            folder = sets.place_of(session.settings.audit.sets, session.workspace.root)
            if self.fetch:
                return fetch.fetch(self.fetch, folder, [one.lower() for one in self.sha256])
            return {"folder": str(folder), "sets": sets.listed(folder)}
        if not self.gate:
            return None
        from manners.loop import audit

        return audit.before_the_gate(session.workspace, self.version or (None if self.what in WHAT else self.what))


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(Options):
    """Options of `manners judge`."""

    version: Annotated[Positional[str | None], arg(metavar="VERSION")] = None
    """The version that judges, a policy or `initial`, where judge.url names no server; `initial` if left out."""
    evaluation: bool = False
    """Judge what `evaluate --ask` opened for people too, and say the win rate, corrected by what they have judged."""
    principles: bool = False
    """Write the principles that ship into constitution.md in the workspace, to be changed there; nothing is asked."""

    @property
    def plans(self) -> bool:
        """Whether another judge than the usual one is named, or more is judged than usual."""
        return self.version is not None or self.evaluation

    def other(self, session: Session) -> Facts | None:
        """Write the principles down."""
        if not self.principles:
            return None
        from manners.loop import judge

        return judge.write_principles(session.workspace.root)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Options):
    """Options of `manners evaluate`: in place of a judgement, ask people for one, or measure a reward model."""

    version: Annotated[Positional[str | None], arg(metavar="VERSION")] = None
    """Compare this phase, of any kind, with the one that --against names (or the initial model); the newest policy with
    the version that it would replace, if left out. Nothing is promoted then."""
    against: Annotated[str | None, arg(metavar="VERSION")] = None
    """Compare with VERSION instead of the current version; nothing is promoted then."""
    ask: Annotated[int | None, arg(metavar="N")] = None
    """Open N blind comparisons of the two for people, and say what they can show, instead of asking the crowd."""
    close: bool = False
    """Take people's verdicts on the comparisons as all there will be: those that wait for more count as they are."""
    reward: Annotated[str | None, arg(metavar="VERSION")] = None
    """A reward model to measure; goes with --comparisons."""
    comparisons: Annotated[Path | None, arg(metavar="FILE")] = None
    """A file of comparisons from outside, in any form that `manners comparisons import` reads."""
    mapping: Annotated[UseAppendAction[tuple[str, ...]], arg(name="map", metavar="COLUMN=FIELD")] = ()
    """Read the file's column COLUMN as our field FIELD."""
    verdict: Annotated[UseAppendAction[tuple[str, ...]], arg(name="verdict", metavar="WORD=VERDICT")] = ()
    """Read the file's WORD as our VERDICT; a number goes by its sign where both signs are given."""
    format: EnumChoicesFromValues[Format | None] = None
    """How the file writes comparisons down; told by its fields if left out."""
    skip_bad: bool = False
    """Leave the file's bad lines out, and count them by reason."""

    def check(self, *, plan: bool, resume: bool) -> None:
        """Refuse what does not go together."""
        if (self.reward is None) != (self.comparisons is None):
            raise UsageError("--reward VERSION and --comparisons FILE go together: name both, or neither.")
        if self.version is not None and self.reward is not None:
            raise UsageError("VERSION is compared with that of --against: it does not go with --reward.")
        if self.comparisons is None and (self.mapping or self.verdict or self.format or self.skip_bad):
            raise UsageError(
                "--map, --verdict, --format and --skip-bad say how to read the FILE of --comparisons: name one."
            )
        if self.ask is not None and (self.reward is not None or self.ask < 1):
            raise UsageError("--ask N takes a number from 1 on, and does not go with --reward.")
        if self.close and (plan or resume or self.ask is not None or self.reward is not None):
            raise UsageError("--close judges the policy by the verdicts that are in: it goes with no other of these.")
        if self.against is not None and self.reward is not None:
            raise UsageError("--against VERSION is about comparing two policies: it does not go with --reward.")
        if resume and (self.ask is not None or self.reward is not None):
            raise UsageError("--resume goes on with the evaluation of a policy: leave out --ask and --reward.")
        if plan and (self.ask is not None or self.reward is not None):
            raise UsageError("--plan is about comparing the two policies: it goes with neither --ask nor --reward.")

    @property
    def beside(self) -> bool:
        """Whether two phases are compared."""
        return self.version is not None

    def begins(self, session: Session) -> None:
        """Place the bets that waited, where people's verdicts are all there will be."""
        if self.close:
            from manners.loop import asking

            asking.close(session, self.version, self.against)

    def other(self, session: Session) -> Facts | None:
        """Open comparisons for people, or measure a reward model on a file."""
        from manners.loop import asking

        if self.ask is not None:
            if self.version is not None:
                from manners.loop import phases

                return phases.open_for_people(session, self, self.ask)
            return asking.open_for_people(session, self.ask, self.against)
        if self.reward is None or self.comparisons is None:
            return None
        mapping = mapping_of(self.mapping)
        words = words_of(self.verdict)
        return asking.measure_on_file(
            session, self.reward, self.comparisons, mapping, self.format, self.skip_bad, words
        )
