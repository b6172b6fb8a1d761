"""Links that a stranger may have left in a run's folder."""

import os
import stat
from collections.abc import Collection
from pathlib import Path

from training.errors import UserError


def check_links(folder: Path, contents: Collection[str]) -> None:
    """Refuses a run's folder in which a link leads out of it, or what is neither a file nor a folder stands.

    Much is written into a run's folder, under names that all know: where a stranger has left a link under one of them,
    samples.png or evaluation.json, what is written would be another file of the user's. Folders that are no part of a
    run are not entered.

    Args:
      contents: names of what is part of a run.

    Raises:
      UserError: names the first.
    """
    root = os.path.realpath(folder)
    for place, folders, files in os.walk(folder):
        for path in (os.path.join(place, name) for name in (*folders, *files)):
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:  # a trainer beside us has removed it
                continue
            if stat.S_ISLNK(mode):
                target = os.path.realpath(path)
                if os.path.commonpath((root, target)) != root:
                    raise UserError(f"{path} is a link to {target}, out of the run's folder: nothing is written there")
            elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UserError(f"{path} is neither a file nor a folder: it is no part of a run")
        if place == os.fspath(folder):
            folders[:] = [name for name in folders if name in contents]
