"""The results: as JSON for programs, as a table and a picture for docs/benchmarks.md."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import matplotlib
from matplotlib import pyplot

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "benchmarks.md"
PICTURE = ROOT / "docs" / "pictures" / "benchmarks.png"


@dataclass(frozen=True)
class Row:
    """A benchmark's result; medians over the rounds."""

    name: str
    processor: str
    """What it was measured on: ratios hold for one family of processors only."""
    ratio: float
    """Ours over the peer's speed, both of one round."""
    spread: tuple[float, float]
    """The smallest and the largest ratio of a round."""
    memory_ratio: float
    """Ours over the peer's peak of resident memory."""
    ours: float
    """Units a second."""
    peer: float
    unit: str
    peer_name: str
    ours_memory_bytes: int
    peer_memory_bytes: int
    peak_gflops: float
    """Of a large float32 matrix product, measured between the rounds."""
    share_of_peak: dict[str, float]
    """By part of the work."""
    peer_share_of_peak: dict[str, float]
    rounds: int
    before: float | None = None
    """Loss of the answers that were set aside, before any was learned."""
    losses: list[tuple[float, float]] = field(default_factory=list)
    """Ours and the peer's on what was set aside, of each round's seed; none where it is not measured."""


def read(file: Path = RESULTS) -> list[Row]:
    """Read the results; fields that are not known are an error."""
    names = {one.name for one in fields(Row)}
    rows = json.loads(file.read_text(encoding="utf-8"))
    return [Row(**{name: row[name] for name in names}) for row in rows]


def publish(rows: Sequence[Row], results: Path = RESULTS, page: Path = PAGE, picture: Path = PICTURE) -> None:
    """Put new rows in the place of old ones of the same name and processor, and write results, table and picture."""
    kept = {(row.name, row.processor): row for row in read(results)} if results.is_file() else {}
    everything = list((kept | {(row.name, row.processor): row for row in rows}).values())
    results.write_text(json.dumps([asdict(row) for row in everything], indent=1) + "\n", encoding="utf-8")
    replace_between(page, "results", table(everything))
    replace_between(page, "losses", losses(everything))
    draw(everything, picture)


def table(rows: Sequence[Row]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| benchmark | ratio [min, max] | on | ours | peer | unit | memory, ours / peer | share of peak, ours | peer |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory = f"{row.ours_memory_bytes / 1e9:.2f} / {row.peer_memory_bytes / 1e9:.2f} GB ({row.memory_ratio:.2f})"
        cells = (
            f"`{row.name}`",
            f"**{row.ratio:.2f}** [{row.spread[0]:.2f}, {row.spread[1]:.2f}]",
            row.processor,
            f"{row.ours:.3g}",
            f"{row.peer:.3g}",
            row.unit,
            memory,
            _shares(row.share_of_peak),
            _shares(row.peer_share_of_peak),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def losses(rows: Sequence[Row]) -> str:
    """Return a Markdown table of what each round ended with, where that was measured."""
    lines = ["| benchmark | held-out loss before | after, ours / peer, a seed each round |", "|---|---|---|"]
    for row in rows:
        if row.losses:
            before = "" if row.before is None else f"{row.before:.4f}"
            lines.append(
                f"| `{row.name}` | {before} | {', '.join(f'{ours:.4f} / {peer:.4f}' for ours, peer in row.losses)} |"
            )
    return "\n".join(lines)


def here() -> str:
    """Say what was measured on."""
    return f"Measured on {processor()}."


def processor() -> str:
    """Name the processor, with the cores that are used."""
    from manners.loop.session import machine  # not before: a child's peak of memory starts from that of its parent

    found = machine()
    return f"{found.cores} cores of {found.cpu}"


def histogram(lengths: Sequence[int], width: int = 16) -> str:
    """Return how many prompts have which length, as a Markdown table."""
    bins = Counter(length // width * width for length in lengths)
    rows = [f"| {low} to {low + width - 1} | {count} | {'█' * count} |" for low, count in sorted(bins.items())]
    return "\n".join(["| tokens | prompts | |", "|---|---|---|", *rows])


def replace_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->` on a page."""
    old = page.read_text(encoding="utf-8")
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    new, count = re.subn(pattern, lambda found: f"{found[1]}{text}\n{found[2]}", old, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{page} has {count} places for `{name}`; it needs one")
    page.write_text(new, encoding="utf-8")


def draw(rows: Sequence[Row], picture: Path) -> None:
    """Draw speed and memory against the peer, each on a scale where the peer is 1."""
    matplotlib.use("agg")
    several = len({row.processor for row in rows}) > 1
    names = [f"{row.name}\n{row.processor}" if several else row.name for row in rows][::-1]
    figure, (speed, memory) = pyplot.subplots(1, 2, figsize=(10, 0.6 + 0.42 * len(rows)), sharey=True)
    ratios = [row.ratio for row in rows][::-1]
    errors = [[row.ratio - row.spread[0] for row in rows][::-1], [row.spread[1] - row.ratio for row in rows][::-1]]
    speed.barh(names, ratios, xerr=errors, color="#3b6ea5", ecolor="#222222", capsize=3)
    speed.set_title("speed, times the peer's", fontsize=10)
    memory.barh(names, [row.memory_ratio for row in rows][::-1], color="#a5673b")
    memory.set_title("peak memory, times the peer's", fontsize=10)
    for axes in (speed, memory):
        axes.axvline(1, color="#222222", linewidth=1, linestyle="--")
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(picture, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
