"""Text of file names and tables: accented letters with one code each."""

import unicodedata
from pathlib import Path

from project.data.raw.lazy_image import errors_mention
from project.errors import UserError


def nfc(text: str) -> str:
    """The text with one code for each accented letter: file names from a Mac have two, tables have one."""
    return unicodedata.normalize("NFC", text)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark."""
    with errors_mention(path):
        content = path.read_bytes()
        try:
            return nfc(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(
                f'cannot be read: line {line} is not in UTF-8; save the file in that encoding (in Excel "CSV UTF-8")'
            ) from error
