"""Secrets of the environment, kept out of everything that is written or shown.

A secret is the value of an environment variable whose name says so (OPENAI_API_KEY, HF_TOKEN,
DB_PASSWORD, ...), or a password in an address (http://user:password@host). It is found as it is
and in the forms in which programs pass text on: escaped for JSON, Python, HTML or a URL, in base64
(alone or within `Bearer x` or `user:x`) and in hexadecimal; what is cut off, from its first
`HEAD` characters.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import IO, Any
from urllib.parse import quote, quote_plus, unquote

MASK = "[redacted]"
SHORTEST = 6  # a shorter value is found in ordinary text too; it is masked behind `Bearer` alone
HEAD = 12
LONG = 16  # anything as long cannot be part of a word
_NAME_ENDS: tuple[str, ...] = (
    "KEY",
    "KEYS",
    "TOKEN",
    "TOKENS",
    "SECRET",
    "SECRETS",
    "PASSWORD",
    "PASSWORDS",
)
_NAME_ENDS += ("PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS", "AUTHORIZATION")
_NAMES = {"PASS", "PWD", "PAT", "AUTH", "COOKIE", "JWT", "PSK"}
_SETTINGS = {"default", "disable", "disabled", "enable", "enabled", "optional", "required"}
_IN_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/@\s]*)@")
_SCHEME = re.compile(r"^(?:bearer|basic|token)\s+", re.IGNORECASE)
_BEFORE = re.compile(r"(?:^|[^A-Za-z0-9]|\\[nrt]|%[0-9A-Fa-f]{2})$")
_AFTER = re.compile(r"[^A-Za-z0-9]|$")


def secrets(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the secret values of an environment, by default this process's; short ones too."""
    values = set()
    for name, value in (os.environ if environment is None else environment).items():
        for credentials in _IN_ADDRESS.findall(value):
            user, colon, password = credentials.partition(":")
            if colon or len(user) >= LONG:  # a token alone; git@ and the like are none
                values |= {password or user, unquote(password or user)}
        plain = _SCHEME.sub("", value.strip())
        if _says_secret(name) and not _is_setting(name, plain):
            values.add(plain)
    return tuple(sorted(values - {""}))


def _says_secret(name: str) -> bool:
    words = [word for word in re.split(r"[^A-Z0-9]+", name.upper()) if word]
    return any(word.endswith(_NAME_ENDS) for word in words) or (
        len(words) > 1 and not _NAMES.isdisjoint(words)
    )


def _is_setting(name: str, value: str) -> bool:
    """Whether a value is none although its name says so: MAX_TOKENS, or the path of a key file."""
    number = value.isdigit() and len(value) < LONG and "PASS" not in name.upper()
    path = os.path.isabs(value) and os.path.exists(value)
    return number or path or value.lower() in _SETTINGS


def redact(value: Any, environment: Mapping[str, str] | None = None) -> Any:
    """Replace every secret in `value` by `MASK`: text, or mappings and lists of it."""
    hidden = secrets(environment)
    return _redact(value, hidden) if hidden else value


def redact_json(text: str) -> str:
    """Return a JSON document, such as a notebook, with every secret in its texts replaced."""
    hidden = secrets()
    if not hidden:
        return text
    return json.dumps(_redact(json.loads(text), hidden), ensure_ascii=False, indent=1) + "\n"


def redact_stream(stream: IO[str]) -> None:
    """Have everything that is printed to `stream` from now on redacted."""
    write = stream.write
    stream.write = lambda text: write(redact(text))  # type: ignore[method-assign]


def _redact(value: Any, hidden: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        return _mask(value, hidden)
    if isinstance(value, dict):
        return {_redact(key, hidden): _redact(item, hidden) for key, item in value.items()}
    if isinstance(value, list):
        return [_redact(item, hidden) for item in value]
    return value


def _mask(text: str, hidden: tuple[str, ...]) -> str:
    spans = sorted(
        span
        for secret in hidden
        for form, in_words in _forms(secret)
        for span in _find(text, form, in_words)
    )
    parts, end = [], 0
    for start, stop in spans:  # overlapping ones are one
        if start >= end:
            parts += [text[end:start], MASK]
        end = max(end, stop)
    return "".join([*parts, text[end:]])


def _find(text: str, form: str, in_words: bool) -> list[tuple[int, int]]:
    """Where `form` stands in `text`, whole or cut off; in the midst of a word if `in_words`."""
    spans = []
    start = text.find(form[:HEAD])
    while start >= 0:
        length = min(HEAD, len(form))
        while text[start + length : start + length + 1] == form[length : length + 1] != "":
            length += 1
        bounded = _BEFORE.search(text[max(0, start - 3) : start]) and _AFTER.match(
            text, start + length
        )
        if in_words or bounded:
            spans.append((start, start + length))
        start = text.find(form[:HEAD], start + 1)
    return spans


@lru_cache(maxsize=256)
def _forms(secret: str) -> tuple[tuple[str, bool], ...]:
    """What to look for, and whether it may stand in the midst of a word."""
    if len(secret) < SHORTEST:
        return tuple((f"{scheme} {secret}", False) for scheme in ("Bearer", "bearer"))
    lines = [line.strip() for line in secret.splitlines()] if "\n" in secret else []
    plain = {secret, " ".join(secret.split()), *(line for line in lines if len(line) >= LONG)}
    escaped = {once for text in plain for once in _escaped(text)}
    escaped |= {twice for text in escaped for twice in _escaped(text)}  # JSON within JSON
    for text in plain:
        for url in (quote(_bytes(text), safe=""), quote(_bytes(text)), quote_plus(_bytes(text))):
            escaped |= {url, re.sub("%..", lambda code: code[0].lower(), url)}
    escaped |= {html.escape(text) for text in plain}
    forms = {(text, len(text) >= LONG) for text in plain | escaped}
    forms |= {(text, True) for text in _base64(_bytes(secret)) if len(text) >= 8}
    for code in (_bytes(secret).hex(), _bytes(secret).hex().upper()):
        forms.add((code, True))
    return tuple(sorted(forms))


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")  # as the environment holds it


def _escaped(text: str) -> set[str]:
    return {
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        repr(text)[1:-1],
    }


def _base64(secret: bytes) -> set[str]:
    """What of `secret` is the same in base64 whatever stands before and after it."""
    found = set()
    for before in range(3):  # a group of three bytes is four characters
        first, last = -(-before * 8 // 6), (before + len(secret)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(b"\0" * before + secret).decode()[first:last])
    return found
