"""Text to token ids: bytes, a BPE trained on the corpus, or a given tokenizer.json.

All three end as a tokenizer.json of the `tokenizers` library, so whoever reads a corpus needs one
loader. An end-of-text string inside a document is text, never the token (`encode_special_tokens`).
"""

import json
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from moe.wrong import did_you_mean

END_OF_TEXT = "<|endoftext|>"
END_OF_LINE = "<eos>"  # as the word-level corpora's models call it
UNKNOWN = "<unk>"  # as WikiText's files spell rare words


class Text:
    """Text <-> token ids of a prepared corpus: `encode`, `encode_batch`, `decode`."""

    def __init__(self, tokenizer, end_of_text):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # the string of a special token inside text stays text
        self.tokenizer = tokenizer
        self.end_of_text = end_of_text

    def encode(self, text):
        """Token ids of one string, list[int], without an end of text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts):
        """Token ids of many strings, list[list[int]], on all cores."""
        batch = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def decode(self, ids):
        """The string of token ids; the end of text decodes to nothing."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


def byte_tokenizer():
    """Token = byte, 256 = end of text: a BPE without merges, its byte letters numbered by byte."""
    vocabulary = {letter: byte for byte, letter in enumerate(byte_letters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return Text(tokenizer, 256)


def byte_value_tokenizer(values):
    """Token = byte, of those that occur: `values` in order are the ids, none is added.

    Running text has no end; where one is asked for, the newline stands for it (the first symbol if there is none).
    """
    letters = byte_letters()
    vocabulary = {letters[value]: i for i, value in enumerate(values)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Text(tokenizer, vocabulary.get(letters[ord("\n")], 0))


def word_tokenizer(ids):
    """Token = word between spaces, and END_OF_LINE for each newline; `ids` maps every word to its id.

    A text decodes with one space around its words, as WikiText has them. New words are UNKNOWN where that is a word.
    """
    tokenizer = Tokenizer(models.WordLevel(vocab=ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Replace("\n", f" {END_OF_LINE} ")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    spaced = decoders.WordPiece(prefix="\0", cleanup=False)  # a space before all words, since none begins so
    tokenizer.decoder = decoders.Sequence([spaced, decoders.Replace(END_OF_LINE, "\n")])
    return Text(tokenizer, ids[END_OF_LINE])


def train_bpe(texts, *, vocabulary):
    """Byte-level BPE of `vocabulary` ids, end of text included (id 0), trained on an iterator of str."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    reached = tokenizer.get_vocab_size()
    if reached < vocabulary:
        raise ValueError(
            f"tokenizer.vocabulary is {vocabulary}, but the training text has pairs for {reached} only:"
            f" choose at most {reached} or a larger sample_mb"
        )
    return Text(tokenizer, 0)


def train_words(texts, *, vocabulary):
    """The `vocabulary` most frequent words of an iterator of str, END_OF_LINE and UNKNOWN among them (ids 0 and 1).

    As word_tokenizer; any other word is UNKNOWN, as WikiText's own files have it. An end of line ends a text, too.
    Errors: ValueError where the texts have fewer words.
    """
    seen = Counter()
    for text in texts:
        seen.update(text.split())
    for word in (END_OF_LINE, UNKNOWN):
        seen.pop(word, None)
    if len(seen) + 2 < vocabulary:
        raise ValueError(
            f"tokenizer.vocabulary is {vocabulary}, but the training text has {len(seen)} different words only:"
            f" choose at most {len(seen) + 2} or a larger sample_mb"
        )
    words = [END_OF_LINE, UNKNOWN, *(word for word, _ in seen.most_common(vocabulary - 2))]
    return word_tokenizer({word: i for i, word in enumerate(words)})


def load_tokenizer(path, *, end_of_text=END_OF_TEXT):
    """A given tokenizer.json; ValueError where it is missing, damaged, or lacks `end_of_text`."""
    path = Path(path).expanduser()
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise ValueError(f"{path}: no such tokenizer file{did_you_mean(path.name, near)}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a tokenizer.json ({reason})") from None
    token = tokenizer.token_to_id(end_of_text)
    if token is None:
        special = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
        hint = did_you_mean(end_of_text, special)
        raise ValueError(f"{path}: no end-of-text token {end_of_text!r} in its vocabulary{hint}")
    return Text(tokenizer, token)


def vocabulary_size(text):
    """Ids that may occur, 1 + the largest: what a model's embedding must cover."""
    ids = text.tokenizer.get_vocab(with_added_tokens=True).values()
    return max(ids) + 1


def coverage(text):
    """A function (texts, ids) -> None | str: the first piece of text that the tokenizer does not know.

    Byte-level tokenizers know everything. Others answer an unknown piece with their unknown token,
    or (BPE without one) drop it in silence, which only a look at the characters shows. A tokenizer of words
    (train_words) leaves the rare ones out by its nature: nothing is amiss.
    """
    model = json.loads(text.tokenizer.to_str())["model"]
    vocabulary = text.tokenizer.get_vocab(with_added_tokens=False)
    whole = model.get("byte_fallback") or all(letter in vocabulary for letter in byte_letters())
    if whole or (model["type"] == "WordLevel" and END_OF_LINE in vocabulary):
        return lambda texts, ids: None
    name = model.get("unk_token")
    if name is None and isinstance(model.get("unk_id"), int):  # Unigram counts instead of naming
        name = text.tokenizer.id_to_token(model["unk_id"])
    unknown = None if name is None else text.tokenizer.token_to_id(name)
    if unknown is None:
        letters = {letter for piece in vocabulary for letter in piece}
        return lambda texts, ids: _unknown_letter(text.tokenizer, letters, texts)
    return lambda texts, ids: _unknown_piece(text.tokenizer, unknown, texts, ids)


def _unknown_piece(tokenizer, unknown, texts, ids):
    for document, found in zip(texts, ids, strict=True):
        if unknown in found:
            encoding = tokenizer.encode(document, add_special_tokens=False)
            start, stop = encoding.offsets[encoding.ids.index(unknown)]
            return document[start:stop]
    return None


def _unknown_letter(tokenizer, letters, texts):
    for document in texts:
        normal = tokenizer.normalizer.normalize_str(document) if tokenizer.normalizer else document
        pieces = [normal]
        if tokenizer.pre_tokenizer:
            pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]
        missing = {letter for piece in pieces for letter in piece} - letters
        if missing:
            return min(missing)
    return None


def byte_letters():
    """GPT-2's printable letter of every byte, in the order of the bytes (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def token_type(vocabulary):
    """Smallest unsigned integer type of token files that holds `vocabulary` ids."""
    return np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)


def describe(text, kind, serialised):
    """What the manifest says of a tokenizer whose tokenizer.json is the bytes `serialised`."""
    return {
        "kind": kind,
        "vocabulary": vocabulary_size(text),
        "end_of_text": text.end_of_text,
        "sha256": sha256(serialised).hexdigest(),
        "library": tokenizers.__version__,
    }
