"""The record of what people said: prompts, responses, comparisons, verdicts, versions and rounds, append-only."""

from manners.store.records import Holdings, Newest, Outcome, Round, VersionRecord
from manners.store.schema import to_server_url
from manners.store.staging import Merged
from manners.store.store import Store

__all__ = ["Holdings", "Merged", "Newest", "Outcome", "Round", "Store", "VersionRecord", "to_server_url"]
