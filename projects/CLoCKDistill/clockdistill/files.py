"""Files that are replaced as a whole."""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import BinaryIO

# of a disk, a quota, or a limit on the size of files
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def replaced(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a new file for writing that takes the place of `path` once it is complete and on the disk.

    After an exception, the file at `path` is left as it was.
    """
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
