"""Wherever a secret stands and however it is written, it is blanked, and nothing else is."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shlex
import urllib.parse
from collections.abc import Callable

import docker.errors
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llem_airflow.protocol import redaction
from llem_airflow.protocol.redaction import Redactor, is_secret_name, secrets_in

PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=8)
WRITTEN: dict[str, Callable[[str], str]] = {
    "plain": str,
    "URL": lambda text: urllib.parse.quote(text, safe=""),
    "URL, small letters": lambda text: re.sub(
        r"%..", lambda one: one[0].lower(), urllib.parse.quote(text, safe="")
    ),
    "URL path": urllib.parse.quote,
    "form": urllib.parse.quote_plus,
    "JSON": json.dumps,
    "JSON, not ASCII": lambda text: json.dumps(text, ensure_ascii=False),
    "repr": repr,
    "bytes": lambda text: repr(text.encode()),
    "repr in JSON": lambda text: json.dumps(repr(text)),
    "shell": shlex.quote,
    "HTML": html.escape,
}


@given(
    secret=PRINTABLE,
    around=st.sampled_from(["", "\n", " ", "\r\n", "\t "]),
    before=st.text(max_size=5),
    after=st.text(max_size=5),
    way=st.sampled_from(sorted(WRITTEN)),
)
def test_a_secret_is_found_however_it_is_written(
    secret: str, around: str, before: str, after: str, way: str
) -> None:
    secret = secret.strip()
    assume(len(secret) >= redaction.SHORTEST_SECRET)
    redactor = Redactor([secret + around])
    written = WRITTEN[way](secret).strip("\"'")
    assume("[redacted]" not in written)
    text = f"{before}{WRITTEN[way](secret)}{after}"
    assert written not in redactor.text(text).replace("[redacted]", "\0")
    assert written.encode() not in redactor.data(text.encode("utf-8", "replace")).replace(
        b"[redacted]", b"\0"
    )


@given(
    secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=12),
    offset=st.binary(max_size=7),
)
def test_a_secret_in_the_middle_of_base64_is_found(secret: str, offset: bytes) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        clean = Redactor([secret + "\n"]).text(encode(offset + secret.encode() + b"\n").decode())
        kept = clean.split("[redacted]")
        assert len(kept) == 2
        # At most three characters at each edge: what a neighbour shares with it.
        assert len(kept[0]) <= len(offset) * 8 // 6 + 2
        assert len(kept[1].rstrip("=")) <= 3


@given(st.binary(max_size=60), st.integers(1, 40), st.integers(0, 3))
def test_in_a_stream_it_is_found_over_the_edge_of_chunks(around: bytes, chunk_bytes: int, times: int) -> None:
    secret = "a-secret-token"
    redactor = Redactor([secret])
    data = around + (secret.encode() + around) * times
    target = io.BytesIO()
    redactor.copy(_Slow(data, chunk_bytes), target)  # type: ignore[arg-type]  # only `read` is called
    assert target.getvalue() == redactor.data(data)
    assert secret.encode() not in target.getvalue()


class _Slow:
    """A stream that gives little at a time."""

    def __init__(self, data: bytes, chunk_bytes: int) -> None:
        self._stream, self._chunk_bytes = io.BytesIO(data), chunk_bytes

    def read(self, _size: int) -> bytes:
        return self._stream.read(self._chunk_bytes)


def test_each_line_of_a_key_is_a_secret() -> None:
    redactor = Redactor(["-----BEGIN KEY-----\nMIIEvQIBADANBg\n-----END KEY-----\n"])
    assert redactor.text("read MIIEvQIBADANBg") == "read [redacted]"


@pytest.mark.parametrize("value", ["", " \n", "1", "true", "12345"])
def test_what_is_too_short_to_be_a_secret_blanks_nothing(value: str) -> None:
    assert Redactor([value]).text("batch 1, true, 12345 tokens") == "batch 1, true, 12345 tokens"


def test_a_hub_token_is_blanked_whoever_it_belongs_to() -> None:
    assert Redactor([]).text("token=hf_abcdefghijklmnopqrstuvwxyz") == "token=[redacted]"


def test_causes_of_an_exception_are_blanked_too() -> None:
    error = RuntimeError("outer a-secret-token")
    error.__cause__ = OSError(5, "inner a-secret-token")
    Redactor(["a-secret-token"]).blank(error)
    assert (str(error), str(error.__cause__)) == ("outer [redacted]", "[Errno 5] inner [redacted]")


def test_secrets_of_an_environment_are_known_by_name_and_in_urls() -> None:
    found = secrets_in(
        {
            "HF_TOKEN": "one-token",
            "SECRET_MODE": "default",
            "TOKENIZERS_PARALLELISM": "false",
            "https_proxy": "http://ada:two%21@proxy:3128",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:///x",
            "LLEM_RESULTS_ROOT": "s3://bucket/a@b",
        }
    )
    assert found == ["one-token", "sqlite:///x", "two%21", "two!"]


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "PATH", "KEYBOARD", "TOKEN_COUNT"])
def test_innocent_names_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


def test_a_secret_of_six_characters_is_blanked_and_a_shorter_one_is_not() -> None:
    assert Redactor(["abc12"]).text("x abc12 y") == "x abc12 y"
    assert Redactor(["abc123"]).text("x abc123 y") == "x [redacted] y"
    assert Redactor([" abc12 "]).text("x abc12 y") == "x abc12 y"


def test_of_two_secrets_the_one_that_holds_the_other_goes_whole() -> None:
    assert Redactor(["secret", "secret-longer"]).text("secret-longer secret") == "[redacted] [redacted]"


def test_the_mark_of_the_attempt_keeps_that_it_was_a_hub_token() -> None:
    token = "hf_" + "a" * 20
    assert Redactor([], "***").text(f"{token} {token[:-1]}") == f"hf_*** {token[:-1]}"
    assert Redactor([token], "***").text(token) == "hf_***"
    assert Redactor(["hush-hush"], "***").text("hush-hush") == "***"
    assert Redactor([]).data(token.encode()) == b"[redacted]"


@pytest.mark.parametrize("value", ["default", "abcdefghijk", "1234567"])
def test_a_mere_word_or_number_is_no_secret_whatever_its_name(value: str) -> None:
    assert secrets_in({"MY_SECRET": value}) == []


@pytest.mark.parametrize("value", ["abcdefghijkl", "12345678", "hush-hush", "abc123"])
def test_what_is_longer_than_a_word_is_one(value: str) -> None:
    assert secrets_in({"MY_SECRET": value}) == [value]


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "my_secret", "DB_PASSWORD", "PASSWD", "CREDENTIALS", "API_KEY", "OPENAI_APIKEY"),
        *(
            "AWS_SECRET_ACCESS_KEY",
            "ACCESS_KEY_ID",
            "SSH_PRIVATE_KEY",
            "FERNET_KEY",
            "GH_PAT",
            "RESULT_BACKEND",
        ),
        *("BROKER_URL", "AIRFLOW_CONN_X", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"),
    ],
)
def test_a_name_that_says_secret(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["GH_PATH", "BROKER_URL_X", "RESULT_BACKENDS", "X_AIRFLOW_CONN_Y", "MONKEY"])
def test_a_name_that_only_looks_so(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("postgresql://ada:pa%40ss-word@db/x", ["pa%40ss-word", "pa@ss-word"]),
        ("http://proxy:3128", []),
        ("ada:secret@host", []),
        ("http://[::1:bad@x", []),
        ("https://ada@host", []),
    ],
)
def test_the_password_of_a_url_is_a_secret(url: str, found: list[str]) -> None:
    assert secrets_in({"SOME_URL": url}) == found


def test_texts_beside_an_exception_s_arguments_are_blanked_and_a_ring_of_causes_ends() -> None:
    error = OSError(2, "no hush-hush", "/home/hush-hush")
    other = ValueError("hush-hush", 7)
    error.__context__, other.__context__ = other, error
    Redactor(["hush-hush"]).blank(error)
    assert (error.strerror, error.filename) == ("no [redacted]", "/home/[redacted]")
    assert other.args == ("[redacted]", 7)
    Redactor(["hush-hush"]).blank(None)


def test_how_far_a_secret_reaches_is_the_longest_of_its_forms() -> None:
    assert Redactor([]).reach_bytes == 64
    redactor = Redactor(["hush-hush"])
    assert redactor.reach_bytes == max(len(sign) for sign in redactor._signs)
    assert redactor.reach_bytes >= 9


def test_data_is_returned_as_it_is_where_nothing_is_to_hide() -> None:
    data = b"\xff\x00 power 300"
    assert Redactor(["hush-hush"]).data(data) is data


@pytest.mark.parametrize("way", sorted(WRITTEN))
def test_nothing_of_a_secret_with_signs_of_every_kind_is_left(way: str) -> None:
    secret = "pa\"s's\\wo/r\u00e9d\u2028 <&>+%"
    left = Redactor([secret]).text(WRITTEN[way](secret)).replace("[redacted]", "")
    assert set(left) <= set("\"'b\\")


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("length", [12, 13, 14, 40])
def test_of_base64_only_what_neighbours_share_is_left(before: int, length: int) -> None:
    secret = "".join(chr(97 + place % 26) for place in range(length))
    encoded = base64.b64encode(b"-" * before + secret.encode() + b"--").decode()
    head, _, tail = Redactor([secret]).text(encoded).partition("[redacted]")
    assert len(head) == -(-before * 8 // 6)
    assert len(tail.rstrip("=")) <= 4


def test_a_real_stream_is_copied() -> None:
    target = io.BytesIO()
    Redactor(["hush-hush"]).copy(io.BytesIO(b"a hush-hush " * 200_000), target)
    assert target.getvalue() == b"a [redacted] " * 200_000


def test_an_engine_s_explanation_is_blanked() -> None:
    error = docker.errors.APIError("no hush-hush", explanation="because of hush-hush")
    Redactor(["hush-hush"]).blank(error)
    assert error.explanation == "because of [redacted]"


def test_behind_what_is_no_url_passwords_are_found_still() -> None:
    assert (
        secrets_in({"A": "http://[broken@host", "B": "redis://user:s3cret-word@host"}) == ["s3cret-word"] * 2
    )


@pytest.mark.parametrize("way", ["JSON", "JSON, not ASCII", "repr", "bytes"])
def test_a_secret_with_a_quote_is_found_in_the_middle_of_a_text(way: str) -> None:
    written = WRITTEN[way]("x p\u00e4\"s's\\word y")
    assert Redactor(["p\u00e4\"s's\\word"]).text(written) in {
        f"{a}x [redacted] y{a[-1:]}" for a in ("'", '"', "b'", 'b"')
    }
