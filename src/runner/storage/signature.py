"""Whether this user wrote a record: a signature (HMAC-SHA256) by a key that lies in the user's config directory.

Contract: the key is made on first use, readable by its owner only. Where it can be neither read nor made, nothing is
signed, and nothing is taken for the user's own.
"""

import contextlib
import functools
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FIELD = "signature"
FOREIGN = "foreign"  # true in the record of a run that was continued from one that this user did not write
KEY_BYTES = 32


def key_file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(base, "torch-runner", "key")


def key() -> bytes | None:
    """This user's key; None where there is none and none can be made."""
    return _key(key_file())


@functools.lru_cache(maxsize=4)
def _key(path: Path) -> bytes | None:
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except OSError:
        return None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mine = path.with_name(f"key.{os.urandom(4).hex()}")
        handle = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(os.urandom(KEY_BYTES))
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # of several first starts one's key is everybody's
            os.link(mine, path)
        mine.unlink()
        return _read(path)
    except OSError:
        return None


def _read(path: Path) -> bytes | None:
    """The key in a file that is this user's alone; None where others can write or read it, or it is none."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        is_mine = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
        read = file.read(KEY_BYTES + 1) if is_mine else b""
    return read if len(read) == KEY_BYTES else None


def signed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of plain values with its signature; without one if there is no key, or if the run is a foreign one."""
    plain = {name: value for name, value in record.items() if name != FIELD}
    made = None if plain.get(FOREIGN) else signature_of(plain)
    return plain if made is None else {**plain, FIELD: made}


def is_mine(record: Any) -> bool:
    """Whether a record, as it was read from its file, was signed with this user's key."""
    if not isinstance(record, Mapping) or not isinstance(record.get(FIELD), str) or record.get(FOREIGN):
        return False
    import hmac  # here: a listing asks for no signature, and needs no 4 ms of its own for it

    made = signature_of({name: value for name, value in record.items() if name != FIELD})
    return made is not None and hmac.compare_digest(made, str(record[FIELD]))


def signature_of(plain: Mapping[str, Any]) -> str | None:
    import hashlib
    import hmac

    secret = key()
    if secret is None:
        return None
    text = json.dumps(json.loads(json.dumps(plain, default=str)), sort_keys=True, separators=(",", ":"))
    return hmac.new(secret, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
