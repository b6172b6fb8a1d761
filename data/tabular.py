"""Rows of numbers: scikit-learn's embedded tables, or any .npy or .csv file. Standardised by the training split."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float

from data.arrays import ArraySource
from data.dataset import Dataset, MalformedDataError, MissingDataError, Source, UnknownDataError, is_test
from data.npz import read_npy

EMBEDDED = ("breast_cancer", "wine", "iris", "diabetes")


@lru_cache(maxsize=4)
def _splits(name: str, held_out: float) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]]:
    if name in EMBEDDED:
        import sklearn.datasets

        rows = np.asarray(getattr(sklearn.datasets, f"load_{name}")().data)
    else:
        path = Path(name)
        if path.suffix not in (".npy", ".csv"):
            raise UnknownDataError(
                f"{name!r} is neither a .npy or .csv file nor one of the embedded tables: {', '.join(EMBEDDED)}"
            )
        if not path.is_file():
            raise MissingDataError(f"there is no table {name}")
        try:
            rows = read_npy(path) if path.suffix == ".npy" else np.genfromtxt(path, delimiter=",")
        except ValueError as error:
            raise MalformedDataError(f"{name} cannot be read: {error}") from error
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2:
        raise MalformedDataError(f"a table has rows and columns, and {name} has {rows.ndim} axes")
    rows = rows[np.isfinite(rows).all(axis=1)]  # a csv file's heading, and rows with a gap
    # RandomState's streams are frozen for ever, so the split is the same under every NumPy.
    rows = rows[np.random.RandomState(0).permutation(len(rows))]
    test = max(1, round(held_out * len(rows)))
    if len(rows) < test + 2:
        raise MalformedDataError(f"{name} has {len(rows)} complete rows, too few to train on")
    train = rows[:-test]
    mean, std = train.mean(axis=0), train.std(axis=0)
    varies = train.max(axis=0) > train.min(axis=0)  # a column of one value has no density
    standard = ((rows - mean) / np.where(varies, std, 1.0))[:, varies].astype(np.float32)
    return standard[:-test], standard[-test:]


@dataclass(frozen=True, kw_only=True)
class Tabular(Dataset):
    """Vectors [D], continuous, each column of mean 0 and standard deviation 1 over the training split."""

    name: str = "breast_cancer"  # an embedded table (breast_cancer, wine, iris, diabetes), or a .npy or .csv file
    held_out: float = 0.1  # fraction of rows in the test split

    def __post_init__(self) -> None:
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out={self.held_out} is not between 0 and 1")

    @property
    def shape(self) -> tuple[int, ...]:
        return (_splits(self.name, self.held_out)[0].shape[1],)

    def source(self, split: str) -> Source:
        return ArraySource(_splits(self.name, self.held_out)[is_test(split)], None, lambda rows: rows)
