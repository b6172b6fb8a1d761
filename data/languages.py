"""Two made-up languages and the one translation between them, which is exact and one-to-one.

    source   adjective_k … adjective_1 noun   verb   adjective_k … adjective_1 noun        small red house sees dog
    target   noun adjective_1 … adjective_k   noun adjective_1 … adjective_k   verb        house red small dog sees

Each word of the source has its own in the target, and of an adjective there are two, for its noun has a gender. In the
target an adjective ends in a or o as its noun asks, the verb stands last, and adjectives stand behind their noun, in
the order of their nearness to it. So a word's translation, and where it stands, both depend on words that follow it.

Held out are the sentences whose verb and two nouns have numbers that add up to a multiple of ten: with these three
words together, whatever their adjectives, nothing is ever trained on.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Int

SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
HELD_OUT = 10  # one in so many


@lru_cache(maxsize=4)
def _stems() -> list[str]:
    """Words of two syllables. RandomState's streams are frozen for ever, so they are the same under every NumPy."""
    order = np.random.RandomState(0).permutation(len(SYLLABLES) ** 2)
    return [SYLLABLES[i // len(SYLLABLES)] + SYLLABLES[i % len(SYLLABLES)] for i in order]


@dataclass(frozen=True)
class Grammar:
    """Tokens 0 … words − 1 are the source's nouns, verbs and adjectives; then come the target's; then the stop."""

    words: int

    def __post_init__(self) -> None:
        most = len(_stems()) // 2
        if not 4 <= self.words <= most:
            raise ValueError(f"words={self.words} is not between 4 and {most}")

    @property
    def adjectives(self) -> int:
        return self.words // 4

    @property
    def verbs(self) -> int:
        return self.words // 4

    @property
    def nouns(self) -> int:
        return self.words - self.verbs - self.adjectives

    @property
    def stop(self) -> int:
        return 2 * self.words + self.adjectives

    def dictionary(self) -> tuple[str, ...]:
        """The words of both languages in the order of their tokens. By their endings no two are the same."""
        own, other = _stems()[: self.words], _stems()[self.words : 2 * self.words]
        first = self.nouns + self.verbs
        nouns, verbs = other[: self.nouns], other[self.nouns : first]
        adjectives = [stem + ending for stem in other[first:] for ending in ("sa", "so")]
        return (*own, *(stem + "n" for stem in nouns), *(stem + "r" for stem in verbs), *adjectives)

    def translate(self, sentence: list[int]) -> list[int]:
        """The target's tokens, of a source's, both without stops.

        Raises:
          ValueError: it is no sentence of the source.
        """
        at = [i for i, word in enumerate(sentence) if self.nouns <= word < self.nouns + self.verbs]
        if len(at) != 1:
            raise ValueError(f"a sentence has one verb, and {self._printed(sentence)} has {len(at)}")
        subject, verb, object_ = sentence[: at[0]], sentence[at[0]], sentence[at[0] + 1 :]
        return [*self._phrase(subject), *self._phrase(object_), self.words + verb]

    def _phrase(self, words: list[int]) -> list[int]:
        *adjectives, noun = words or [-1]
        first = self.nouns + self.verbs
        if not 0 <= noun < self.nouns or any(not first <= word < self.words for word in adjectives):
            raise ValueError(
                f"on both sides of its verb a sentence has adjectives and a noun, not {self._printed(words)}"
            )
        return [self.words + noun, *(self._agreeing(word, noun) for word in reversed(adjectives))]

    def _agreeing(self, adjective, noun):
        """The target's adjective in its noun's gender, which is whether the noun's number is odd."""
        first = self.nouns + self.verbs
        return self.words + first + 2 * (adjective - first) + noun % 2

    def _printed(self, words: list[int]) -> str:
        return repr(" ".join((*self.dictionary(), "(stop)")[word] for word in words))

    def draw(
        self, rng: np.random.Generator, n: int, adjectives: int, held_out: bool
    ) -> tuple[Int[np.ndarray, "{n} length"], Int[np.ndarray, "{n} length"]]:
        """n sentences and their translations, filled up with stops.

        Args:
          adjectives: most of them before a noun; each number up to it is as likely.
          held_out: which of the two kinds of sentences.
        """
        heads = np.zeros((0, 3), np.int64)
        while len(heads) < n:
            more = rng.integers([self.nouns, self.verbs, self.nouns], size=(n, 3))
            heads = np.concatenate([heads, more[(more.sum(axis=1) % HELD_OUT == 0) == held_out]])
        subject, verb, object_ = (heads[:n, i : i + 1] for i in range(3))
        first = self.nouns + self.verbs
        one, two = first + rng.integers(self.adjectives, size=(2, n, adjectives))
        has_one, has_two = np.arange(adjectives) < rng.integers(adjectives + 1, size=(2, n, 1))
        always = np.ones((n, 1), bool)
        source = self._packed(
            [one[:, ::-1], subject, self.nouns + verb, two[:, ::-1], object_],
            [has_one[:, ::-1], always, always, has_two[:, ::-1], always],
        )
        one, two = self._agreeing(one, subject), self._agreeing(two, object_)
        target = self._packed(
            [self.words + subject, one, self.words + object_, two, self.words + self.nouns + verb],
            [always, has_one, always, has_two, always],
        )
        return source, target

    def _packed(
        self, words: list[Int[np.ndarray, "n _"]], there: list[Bool[np.ndarray, "n _"]]
    ) -> Int[np.ndarray, "n length"]:
        """The words that are there, moved up to each other, then stops."""
        row, is_there = np.concatenate(words, axis=1), np.concatenate(there, axis=1)
        order = np.argsort(~is_there, axis=1, kind="stable")
        row = np.take_along_axis(np.where(is_there, row, self.stop), order, axis=1)
        return np.pad(row, ((0, 0), (0, 1)), constant_values=self.stop)
