"""The error that a user can fix, and memory errors of other libraries, which become one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edue_lightning.text import reason_of

# torch has a class of its own for CUDA alone; the CPU and other devices raise RuntimeError
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


class UserError(Exception):
    """An error the user can fix, reported in one line.

    The message names the file or setting, what is wrong with it and what to do. Commands print it without a traceback
    and exit with status 2.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, NumPy or torch says that the memory of the machine or device is too small."""
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError)


@contextmanager
def memory_as_user_error() -> Iterator[None]:
    """Raise a UserError with the settings that need less memory, where the memory is too small for the work."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"not enough memory ({reason_of(error)}); lower data.batch_size, data.eval_batch_size, data.patch.size, "
            "inference.window or slice_batch, or choose trainer.precision=bf16-mixed on a GPU"
        ) from error
