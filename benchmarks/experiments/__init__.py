"""Experiments of the field on a small world whose taste is known: `python -m benchmarks.experiments.over_optimisation`.

Each stands on what `make from-nothing` leaves in `from-nothing/`: a model of a million parameters that has learned to
answer requests for stories. Verdicts are a simulated crowd's; what comes of them is measured by the crowd's taste
without its noise, which nothing that is trained ever sees. Every part is kept in `results/` and done once
(`benchmarks.evidence`); each experiment writes its table and its figure into the docs.
"""

from pathlib import Path

from benchmarks.evidence import Results

FOLDER = Path(__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "experiments.md"


def results(name: str) -> Results:
    """Return what an experiment has found so far; it rests on the world too."""
    return Results(name, FOLDER / "results", FOLDER / "world.py")
