"""Transformers, held back from talking."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import transformers
from transformers import dynamic_module_utils


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back transformers' own bars and notices, as a stage shows one bar, its own; and its questions.

    It reads some files on behalf of others, and there no call of ours can say that their code is not to be run: without
    time for an answer it asks nobody, and refuses.
    """
    verbosity = transformers.logging.get_verbosity()
    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds
        transformers.logging.set_verbosity(verbosity)
        transformers.utils.logging.enable_progress_bar()
