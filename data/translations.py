"""Any TFDS set of texts in two languages by name, as bytes, read from array_record files without TensorFlow."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from data import units
from data.dataset import Arrays, Source, UnknownDataError, is_test
from data.pairs import Pairs, batch
from data.tfds import open_split, prepared


@dataclass(frozen=True, kw_only=True)
class TFDSPairs(Pairs):
    """A TFDS set of texts in two languages, as bytes. What is longer than its row is cut, and still ends in a stop."""

    name: str  # as TFDS spells it: wmt14_translate/de-en, ted_hrlr_translate/pt_to_en
    source_language: str  # as the set names its texts: de
    target_language: str  # en
    source_length: int = 128  # bytes of a source and its stop
    target_length: int = 128  # bytes of a target and its stop
    train: str = "train"  # which TFDS split is trained on; a part of one is train[:50000] or train[90%:]
    test: str = "test"  # which is held out

    def __post_init__(self) -> None:
        if min(self.lengths) < 2:
            raise ValueError(f"a row of {min(self.lengths)} tokens has no room for a byte and the stop")

    @property
    def lengths(self) -> tuple[int, int]:
        return self.source_length, self.target_length

    @property
    def stop(self) -> int:
        return 256

    def encode(self, text: str) -> Int[np.ndarray, " t"]:
        return units.encode(text, "bytes", "").astype(np.int32)

    def decode(self, tokens: Int[np.ndarray, " t"]) -> str:
        return units.decode(tokens, "bytes", "", self.stop)

    def source(self, split: str) -> Source:
        import tensorflow_datasets as tfds

        name = self.test if is_test(split) else self.train
        features: Any = prepared(self.name).info.features
        texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
        for language in (self.source_language, self.target_language):
            if language not in texts:
                raise UnknownDataError(f"{self.name} has no text {language!r}; it has {', '.join(texts) or 'none'}")
        return TextRecordSource(open_split(self.name, name), self)


@dataclass(frozen=True)
class TextRecordSource(Source):
    """Pairs read as they are needed: such sets are large."""

    records: Any
    pairs: TFDSPairs

    @property
    def threads(self) -> int:
        return 8

    def __len__(self) -> int:
        return len(self.records)

    def read(self, records: Int[np.ndarray, " b"], seed: int, numbers: Int[np.ndarray, " b"]) -> Arrays:
        examples, rows = self.records.__getitems__(records.tolist()), []
        languages = (self.pairs.source_language, self.pairs.target_language)
        for language, length in zip(languages, self.pairs.lengths, strict=True):
            row = np.full((len(examples), length), self.pairs.stop, np.int32)
            for i, example in enumerate(examples):
                text = np.frombuffer(example[language], np.uint8)[: length - 1]
                row[i, : len(text)] = text
            rows.append(row)
        return batch(*rows, stop=self.pairs.stop)
