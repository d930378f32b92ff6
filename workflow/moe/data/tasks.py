"""Three small evaluation tasks made of a corpus' test split, in the forms of LAMBADA, HellaSwag, BoolQ.

They are no benchmark and are named `local_*`. Contexts are raw text of a document, ended at a word, so
that context + " " + answer is the text as it stands.
"""

import json
import random
import re
from itertools import islice
from pathlib import Path

from moe.data.corpus import Corpus
from moe.data.storage import sync

WORD = re.compile(r"(?<=[a-z,;:)] )[A-Za-z]{4,14}(?=[ .,;:)\n])")  # a word inside running text
ENDING = 60  # bytes of an ending, about
SPAN = 4  # words on each side of the asked one in a cloze
MOST_DOCUMENTS = 20_000  # looked at, whatever the corpus' size
PASSAGES = 16  # taken of a document at most, so that a long one does not rule


def make_local_tasks(folder, *, count=500, seed=0, context_bytes=200):
    """Write tasks/local_{last_word,best_ending,cloze}.jsonl below a prepared corpus; returns the paths.

    count: documents of each task at most (fewer where the test split is short). Fields:
    last_word {context, word}; best_ending {context, endings[4], label}; cloze {passage, statement,
    label 0 = no, 1 = yes}. The same corpus and arguments give the same bytes. Errors: ValueError
    where the test split has too little running text.
    """
    corpus = Corpus(folder)
    draw = random.Random(f"passages {seed}")
    passages = list(_passages(corpus, draw, count, context_bytes))
    draw.shuffle(passages)
    makers = {
        "local_last_word": last_words,
        "local_best_ending": best_endings,
        "local_cloze": clozes,
    }
    out = Path(folder) / "tasks"
    out.mkdir(exist_ok=True)
    paths = []
    for name, make in makers.items():
        rows = make(passages, random.Random(f"{name} {seed}"), count)
        if len(rows) < 4:
            raise ValueError(
                f"{folder}: the test split has running text for {len(rows)} documents of {name}, at"
                " least 4 are needed: give it more weight or use more text"
            )
        paths.append(out / f"{name}.jsonl")
        partial = out / f".{name}.partial"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        partial.write_text(text, encoding="utf-8")
        sync(partial)
        partial.replace(paths[-1])
    return paths


def last_words(passages, draw, count):
    """Passages whose next word stands in them already, LAMBADA's idea: it can be found, not guessed."""
    found = (
        {"context": context, "word": word} for context, word, _, _ in passages if re.search(rf"\b{word}\b", context)
    )
    return list(islice(found, count))


def best_endings(passages, draw, count):
    """The true continuation among those of three other documents of the same domain."""
    rows = []
    endings = {}
    for _, _, ending, (domain, document) in passages:
        endings.setdefault(domain, []).append((ending, document))
    for context, _, ending, (domain, document) in passages:
        wrong = []
        for other, origin in draw.sample(endings[domain], min(12, len(endings[domain]))):
            if origin != document and other not in (ending, *wrong):
                wrong.append(other)
        if len(wrong) < 3:
            continue
        label = len(rows) % 4  # balanced
        rows.append(
            {
                "context": context,
                "endings": [*wrong[:label], ending, *wrong[label:3]],
                "label": label,
            }
        )
        if len(rows) == count:
            break
    draw.shuffle(rows)
    return rows


def clozes(passages, draw, count):
    """A stretch of the passage, as it stands (1, yes) or with one word of another document (0, no)."""
    rows = []
    words = {}
    for _, word, _, (domain, _) in passages:
        words.setdefault(domain, []).append(word)
    for context, _, _, (domain, _) in passages:
        asked = [m for m in WORD.finditer(context) if 20 < m.start() < len(context) - 20]
        foreign = [w for w in draw.sample(words[domain], min(12, len(words[domain]))) if w not in context]
        if not asked or not foreign:
            continue
        asked = draw.choice(asked)
        before = " ".join(context[: asked.start()].split()[-SPAN:])
        after = " ".join(context[asked.end() :].split()[:SPAN])
        label = len(rows) % 2  # balanced
        word = asked.group() if label else foreign[0]
        glue = "" if context[asked.end()] in ".,;:)" else " "
        rows.append({"passage": context, "statement": f"{before} {word}{glue}{after}", "label": label})
        if len(rows) == count:
            break
    draw.shuffle(rows)
    return rows


def _passages(corpus, draw, count, context_bytes):
    """(context, next word, next words, (domain, document)) of running text, no two alike."""
    tokens = corpus.tokens("test")
    starts, domains = corpus.documents("test")
    order = draw.sample(range(len(domains)), min(len(domains), MOST_DOCUMENTS))
    seen, found = set(), 0
    for document in order:
        begin, end = int(starts[document]), int(starts[document + 1])
        text = corpus.tokenizer.decode(tokens[begin : min(end, begin + 50_000)].tolist())
        floor, taken = 0, 0
        for match in WORD.finditer(text):
            if match.start() - floor < context_bytes or taken == PASSAGES:
                continue
            passage = _cut(text, match, context_bytes)
            if passage and passage[0] not in seen:
                seen.add(passage[0])
                floor, taken, found = match.end() + ENDING, taken + 1, found + 1
                yield *passage, (int(domains[document]), document)
        if found >= 8 * count:  # many passages fit no task
            return


def _cut(text, match, context_bytes):
    """(context, word, ending) at a word of a text, or None where the surroundings are no running text."""
    context = text[: match.start() - 1].encode("utf-8")[-context_bytes:].decode("utf-8", "ignore")
    context = context[context.find(" ") + 1 :] if " " in context else ""
    ending = text[match.start() : match.start() + ENDING].rsplit(" ", 1)[0].rstrip()
    plain = sum(c.isalpha() or c == " " for c in context)
    if "\ufffd" in context or "\n\n" in ending or len(context) < context_bytes // 2:
        return None
    if plain < 0.85 * len(context) or len(ending) < ENDING // 2:
        return None
    return context, match.group(), ending
