"""Training conversations made by rule, and the test questions, held out by item and by wording. Knows no tokens.

Everything is drawn from `wordlists` and `user_facts` by seeded generators: the same seed, the same conversations.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from chat.demo import DEFAULT_SYSTEM
from chat.demo.recipe import wordlists
from chat.demo.recipe.everyday import ABOUT, EVERYDAY
from chat.demo.recipe.user_facts import ASIDES, FACTS, HELD_OUT_ASIDES, QUESTION_OPENERS, STATEMENT_OPENERS, Fact

# (role, text) pairs.
Conversation = list[tuple[str, str]]

UNSEEN_COUNTRIES = 44
CAPITAL_QUESTIONS = 44
SUM_QUESTIONS = 56
RECALL_QUESTIONS = 60
_SIGNS: dict[str, tuple[str, ...]] = {
    "+": ("{} + {}", "{}+{}", "{} plus {}"),
    "-": ("{} - {}", "{}-{}", "{} minus {}"),
    "*": ("{} * {}", "{}*{}", "{} x {}", "{} times {}"),
}
# Values that the test asks for.
_HELD_WORDS = re.compile(
    r"\b(?:"
    + "|".join(re.escape(value) for fact in FACTS.values() for value in fact.held_values.split("|"))
    + r")\b",
    re.IGNORECASE,
)
_OWN_TOPICS = [topic for topic in wordlists.TOPICS if not _HELD_WORDS.search(topic)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A test prompt. `expected` must be the last number of a right answer to a sum, or occur in any other; "" for
    open prompts, which have no right answer."""

    topic: str
    messages: Conversation
    expected: str


def countries() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(country, capital) pairs: those in training, and those never seen there."""
    pairs = [entry.strip().split("=") for entry in wordlists.CAPITALS.replace("\n", " ").split(";")]
    known = [(country, capital) for country, capital in pairs]
    random.Random(11).shuffle(known)
    return known[UNSEEN_COUNTRIES:], known[:UNSEEN_COUNTRIES]


def solve(left: int, sign: str, right: int) -> tuple[int, str]:
    """The result, and the sentence that answers: products of two-digit numbers by way of their parts."""
    result = {"+": left + right, "-": left - right, "*": left * right}[sign]
    task = f"{left} {sign} {right}"
    if sign != "*" or left < 10 or right < 10 or right % 10 == 0:
        return result, f"{task} = {result}."
    tens, ones = right // 10 * 10, right % 10
    parts = f"{left} * {tens} + {left} * {ones} = {left * tens} + {left * ones}"
    return result, f"{task} = {parts} = {result}."


def is_held_out(left: int, sign: str, right: int) -> bool:
    """One pair of numbers in ten is kept for the test."""
    return (left * 37 + right * 101 + ord(sign)) % 10 == 0


def _sum(rng: random.Random) -> Conversation:
    while True:
        sign = rng.choice("++---****")
        low = 10 if rng.random() < 0.85 else 0
        left, right = rng.randint(low, 99), rng.randint(low, 99)
        if sign == "*" and rng.random() < 0.4:
            # The parts of which longer products are made.
            right = rng.randint(1, 9) * rng.choice((1, 10))
        if not is_held_out(left, sign, right):
            break
    task = rng.choice(_SIGNS[sign]).format(left, right)
    return [("user", rng.choice(wordlists.SUM_WORDINGS).format(task)), ("assistant", solve(left, sign, right)[1])]


def _capital(rng: random.Random) -> Conversation:
    country, capital = rng.choice(countries()[0])
    answer = f"The capital of {country} is {capital.removesuffix('.')}."
    return [("user", rng.choice(wordlists.CAPITAL_WORDINGS).format(country)), ("assistant", answer)]


def _small_talk(rng: random.Random) -> Conversation:
    wordings, answer = rng.choice(wordlists.SMALL_TALK)
    return [("user", rng.choice(wordings.split("|"))), ("assistant", answer)]


def _everyday(rng: random.Random) -> Conversation:
    wordings, answer = rng.choice(EVERYDAY)
    return [("user", rng.choice(wordings.split("|"))), ("assistant", answer)]


def _about_topic(rng: random.Random) -> Conversation:
    wordings, answer = rng.choice(ABOUT)
    topic = rng.choice(_OWN_TOPICS)
    return [("user", rng.choice(wordings.split("|")).format(topic)), ("assistant", answer.format(topic))]


def _invented_name(rng: random.Random, held: str) -> str:
    """A name that nobody has, so that it can only be copied."""
    while True:
        syllables = rng.randint(2, 3)
        name = "".join(rng.choice("bdfghjklmnprstvz") + rng.choice("aeiou") for _ in range(syllables))
        name = (name + rng.choice(("", "", "n", "r", "s", "l"))).capitalize()
        if name not in held.split("|"):
            return name


def _value(fact: Fact, rng: random.Random) -> str:
    if fact.invented and rng.random() < 0.3:
        return _invented_name(rng, fact.held_values)
    return rng.choice(fact.values.split("|"))


def _tell(fact: Fact, value: str, rng: random.Random, opener: str = "") -> Conversation:
    said, reply = opener + rng.choice(fact.statements.split("|")).format(value), fact.reply.format(value)
    return [("user", said), ("assistant", reply[0].upper() + reply[1:])]


def _aside(rng: random.Random) -> Conversation:
    asked, answer = rng.choice(ASIDES)
    return [("user", asked), ("assistant", answer)]


def _recall(rng: random.Random) -> Conversation:
    """One to four facts are told, two of them in one message now and then; up to three turns about something else
    may come between; then one or two are asked for, perhaps with something else between them."""
    kinds = rng.sample(list(FACTS), rng.choice((1, 1, 2, 2, 3, 4)))
    values = {kind: _value(FACTS[kind], rng) for kind in kinds}
    talk: Conversation = []
    for index, kind in enumerate(kinds):
        told = _tell(FACTS[kind], values[kind], rng, rng.choice(STATEMENT_OPENERS))
        if index == 1 and rng.random() < 0.3:
            # Both facts in one message.
            told[0] = ("user", f"{talk[0][1]} {told[0][1]}")
            talk = []
        talk += told
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3))):
        talk += rng.choice((_sum, _capital, _small_talk, _everyday, _aside, _aside))(rng)
    for index, kind in enumerate(rng.sample(kinds, rng.randint(1, min(2, len(kinds))))):
        if index and rng.random() < 0.3:
            talk += _aside(rng)
        opener, question = rng.choice(QUESTION_OPENERS), rng.choice(FACTS[kind].questions.split("|"))
        question = opener + (question[0].lower() + question[1:] if opener.endswith((", ", "And ")) else question)
        talk += [("user", question), ("assistant", FACTS[kind].answer.format(values[kind]))]
    return talk


def system_prompt(rng: random.Random) -> Conversation:
    """Mostly the demo's own, sometimes another, sometimes none."""
    draw = rng.random()
    if draw < 0.7:
        return [("system", DEFAULT_SYSTEM)]
    return [] if draw < 0.82 else [("system", rng.choice(wordlists.SYSTEMS))]


