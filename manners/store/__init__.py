"""The record of what people said: prompts, responses, comparisons, verdicts, versions and rounds, append-only."""

from manners.store.records import Counts, Outcome, Round, Version
from manners.store.schema import to_server_url
from manners.store.store import Merged, Store

__all__ = ["Counts", "Merged", "Outcome", "Round", "Store", "Version", "to_server_url"]
