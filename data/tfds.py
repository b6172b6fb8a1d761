"""TFDS sets by name, prepared as array_record files and read without TensorFlow."""

import difflib
import logging
import re
from functools import lru_cache
from typing import Any

from data.dataset import MissingDataError, UnknownDataError

# name, name/configuration, name:version or both. TFDS itself also takes name/data_dir=FOLDER, a folder whose metadata
# name classes that it imports, and namespace:name, sets of other people's code: a name may come from a stranger's run.
NAME = re.compile(r"([a-z]\w*)(/\w[\w.+-]*)?(:\d+\.\d+\.\d+)?", re.ASCII)


@lru_cache(maxsize=8)
def prepared(name: str) -> Any:
    """The builder of a set that is there to be read.

    Raises:
      UnknownDataError: TFDS has no such set; names the nearest.
      MissingDataError: it is not prepared; names the command that does.
    """
    import tensorflow_datasets as tfds

    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns of decoders that are not used here
    known = tfds.list_builders(with_community_datasets=False)
    parts = NAME.fullmatch(name)
    if parts is None or parts[1] not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        raise UnknownDataError(f"TFDS has no set {name!r}" + (f"; the nearest are {', '.join(near)}" if near else ""))
    try:
        builder: Any = tfds.builder(name, file_format="array_record")
    except (ValueError, AssertionError) as error:  # of its configuration, or of its version
        raise UnknownDataError(f"TFDS has no set {name!r}: {str(error).partition(chr(10))[0]}") from error
    if not builder.is_prepared():
        folder = builder.data_path.parents[2 if builder.builder_config else 1]  # over name, configuration and version
        raise MissingDataError(
            f"{name} is not in {folder} (set TFDS_DATA_DIR to look elsewhere). To prepare it there: "
            f'pip install tensorflow && python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{name}', file_format='array_record', data_dir='{folder}').download_and_prepare()\""
        )
    return builder


def open_split(name: str, split: str, decoders: Any = None) -> Any:
    """The examples of a split, or of a part of one such as train[:50000].

    Raises:
      UnknownDataError: the set has no such split.
    """
    builder = prepared(name)
    if split.partition("[")[0] not in builder.info.splits:
        raise UnknownDataError(f"{name} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    try:
        return builder.as_data_source(split, decoders=decoders)
    except ValueError as error:  # what stands in the brackets
        raise UnknownDataError(f"{name} has no split {split!r}: {str(error).partition(chr(10))[0]}") from error
