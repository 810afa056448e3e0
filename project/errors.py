"""UserError, an error that the user can fix and that is printed without a traceback; and texts of messages."""

import difflib
import errno
import os
import shlex
import shutil
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

# Errors of writing, and what to do about them.
FULL = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in the quota",
    errno.EFBIG: "raise the limit of the file size (`ulimit -f`), or take another file system",
}
# Errors of files and folders, which programs also catch, to go on.
ADVICE = FULL | {
    errno.EACCES: "change its permissions, or take another folder",
    errno.EPERM: "change its permissions, or take another folder",
    errno.EROFS: "take a folder in which you may write",
    errno.EEXIST: "a folder is expected there",
    errno.ENOTDIR: "a folder is expected there",
    errno.EISDIR: "a file is expected there",
    errno.ELOOP: "its symbolic links lead in a circle",
    errno.ENAMETOOLONG: "take a shorter name",
}
NATIVE = ("PytorchStreamWriter", "inline_container.cc", "iostream error")  # torch's writer gives no reason


class UserError(Exception):
    """An error of the user, printed as a short block without a traceback: what is wrong, where, what to do."""


def file_failure(error: BaseException | None) -> str:
    """Message about missing permissions and the like, or a full disk, perhaps under other errors; "" for those."""
    message, advice = "", ADVICE
    while error is not None:
        if isinstance(error, OSError) and error.errno in advice:
            name = error.filename2 or error.filename  # of a file that is renamed, its new name
            text = f'"{name}": {os.strerror(error.errno)}' if name else str(error)  # h5py has the name in the text
            return f"{' '.join(text.split())}; {advice[error.errno]}"
        if isinstance(error, RuntimeError) and any(word in str(error) for word in NATIVE):
            message = "a file of weights could not be written; is the disk full?"
        error, advice = error.__cause__ or error.__context__, FULL
    return message


def format_own_traceback(error: BaseException) -> str:
    """The traceback of an error from the first line of the user's own code on; empty if there is none.

    User code is outside of installed packages and of this package, or one of its networks and tasks.
    """
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, frame in enumerate(frames) if _is_own(frame.filename)), None)
    if first is None:
        return ""
    lines = [*traceback.format_list(frames[first:]), *traceback.format_exception_only(error)]
    return f"Traceback from your code on:\n{''.join(lines).rstrip()}"


def _is_own(file: str) -> bool:
    path, package = Path(file), Path(__file__).parent
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    if not path.is_file() or any(path.is_relative_to(folder) for folder in installed):
        return False
    inside = path.relative_to(package).parts if path.is_relative_to(package) else ()
    return not inside or (inside[0] in ("models", "tasks") and path.name not in ("base.py", "network.py"))


def python() -> str:
    """The Python that runs this, as it is typed here: `python`, or a path such as `.venv/bin/python`."""
    path = Path(sys.executable)
    if Path(shutil.which("python") or "").parent == path.parent:
        return "python"
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """A ` Did you mean "x"?` for the option most like `word`, or an empty string."""
    folded = {option.casefold(): option for option in options}
    matches = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.5)
    return f' Did you mean "{folded[matches[0]]}"?' if matches else ""


def bullet_list(lines: Iterable[str], most: int = 12) -> str:
    """The lines as an indented list, cut after `most` with a count of the rest."""
    lines = list(lines)
    shown = [f"  - {line}" for line in lines[:most]]
    if len(lines) > most:
        shown.append(f"  ... and {len(lines) - most} more")
    return "\n".join(shown)
