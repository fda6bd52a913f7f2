"""No secret of the environment is left in what is written, and ordinary text stays as it is."""

from __future__ import annotations

import base64
import html
import io
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_eval_lib.redaction import MASK, redact, redact_json, redact_stream, secrets

KEY = 'sk-9f"Z\\q7/+&=<é>w3Kp'
PEM = (
    "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ\nEFAASCBKcwggSjAgEAAoIBAQC7\n-----END KEY-----"
)


def of(value: str, name: str = "OPENAI_API_KEY") -> dict[str, str]:
    return {name: value}


@pytest.mark.parametrize(
    "name",
    [
        *("OPENAI_API_KEY", "HF_TOKEN", "hf_token", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        *("DB_PASSWORD", "MYSQL_PWD", "GITHUB_PAT", "AZURE_CREDENTIAL", "X_AUTH", "openaiApiKey"),
    ],
)
def test_a_variable_whose_name_says_so_holds_a_secret(name: str):
    assert secrets(of("v4lue-of-it", name)) == ("v4lue-of-it",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "false-or-true"),
        ("PWD", "/home/somebody"),
        ("MAX_TOKENS", "4096000"),
        ("SSH_AUTH_SOCK", "/tmp"),  # a path that is there
        ("GOOGLE_APPLICATION_CREDENTIALS", "/etc/passwd"),
        ("SOMETHING_AUTH", "disabled"),
        ("GIT_REMOTE", "ssh://git@example.org/it"),
        ("OPENAI_API_KEY", ""),
    ],
)
def test_other_variables_hold_none(name: str, value: str):
    assert secrets(of(value, name)) == ()


def test_a_password_in_an_address_is_a_secret():
    environment = {"HTTPS_PROXY": "http://me:pass%40word1@proxy:8080"}
    assert set(secrets(environment)) == {"pass%40word1", "pass@word1"}
    assert redact("cannot reach http://me:pass%40word1@proxy", environment) == (
        f"cannot reach http://me:{MASK}@proxy"
    )


FORMS = {
    "itself": lambda key: key,
    "Bearer": lambda key: f"Authorization: Bearer {key}",
    "JSON": lambda key: json.dumps({"header": f"Bearer {key}"}),
    "JSON in JSON": lambda key: json.dumps(json.dumps({"header": key})),
    "Python": lambda key: repr({"header": key}),
    "URL": lambda key: f"?key={quote(key, safe='')}&x",
    "URL, lower": lambda key: quote(key, safe="").lower() if key.islower() else quote(key),
    "form": quote_plus,
    "HTML": html.escape,
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "base64 of a header": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "base64 of a user": lambda key: base64.b64encode(f"ab:{key}\n".encode()).decode(),
    "base64 for URLs": lambda key: base64.urlsafe_b64encode(key.encode()).decode(),
    "hexadecimal": lambda key: key.encode().hex(),
    "on one line": lambda key: " ".join(key.split()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", [KEY, PEM, "pass word 12", "hf_abcdefghijklmnop"])
def test_every_form_of_a_secret_is_masked(form: str, key: str):
    written = FORMS[form](key)
    masked = redact(f"before {written} after", of(key))
    assert MASK in masked
    assert masked.startswith("before ")
    assert masked.endswith(" after")
    middle = max(key.splitlines(), key=len)[3:-3]
    for shown in (middle, json.dumps(middle)[1:-1], quote(middle, safe="")):
        assert shown not in masked
    core = base64.b64encode(key.encode()).decode()[4:-4]
    assert core not in masked


def test_each_line_of_a_secret_of_several_is_masked():
    for line in PEM.splitlines()[1:3]:
        assert redact(f"  1 {line}\n", of(PEM)) == f"  1 {MASK}\n"


def test_what_is_left_of_a_secret_that_was_cut_off_is_masked():
    key = "hf_" + "abcdefghijklmnopqrstuvwxyz"
    assert redact(f"Bearer {key[:20]}...", of(key)) == f"Bearer {MASK}..."


def test_secrets_that_overlap_leave_nothing():
    environment = {"A_KEY": "abcdefgh12345678", "B_KEY": "12345678ijklmnop", "C_KEY": "abcdefgh"}
    assert redact("x abcdefgh12345678ijklmnop y", environment) == f"x {MASK} y"
    both = {"A_KEY": "first-secret-of-two", "B_KEY": "first-secret-of-two-and-more"}
    assert redact("x first-secret-of-two-and-more y", both) == f"x {MASK} y"


@pytest.mark.parametrize("short", ["a", "none", "EMPTY", "x y"])
def test_a_short_value_is_masked_behind_bearer_alone(short: str):
    text = f"{short} tokens, a none too many, EMPTY banana x y: the bearer of news"
    assert redact(text, of(short)) == text
    assert redact(f"Bearer {short}, {short}", of(short)) == f"{MASK}, {short}"


def test_a_secret_that_could_be_a_word_is_no_part_of_others():
    assert redact("secrets, secretary: secret", of("secret")) == f"secrets, secretary: {MASK}"
    assert redact('{"a": "\\nsecret"}', of("secret")) == f'{{"a": "\\n{MASK}"}}'


@given(
    key=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=60),
    before=st.text(max_size=20),
    after=st.text(max_size=20),
)
def test_no_secret_is_left_after_it_was_masked(key: str, before: str, after: str):
    masked = redact(f"{before} {key} {after}", of(key, "MY_PASSWORD"))
    if not secrets(of(key, "MY_PASSWORD")):  # a path, or a setting
        return
    assert f" {key} " not in masked or key in MASK


@given(st.text())
def test_ordinary_text_stays(text: str):
    assert redact(text, of("hf_0123456789abcdefghij")) == text


def test_mappings_and_lists_are_masked_inside(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", KEY)
    told = {"a": [f"x {KEY}", 1, None, {KEY: True}]}
    assert redact(told) == {"a": [f"x {MASK}", 1, None, {MASK: True}]}
    assert json.loads(redact_json(json.dumps(told))) == redact(told)


def test_what_is_printed_is_masked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", KEY)
    screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    redact_stream(screen)
    print("token", KEY, file=screen, flush=True)
    assert screen.buffer.getvalue().decode() == f"token {MASK}\n"
