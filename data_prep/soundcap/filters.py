"""Clean up the answers of a caption model, and reject those that do not describe sound."""

import re
from collections import Counter

MAX_WORDS = 60
_REFUSALS = re.compile(
    r"\b(i'?m sorry|i am sorry|i apologi[sz]e|as an ai|language model|i can(?:no|')t|i am unable|i'?m unable|"
    r"unable to (?:determine|hear|see|process|describe)|cannot (?:hear|see|determine|describe|process)|"
    r"no (?:audio|sound|video) (?:was |is )?(?:provided|available|present)|please provide)\b",
    re.IGNORECASE,
)
# Three or more words in quotes, a time stamp, or a speaker's label at the start of a line.
_SPEECH = re.compile(
    r"[\"“”«»](?:[^\"“”«»]*\s){2,}[^\"“”«»]*[\"“”«»]|\b\d{1,2}:\d{2}\b|(?:^|\n)\s*(?:speaker|man|woman|narrator|[A-Z])"
    r"\s?\d*\s*:",
    re.IGNORECASE,
)
_COMMON_WORD = re.compile("a|an|and|are|as|at|by|for|from|in|is|it|of|on|the|to|while|with")
_LEAD = re.compile(r"^(?:caption|answer|sounds?|audio|description)\s*:\s*", re.IGNORECASE)


def clean_answer(text: str) -> str:
    """Return an answer on one line, without a leading label, surrounding quotes or markup."""
    line = " ".join(text.split()).strip("*_`#-• ").strip()
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
    if refusal := _REFUSALS.search(caption):
        return "refusal", refusal[0]
    if speech := _SPEECH.search(caption):
        return "speech", " ".join(speech[0].split())
    if repeated := _repeated_words(words):
        return "repetition", repeated
    if not _is_english(caption, words):
        return "language", "not English"
    return None


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
