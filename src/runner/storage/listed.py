"""A run's record for a listing, taken apart by its bytes: reading it whole takes a listing most of its time.

Contract: what in_parts() gives is what JSON reads, or nothing. A record stands one key a line, as shapes.write()
indents it: a text holds no line's end, and what is nested stands further in.
"""

import json
from typing import Any


def in_parts(content: bytes) -> dict[str, Any] | None:
    """What a listing needs of a record, decoded part by part: parts that are equal in many runs are decoded once, and
    are one object, not to be changed. None: the bytes are not as write() wrote a run's.
    """
    source = content.rfind(b'\n  "config_source": {\n    "')  # a text holds no line's end; what is nested is further in
    text = content.rfind(b'\n  "config_yaml": ', 0, source)
    config = content.rfind(b'\n  "config": {\n    "', 0, text)
    after, end = content.find(b"\n  }", source), len(content) - 36
    is_ours = content.startswith(b'{\n  "') and content.endswith(b"\n}\n", 0, -33) and config > 0
    is_ours = is_ours and content.find(b"\n  },\n", config) + 5 == text and content.find(b"\n", text + 1) == source
    if not is_ours or (after + 4 != end and content[after + 4 : after + 9] != b',\n  "'):
        return None
    try:
        record = dict(map(decoded, content[5 : config - 1].split(b',\n  "')))
        record["config"] = groups_of(content[config + 20 : text - 5])
        if after + 4 != end:
            record |= map(decoded, content[after + 9 : end].split(b',\n  "'))
    except (ValueError, RecursionError):
        return None
    if content[text + 18 : source - 1] == b"null":
        record["config_yaml"] = None
    record["config_source"] = Undecoded(content[source + 27 : after])
    return record


def groups_of(content: bytes) -> dict[str, Any]:
    return dict(map(decoded, content.split(b',\n    "')))


class Undecoded:
    """A config in a record, decoded when asked for: a table asks a few runs, for a few groups."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def get(self, group: str) -> Any:
        """The group's source; None: there is none, or what stands there cannot be read."""
        try:
            return groups_of(self.content).get(group)
        except (ValueError, RecursionError):
            return None


class Decoded(dict[bytes, tuple[str, Any]]):
    """Key and value of a part, from its bytes without the key's first quotation mark; decoded when first asked for."""

    def __missing__(self, part: bytes) -> tuple[str, Any]:
        ((key, value),) = json.loads((b'{"' + part + b"}").decode()).items()
        if len(self) >= 10_000:
            self.clear()
        self[part] = key, value
        return key, value


decoded = Decoded().__getitem__
