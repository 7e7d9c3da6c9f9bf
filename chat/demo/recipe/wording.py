"""What an answer's text tells by itself: does it loop, is it garbage, where has it said enough. Knows no tokens."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

# An answer ends with the first sentence that ends past so many characters.
ENOUGH = 110
LIST_ITEMS = 3
_SENTENCE_END = re.compile(r"(?<!\d)(?<!\b[A-Za-z])(?<!Mr)(?<!Dr)(?<!St)(?<!Mrs)(?<!\bvs)[.!?][\"')*]*(?=\s|$)")
_EXCUSE = re.compile(
    r"\b[Ss]orry for |\b[Ss]orry, |\b[Aa]s an? [^.,]{0,40}\b(?:AI|assistant|bot|chatbot|model)\b|"
    r"\bI'm (?:an?|not) |unable to|designed to (?:assist|provide)|\bhere to (?:help|assist)|helpful assistant|"
    r"\bI'm glad you"
)
_LIST_ITEM = re.compile(r"^\s*(?:\d+[.):]|[-*•])\s", re.MULTILINE)
_DOUBLED = re.compile(r"\b(\w+) \1\b|, ?,")
_END_MARKS = tuple(".!?:)\"'*`")


def is_garbage(text: str) -> bool:
    """Nothing said, words said twice in a row again and again, or a run of one mark."""
    words = text.replace(",", " ,").split()
    twice = sum(left == right for left, right in pairwise(words))
    return (
        not any(mark.isalnum() for mark in text) or twice >= 3 or re.search(r"([^\s=*_#-])\1{5}", text) is not None
    )


def is_degenerate(text: str) -> bool:
    """Garbage or a loop: a sentence three times, or hardly any new phrase."""
    if is_garbage(text):
        return True
    words = text.split()
    if _most_said(text) >= 3:
        return True
    phrases = [tuple(words[at : at + 4]) for at in range(len(words) - 3)]
    return len(phrases) >= 30 and len(set(phrases)) < 0.6 * len(phrases)


def _most_said(text: str) -> int:
    """How often the most frequent sentence of four words or more occurs."""
    for mark in "!?\n":
        text = text.replace(mark, ".")
    sentences = Counter(part.strip(" -*0123456789").lower() for part in text.split("."))
    return max((count for sentence, count in sentences.items() if len(sentence.split()) >= 4), default=0)


def is_sound(text: str) -> bool:
    """Good enough a target: no sentence twice, not the same few words again and again."""
    words = text.lower().split()
    return not is_degenerate(text) and _most_said(text) < 2 and len(set(words)) >= 0.45 * len(words)


def is_echo(text: str, asked: str) -> bool:
    """Hardly a word in the answer that is not in the question."""
    words, given = re.findall(r"\w+", text.lower()), set(re.findall(r"\w+", asked.lower()))
    return sum(word in given for word in words) > 0.7 * len(words)


def shortened(text: str, enough: int = ENOUGH) -> str:
    """The beginning of an answer: up to the end of the sentence that says enough, or of a list's third item; ""
    where no such end comes."""
    items = [found.start() for found in _LIST_ITEM.finditer(text)]
    for found in _SENTENCE_END.finditer(text):
        said = text[: found.end()]
        if found.end() >= enough and said.count('"') % 2 == 0 and not any(start < found.end() for start in items):
            return said
    if len(items) > LIST_ITEMS:
        return text[: items[LIST_ITEMS]].rstrip()
    if len(items) == LIST_ITEMS:
        last = text.find("\n", items[-1] + 1)
        return text[: last if last > 0 else 0].rstrip()
    return ""


def is_excuse(text: str) -> bool:
    """Does the answer speak of what an assistant is sorry for or not able to do, instead of what was asked?"""
    return _EXCUSE.search(text) is not None


def is_repetitive(text: str) -> bool:
    """Are three words in a row said twice, as in a list whose items begin alike?"""
    words = re.findall(r"[\w']+", text.lower())
    phrases = [tuple(words[at : at + 3]) for at in range(len(words) - 2)]
    return len(set(phrases)) < len(phrases)


def is_doubled(text: str) -> bool:
    """Does a draft show through: a word or a comma twice in a row?"""
    return _DOUBLED.search(text) is not None


def is_broken_off(text: str) -> bool:
    """Is there no mark at the end?"""
    return not text.rstrip().endswith(_END_MARKS)
