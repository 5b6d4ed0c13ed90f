"""Figures of the report: pure functions from numbers to one inline `<svg>` each.

Text stays text, and every colour becomes a CSS variable, so that a figure follows the page into dark mode and print.
One unit of a figure is one CSS pixel at its natural width, narrow enough to be read on a phone without zooming.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from manners.types import Interval

INK, SOFT, RULE, ACCENT, WARM, PAPER = "#1b1c1e", "#63676e", "#d3d5d9", "#0072b2", "#b84f00", "#fdfdfc"
"""Light-mode colours; accent and warm are told apart by every common kind of colour vision, and differ in lightness."""

_VARIABLES = {INK: "ink", SOFT: "soft", RULE: "rule", ACCENT: "accent", WARM: "warm", PAPER: "paper"}
_WIDE = 430.0
_SMALL = 280.0
_TEXT = 13.0
_FINE = 11.5


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a dot-and-whisker figure."""

    label: str
    value: Interval
    emphasised: bool = False


def percent(value: float) -> str:
    """Return a share as text: 0.7134 is `71.3 %`."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def span(value: Interval) -> str:
    """Return the ends of an interval of shares as text: `68.2 to 74.1 %`."""
    return f"{100 * value.low:.1f} to {percent(value.high)}"


def dot_whiskers(name: str, alt: str, rows: Sequence[Row], reference: float, reference_label: str) -> str:
    """Draw shares with their 95 % intervals, one under another, against a vertical reference line."""
    lows = [row.value.low for row in rows]
    highs = [row.value.high for row in rows]
    left, right = min([*lows, reference]), max([*highs, reference])
    room = max(0.08 * (right - left), 0.02)
    figure, axes = _canvas(_WIDE, 50 + 38 * len(rows))
    axes.set_xlim(max(0.0, left - room) - 0.004, min(1.0, right + room) + 0.004)
    for index, row in enumerate(rows):
        colour = ACCENT if row.emphasised else SOFT
        y = -float(index)
        # Interrupted at the text, which it would strike through.
        axes.plot([reference] * 2, [y - 0.3, y + 0.2], color=SOFT, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
        axes.plot([row.value.low, row.value.high], [y, y], color=colour, linewidth=2.4, solid_capstyle="round")
        face = colour if row.emphasised else PAPER
        axes.plot(row.value.estimate, y, "o", markersize=7, color=colour, markerfacecolor=face, markeredgewidth=1.8)
        _row_text(axes, y, row.label, f"{percent(row.value.estimate)} ({span(row.value)})", row.emphasised)
    _rows_only(axes, len(rows))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_xlabel(f"dashed line: {reference_label}", fontsize=_FINE, color=SOFT)
    return _svg(figure, name, alt)


def before_after(name: str, alt: str, parts: Sequence[tuple[str, float, float]], hollow: str, filled: str) -> str:
    """Draw each part's mean of one version (hollow) and of another (filled), joined by a line."""
    ends = [value for _, before, after in parts for value in (before, after)]
    room = max(0.08 * (max(ends) - min(ends)), 0.02)
    figure, axes = _canvas(_WIDE, 50 + 38 * len(parts))
    axes.set_xlim(min(ends) - room, max(ends) + room)
    for index, (label, before, after) in enumerate(parts):
        y = -float(index)
        colour = ACCENT if after >= before else WARM
        axes.plot([before, after], [y, y], color=colour, linewidth=2.4)
        axes.plot(before, y, "o", markersize=7, color=SOFT, markerfacecolor=PAPER, markeredgewidth=1.8)
        axes.plot(after, y, ">" if after >= before else "<", markersize=8, color=colour)
        _row_text(axes, y, label, f"{before:.2f} \N{RIGHTWARDS ARROW} {after:.2f}", emphasised=False)
    _rows_only(axes, len(parts))
    told = f"hollow: {hollow}; filled arrow head: {filled}"
    axes.set_xlabel(told, fontsize=_FINE, color=SOFT, parse_math=False, in_layout=False)
    return _svg(figure, name, alt)


