"""Clean up the answers of a caption model, and reject those that do not describe sound."""

import re
import unicodedata
from collections import Counter

MAX_WORDS = 60
MAX_CHARACTERS = 1000
_REFUSALS = re.compile(
    r"\b(i'?m sorry|i am sorry|i apologi[sz]e|as an ai|language model|i can(?:no|')t|i am unable|i'?m unable|"
    r"unable to (?:determine|hear|see|process|describe)|cannot (?:hear|see|determine|describe|process)|"
    r"no (?:audio|sound|video) (?:was |is )?(?:provided|available|present)|please provide)\b",
    re.IGNORECASE,
)
# A time stamp, or a speaker's label.
_TRANSCRIPT = re.compile(
    r"\b\d{1,2}:\d{2}\b|\b(?:speaker|narrator) ?\d* ?:|^(?:man|woman|[A-Z]) ?\d* ?:", re.IGNORECASE
)
# Text in quotes, or after an opening mark without its closing one, as in an answer that was cut. A mark after
# a digit or letter opens nothing: 5" is a length.
_QUOTED = re.compile(r'(?<!\w)["“”„«»]([^"“”„«»]+)["“”„«»]|(?<!\S)["“„«]([^"“”„«»]+)$')
_QUOTED_WORDS = 3
_COMMON_WORD = re.compile("a|an|and|are|as|at|by|for|from|in|is|it|of|on|the|to|while|with")
_LEAD = re.compile(r"^(?:caption|answer|sounds?|audio|description)\s*:\s*", re.IGNORECASE)
_REASONING_START = re.compile("<think(?:ing)?>", re.IGNORECASE)
_REASONING_END = re.compile("</think(?:ing)?>", re.IGNORECASE)


def clean_answer(text: str) -> str:
    """Return an answer on one line, without reasoning, a leading label, surrounding quotes or markup."""
    line = " ".join(_printable(_without_reasoning(text)).split()).strip("*_`#-• ").strip()
    line = _LEAD.sub("", line)
    if len(line) > 1 and line[0] in "\"'“" and line[-1] in "\"'”":
        line = line[1:-1].strip()
    return line


def find_problem(caption: str) -> tuple[str, str] | None:
    """Return why a cleaned answer is not a usable caption, or None for a good one.

    Returns:
      A code and a detail. The codes are empty, too_long, refusal, speech (a transcript), repetition and
      language (not English).
    """
    words = re.findall(r"\w+(?:['’]\w+)?", caption.lower())
    if not words:
        return "empty", "no words"
    if len(words) > MAX_WORDS:
        return "too_long", f"{len(words)} words, at most {MAX_WORDS} are allowed"
    if len(caption) > MAX_CHARACTERS:
        return "too_long", f"{len(caption)} characters, at most {MAX_CHARACTERS} are allowed"
    if refusal := _REFUSALS.search(caption):
        return "refusal", refusal[0]
    if speech := _speech(caption):
        return "speech", speech
    if repeated := _repeated_words(words):
        return "repetition", repeated
    if not _is_english(caption, words):
        return "language", "not English"
    return None


def _without_reasoning(text: str) -> str:
    """Return an answer without the reasoning before it. Reasoning that never ends takes the whole answer.

    If the chat format opens the reasoning, only its end mark is in the answer.
    """
    before, *thoughts = _REASONING_START.split(text)
    answers = [_REASONING_END.split(before)[-1]]
    for thought in thoughts:
        _, *after = _REASONING_END.split(thought)
        answers += after[-1:]
    return " ".join(answers)


def _printable(text: str) -> str:
    """Return text with spaces for control characters and for halves of surrogate pairs."""
    return "".join(" " if unicodedata.category(mark) in ("Cc", "Cs") else mark for mark in text)


def _speech(caption: str) -> str:
    """Return the part of a caption that repeats what is said, or ""."""
    for quoted in _QUOTED.finditer(caption):
        if len((quoted[1] or quoted[2]).split()) >= _QUOTED_WORDS:
            return " ".join(quoted[0].split())
    transcript = _TRANSCRIPT.search(caption)
    return transcript[0] if transcript else ""


def _repeated_words(words: list[str]) -> str:
    """Return a word that occurs five times in a row, or four words that occur three times, or ""."""
    for start in range(len(words) - 4):
        if len(set(words[start : start + 5])) == 1:
            return words[start]
    four_grams = Counter(tuple(words[start : start + 4]) for start in range(len(words) - 3))
    four_gram, count = four_grams.most_common(1)[0] if four_grams else ((), 0)
    return " ".join(four_gram) if count >= 3 else ""


def _is_english(caption: str, words: list[str]) -> bool:
    letters = [letter for letter in caption if letter.isalpha()]
    ascii_letters = sum(letter.isascii() for letter in letters)
    if ascii_letters < 0.9 * len(letters):
        return False
    return len(words) < 8 or any(_COMMON_WORD.fullmatch(word) for word in words)
