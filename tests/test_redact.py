"""What counts as a secret, what tools see of the environment, and what replaces a secret in output."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athena.redact import MIN_SECRET_CHARS, Redactor, looks_secret, session_secrets, tool_env

CANARY = "sk-canary-0123456789"


@pytest.mark.parametrize(
    "name",
    ["OPENAI_API_KEY", "APIKEY", "api_key", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "GITHUB_TOKEN", "GH_PAT",
     "PGPASSWORD", "DB_PASSWORD", "MYSQL_PWD", "DB_PASS", "SSHPASS", "SENTRY_DSN", "DATABASE_URL", "SESSION_COOKIE",
     "AZURE_STORAGE_CONNECTION_STRING", "GOOGLE_APPLICATION_CREDENTIALS", "npm_config_authToken", "JWT",
     "CLIENT_SECRETS", "ANTHROPIC_AUTH_TOKEN", "SIGNING_KEY", "GPG_PASSPHRASE", "TOKEN", "PROXY_AUTHORIZATION"],
)  # fmt: skip
def test_a_name_that_speaks_of_a_secret_is_one(name: str) -> None:
    assert looks_secret(name, "x")


@pytest.mark.parametrize(
    "name",
    ["PATH", "HOME", "PWD", "OLDPWD", "LANG", "TERM", "MONKEY", "KEYBOARD_LAYOUT", "AUTHOR", "TOKENIZERS_PARALLELISM",
     "SSH_AUTH_SOCK", "PATTERN", "COMPASS", "HOSTNAME", "XDG_RUNTIME_DIR", "DSNAME", "EDITOR"],
)  # fmt: skip
def test_an_ordinary_name_is_none(name: str) -> None:
    assert not looks_secret(name, "x")


@pytest.mark.parametrize(
    ("value", "is_secret"),
    [("redis://:hunter2hunter2@host/0", True), ("postgresql+psycopg://u:p@h/db", True), ("https://u@h/", False),
     ("https://h:80/a@b", False), ("a:b@c", False)],
)  # fmt: skip
def test_a_password_inside_a_url_makes_it_one(value: str, is_secret: bool) -> None:
    assert looks_secret("SOME_URL", value) == is_secret


def test_tools_see_the_environment_without_secrets_but_for_those_named() -> None:
    env = {"PATH": "/bin", "OPENAI_API_KEY": CANARY, "GITHUB_TOKEN": "ghp_1234567890", "CACHE": "redis://:pw@h"}
    assert tool_env(env) == {"PATH": "/bin"}
    assert tool_env(env, ["GITHUB_TOKEN", "NOT_THERE"]) == {"PATH": "/bin", "GITHUB_TOKEN": "ghp_1234567890"}


def test_tools_do_not_see_a_key_under_a_harmless_name() -> None:
    env = {"MODEL_SETTINGS": f"model=x,key={CANARY}", "PATH": "/usr/lib/postgres/bin"}
    assert tool_env(env, secrets=[CANARY, "postgres"]) == {"PATH": "/usr/lib/postgres/bin"}
    assert "MODEL_SETTINGS" in tool_env(env, ["MODEL_SETTINGS"], secrets=[CANARY])


def test_every_secret_of_a_session_is_known_by_a_name() -> None:
    env = {"A_TOKEN": "token-12345", "CACHE": "redis://u:password1@h/0", "PATH": "/bin"}
    headers = {"Authorization": "Bearer bearer-1234", "X-Api-Key": "header-12345", "X-Trace": "on"}
    found = session_secrets(env, CANARY, headers)
    redactor = Redactor(found)
    for secret in ("token-12345", "password1", "bearer-1234", "header-12345", CANARY):
        assert secret not in redactor.text(f"<{secret}>")
        assert "[redacted:" in redactor.text(f"<{secret}>")
    assert redactor.text("/bin on") == "/bin on"


def test_a_secret_is_replaced_by_its_name_and_the_longer_one_first() -> None:
    redactor = Redactor({"SHORT_KEY": "abcdefgh", "LONG_KEY": "abcdefgh-ijkl"})
    assert redactor.text("abcdefgh-ijkl abcdefgh") == "[redacted:LONG_KEY] [redacted:SHORT_KEY]"


def test_values_that_are_too_short_to_tell_from_text_stay() -> None:
    short = "x" * (MIN_SECRET_CHARS - 1)
    assert Redactor({"A_KEY": short, "B_KEY": ""}).text(f"a {short}") == f"a {short}"
    assert Redactor({}).json({"a": [1]}) == {"a": [1]}


def test_secrets_are_found_at_any_depth_in_keys_too() -> None:
    value = {"a": [{"b": f"x{CANARY}y"}, (CANARY,), 5, None, True], CANARY: 1}
    cleaned = Redactor({"api_key": CANARY}).json(value)
    assert cleaned == {"a": [{"b": "x[redacted:api_key]y"}, ["[redacted:api_key]"], 5, None, True],
                       "[redacted:api_key]": 1}  # fmt: skip


secrets = st.text(alphabet="abc.*+([\\", min_size=MIN_SECRET_CHARS, max_size=12)


@given(st.lists(secrets, max_size=4), st.lists(st.text(max_size=6), min_size=1, max_size=5))
def test_no_secret_survives_whatever_is_around_it(found: list[str], around: list[str]) -> None:
    redactor = Redactor({f"N{n}": value for n, value in enumerate(found)})
    text = "".join(part + secret for part, secret in zip(around, found, strict=False))
    cleaned = redactor.text(text)
    assert not any(secret in cleaned for secret in found)
