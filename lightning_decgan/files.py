"""Writing result files whole or not at all.

A reader, a killed run or a full disk never leaves half a picture or half a summary: the bytes go to a temporary file in
the same folder, which then takes the name in one step. This module never overwrites anything but the file it is given.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_bytes_atomically(path: str | os.PathLike[str], content: bytes | memoryview) -> Path:
    """Writes `content` to `path`, making the folder if it is not there.

    Args:
        path: the file to write; an existing file is replaced in one step.
        content: the whole content.

    Returns:
        The path written.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> write_bytes_atomically(folder / "new" / "a.txt", b"whole").read_bytes()
        b'whole'
        >>> [file.name for file in (folder / "new").iterdir()]
        ['a.txt']
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; results are for everybody whom the user's umask lets read them
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def write_json_atomically(path: str | os.PathLike[str], content: dict[str, Any]) -> Path:
    """Writes a dictionary as indented JSON that every reader understands: NaN and infinity become null.

    Args:
        path: the file to write.
        content: names and values: numbers, strings, booleans, None, lists and dictionaries of them.

    Returns:
        The path written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> path = write_json_atomically(folder / "a.json", {"loss": float("nan"), "steps": 3})
        >>> json.loads(path.read_text())
        {'loss': None, 'steps': 3}
    """
    text = json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"
    return write_bytes_atomically(path, text.encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
