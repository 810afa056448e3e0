"""Files that are written completely or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex


@contextmanager
def atomic_path(path: Path, suffix: str = "") -> Iterator[Path]:
    """A temporary file in the folder of `path`, which replaces `path` when the block ends without an error.

    Its name cannot be predicted, and it is created exclusively: a symbolic link that somebody placed in the folder is
    never followed. `path` itself is replaced even if it is a link. Permissions follow the umask.

    Args:
        path: The file to write; its folder is created.
        suffix: Of the temporary file, where a writer insists on one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{token_hex(4)}.partial{suffix}")
    temporary.open("xb").close()
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