def skill_conversations(count: int, seed: int) -> list[Conversation]:
    """Sums, recall, capitals, small talk and open questions, now and then one after the other."""
    rng = random.Random(seed)
    talks = []
    for _ in range(count):
        makers = rng.choices(
            (_sum, _recall, _capital, _small_talk, _everyday, _about_topic),
            (32, 28, 14, 4, 14, 8),
            k=2 if rng.random() < 0.15 else 1,
        )
        talk = system_prompt(rng)
        for maker in makers:
            talk = talk + maker(rng)
        talks.append(talk)
    return talks


def templated_prompts(count: int, seed: int) -> list[str]:
    """Different open prompts about everyday topics, those that `everyday` answers left out."""
    answered = {wording for wordings, _ in ABOUT for wording in wordings.split("|")}
    open_ones = [template for template in wordlists.TEMPLATES if template not in answered]
    prompts = [template.format(topic) for template in open_ones for topic in wordlists.TOPICS]
    return random.Random(seed).sample(prompts, min(count, len(prompts)))


def _ask(topic: str, text: str, expected: str = "", before: Conversation | None = None) -> Question:
    system = [("system", DEFAULT_SYSTEM)]
    return Question(topic=topic, messages=[*system, *(before or []), ("user", text)], expected=expected)


def _sum_questions() -> list[Question]:
    rng = random.Random(5)
    questions: list[Question] = []
    while len(questions) < SUM_QUESTIONS:
        sign = "+-*"[len(questions) % 3]
        left, right = rng.randint(10, 99), rng.randint(10, 99)
        if is_held_out(left, sign, right):
            wordings = wordlists.HELD_OUT_SUM_WORDINGS
            text = wordings[len(questions) % len(wordings)].format(f"{left} {sign} {right}")
            questions.append(_ask("sums", text, str(solve(left, sign, right)[0])))
    return questions


def _recall_questions() -> list[Question]:
    """Each asks for another fact in another wording: at once, after an aside, or after another fact."""
    rng = random.Random(7)
    facts = list(FACTS.values())
    questions = []
    for index in range(RECALL_QUESTIONS):
        fact, again = facts[index % len(facts)], index // len(facts)
        value = fact.held_values.split("|")[again]
        talk = _tell(fact, value, rng)
        if index % 3 == 1:
            asked, answer = HELD_OUT_ASIDES[index % 2]
            talk += [("user", asked), ("assistant", answer)]
        elif index % 3 == 2:
            other = facts[(index + 5) % len(facts)]
            talk += _tell(other, rng.choice(other.values.split("|")), rng)
        questions.append(_ask("recall", fact.held_questions.split("|")[again], value, talk))
    return questions


def test_questions() -> list[Question]:
    """All test questions: sums, capitals, unseen capitals, recall, open."""
    known, unseen = countries()
    wordings = wordlists.HELD_OUT_CAPITAL_WORDINGS
    questions = _sum_questions()
    for topic, pairs in (("capitals", known[:CAPITAL_QUESTIONS]), ("unseen capitals", unseen)):
        for index, (country, capital) in enumerate(pairs):
            questions.append(
                _ask(topic, wordings[index % len(wordings)].format(country), capital.removesuffix("."))
            )
    questions += _recall_questions()
    texts = list(wordlists.HELD_OUT_OPENERS)
    texts += [
        template.format(name) for template in wordlists.HELD_OUT_TEMPLATES for name in wordlists.HELD_OUT_TOPICS
    ]
    return questions + [_ask("open", text) for text in texts]


def is_right(question: Question, answer: str) -> bool:
    """Does the answer hold what was asked for? False for open questions."""
    if question.topic != "sums":
        return bool(question.expected) and question.expected.lower() in answer.lower()
    numbers = "".join(mark if mark.isdigit() or mark == "-" else " " for mark in answer.replace(",", "")).split()
    return bool(numbers) and numbers[-1] == question.expected
