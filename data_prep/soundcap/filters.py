"""Which answers of a model are captions of sound."""

import re
from collections import Counter

MAX_WORDS = 60
_REFUSALS = re.compile(
    r"\b(i'?m sorry|i am sorry|i apologi[sz]e|as an ai|language model|i can(?:no|')t|i am unable|i'?m unable|"
    r"unable to (?:determine|hear|see|process|describe)|cannot (?:hear|see|determine|describe|process)|"
    r"no (?:audio|sound|video) (?:was |is )?(?:provided|available|present)|please provide)\b",
    re.IGNORECASE,
)
# Words of a speaker in quotes, a time, or the name of a speaker at the start of a line.
_SPEECH = re.compile(
    r"[\"“”«»](?:[^\"“”«»]*\s){2,}[^\"“”«»]*[\"“”«»]|\b\d{1,2}:\d{2}\b|(?:^|\n)\s*(?:speaker|man|woman|narrator|[A-Z])"
    r"\s?\d*\s*:",
    re.IGNORECASE,
)
_COMMON = frozenset(
    (
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "by",
        "for",
        "from",
        "in",
        "is",
        "it",
        "of",
        "on",
        "the",
        "to",
        "while",
        "with",
    )
)
_LEAD = re.compile(r"^(?:caption|answer|sounds?|audio|description)\s*:\s*", re.IGNORECASE)


def cleaned(text: str) -> str:
    """An answer in one line, without marks around it."""
    line = " ".join(text.split()).strip("*_`#-• ").strip()
    line = _LEAD.sub("", line)
    if len(line) > 1 and line[0] in "\"'“" and line[-1] in "\"'”":
        line = line[1:-1].strip()
    return line


def fault_of(text: str) -> tuple[str, str] | None:
    """Why a cleaned answer is no caption, as a code and a detail; None for a good one.

    Codes: empty, too_long, refusal, speech (a transcript), repetition, language (not English).
    """
    words = re.findall(r"\w+(?:['’]\w+)?", text.lower())
    if not words:
        return "empty", "no word"
    if len(words) > MAX_WORDS:
        return "too_long", f"{len(words)} words, at most {MAX_WORDS}"
    if found := _REFUSALS.search(text):
        return "refusal", found[0]
    if found := _SPEECH.search(text):
        return "speech", " ".join(found[0].split())
    if repeated := _repeated(words):
        return "repetition", repeated
    if not _is_english(text, words):
        return "language", "not English"
    return None


def _repeated(words: list[str]) -> str:
    """What is said again and again: a word five times in a row, or four words three times."""
    for start in range(len(words) - 4):
        if len(set(words[start : start + 5])) == 1:
            return words[start]
    fours = Counter(tuple(words[start : start + 4]) for start in range(len(words) - 3))
    four, times = fours.most_common(1)[0] if fours else ((), 0)
    return " ".join(four) if times >= 3 else ""


def _is_english(text: str, words: list[str]) -> bool:
    letters = [letter for letter in text if letter.isalpha()]
    plain = sum(letter.isascii() for letter in letters)
    if plain < 0.9 * len(letters):
        return False
    return len(words) < 8 or any(word in _COMMON for word in words)