def reliability(name: str, alt: str, points: Sequence[tuple[float, Interval]]) -> str:
    """Draw how often the left response was preferred against the probability predicted for it, with the diagonal."""
    figure, axes = _canvas(_WIDE, 320)
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
    for predicted, observed in points:
        axes.plot([predicted] * 2, [observed.low, observed.high], color=ACCENT, linewidth=2, solid_capstyle="round")
        axes.plot(predicted, observed.estimate, "o", markersize=6.5, color=ACCENT)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_xlabel("predicted", fontsize=_FINE, color=SOFT)
    axes.set_ylabel("observed", fontsize=_FINE, color=SOFT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    return _svg(figure, name, alt)


def learning_curve(name: str, alt: str, points: Sequence[tuple[int, Interval]], chance: float) -> str:
    """Draw held-out accuracy against the number of verdicts trained on (each step to the right is a doubling)."""
    counts = [count for count, _ in points]
    figure, axes = _canvas(_WIDE, 320)
    axes.set_xscale("log", base=2)
    axes.plot(counts, [value.estimate for _, value in points], color=ACCENT, linewidth=1.6)
    for count, value in points:
        axes.plot([count] * 2, [value.low, value.high], color=ACCENT, linewidth=2, solid_capstyle="round")
        axes.plot(count, value.estimate, "o", markersize=6.5, color=ACCENT)
        _value_label(axes, count, value)
    axes.axhline(chance, color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
    axes.set_xlim(min(counts) / 1.3, max(counts) * 1.6)
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_xlabel(f"verdicts trained on (dashed line: chance, {percent(chance)})", fontsize=_FINE, color=SOFT)
    return _svg(figure, name, alt)


def curve(
    name: str, alt: str, updates: Sequence[float | None], values: Sequence[float | None], best: float | None
) -> str:
    """Draw one small panel of a run's metrics by PPO update; a dotted line marks the version that was kept."""
    figure, axes = _canvas(_SMALL, 150)
    numbers = [math.nan if value is None else value for value in values]
    marker = "o" if len(numbers) <= 12 else None
    axes.plot(
        [math.nan if update is None else update for update in updates],
        numbers,
        color=ACCENT,
        linewidth=1.8,
        marker=marker,
        markersize=3.5,
    )
    if best is not None:
        axes.axvline(best, color=WARM, linewidth=1.3, linestyle=(0, (1, 2)))
    axes.margins(x=0.03, y=0.14)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.grid(True, color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    return _svg(figure, name, alt)


def _value_label(axes: Axes, x: float, value: Interval) -> None:
    """Write the estimate to the right of its dot."""
    place = (x, value.estimate)
    written = axes.annotate(percent(value.estimate), place, (6, -5), textcoords="offset points", va="top")
    written.set(fontsize=_TEXT, color=INK, in_layout=False)


def _row_text(axes: Axes, y: float, label: str, figure_text: str, emphasised: bool) -> None:
    """Write a row's label and number above its whisker, so that the whisker has the whole width on a phone."""
    weight = "bold" if emphasised else "normal"
    across = axes.get_yaxis_transform()
    for x, text, side in ((0.0, label, "left"), (1.0, figure_text, "right")):
        written = axes.text(x, y + 0.24, text, transform=across, ha=side, va="bottom", parse_math=False)
        written.set(fontsize=_TEXT, color=INK, fontweight=weight, in_layout=False)


def _rows_only(axes: Axes, count: int) -> None:
    """Keep the horizontal axis only."""
    axes.set_ylim(-count + 0.55, 0.85)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of `width` by `height` CSS pixels with quiet axes."""
    margins = ConstrainedLayoutEngine(w_pad=2 / 72, h_pad=2 / 72)
    figure = Figure(figsize=(width / 72, height / 72), layout=margins)
    figure.patch.set_visible(False)
    axes = figure.subplots()
    axes.patch.set_visible(False)
    axes.tick_params(colors=SOFT, labelsize=_FINE, length=3, width=0.8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)
    return figure, axes


def _svg(figure: Figure, name: str, alt: str) -> str:
    """Return the figure as `<svg>`: no names outside it, no ids shared with another figure, colours as variables."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        # The reader's fonts draw the text: a glyph that matplotlib's own font lacks is not missed.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    box = re.search(r'viewBox="([^"]+)"', text)
    body = text[text.index("</defs>") + len("</defs>") :]
    assert box is not None
    body = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", body).replace("xlink:href", "href")
    body = re.sub(r"font-family: [^;\"]*(; )?", "", body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(alt)}">{body}'
