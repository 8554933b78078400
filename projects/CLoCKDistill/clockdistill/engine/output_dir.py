"""The output folder, which belongs to one training at a time."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from detectron2.utils import comm

from ..errors import UserError

LOCK = "train.lock"

logger = logging.getLogger(__name__)


def make_output_dir(path: str | os.PathLike[str], setting: str = "train.output_dir") -> None:
    """Create the output folder.

    Args:
        setting: key or flag that names it, for error messages.

    Raises:
        UserError: it cannot be created or written to.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f"{setting} {path} cannot be created ({error.strerror}): set it to another folder") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{setting} {path} cannot be written to: set it to another folder")


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Create the output folder and keep it for this training. The other processes wait for the main one.

    The lock ends with the process, however that ends. What a killed process left incomplete is removed.

    Raises:
        UserError: another training uses the folder.
    """
    if not comm.is_main_process():
        comm.synchronize()
        yield
        return
    make_output_dir(path)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(os.path.join(path, LOCK), "a+", encoding="utf-8"))
            # unlike flock, not inherited by data workers, which may outlive this process for some seconds
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"train.output_dir {path} is in use by another training ({file.read() or 'unknown process'}): wait for "
                "it, or set another folder"
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                logger.warning(f"The file system of {path} has no locks: do not start a second training there")
                comm.synchronize()
                yield
                return
            raise UserError(
                f"train.output_dir {path} cannot be written to ({error.strerror}): set it to another folder"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for incomplete in Path(path).glob("*.pth.tmp"):
            incomplete.unlink()
        for state in Path(path).glob("*.resume.pth"):
            if not state.with_name(state.name.replace(".resume.pth", ".pth")).exists():
                state.unlink()
        comm.synchronize()
        yield
