"""Secrets: sealed at rest, shown to nobody, and a lost key is an error that says so."""

from __future__ import annotations

import base64
import copy
import json
import pickle
import stat
import traceback
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Context, Event, Machine, Secret, State, requires
from engine.errors import SecretsError
from engine.secret import secret_of
from engine.secrets import SecretsCodec, is_secret_type, load_codec

KEY, OTHER = b"k" * 32, b"o" * 32
HIDDEN = "hunter2-hunter2"


@given(st.text())
def test_what_is_sealed_can_be_opened(text):
    codec = SecretsCodec(KEY)
    sealed = codec.seal(text)
    assert codec.open(sealed) == text
    assert len(text) < 8 or text not in sealed.rpartition(":")[2]


def test_sealed_text_names_its_key_and_not_its_content():
    codec = SecretsCodec(KEY)
    sealed = codec.seal(HIDDEN)
    assert sealed.startswith(f"turtles:1:{codec.key_id}:")
    assert HIDDEN not in sealed
    assert HIDDEN.encode() not in base64.b64decode(sealed.rpartition(":")[2])


def test_equal_secrets_have_equal_ciphertexts_and_others_have_not():
    codec = SecretsCodec(KEY)
    assert codec.seal(HIDDEN) == codec.seal(HIDDEN)
    assert codec.seal(HIDDEN) != codec.seal(HIDDEN + "!")
    assert codec.seal(HIDDEN) != SecretsCodec(OTHER).seal(HIDDEN)


def test_the_wrong_key_is_named_and_an_older_one_still_opens():
    sealed = SecretsCodec(KEY).seal(HIDDEN)
    with pytest.raises(SecretsError) as caught:
        SecretsCodec(OTHER).open(sealed)
    assert SecretsCodec(KEY).key_id in str(caught.value)
    assert SecretsCodec(OTHER).key_id in str(caught.value)
    rotated = SecretsCodec(OTHER, older=(KEY,))
    assert rotated.open(sealed) == HIDDEN
    assert rotated.seal(HIDDEN).startswith(f"turtles:1:{SecretsCodec(OTHER).key_id}:")


def test_whatever_is_altered_does_not_open():
    codec = SecretsCodec(KEY)
    sealed = codec.seal(HIDDEN)
    head, _, body = sealed.rpartition(":")
    raw = base64.b64decode(body)
    for place in range(len(raw)):
        changed = bytes(b ^ (i == place) for i, b in enumerate(raw))
        with pytest.raises(SecretsError, match="damaged or altered"):
            codec.open(f"{head}:{base64.b64encode(changed).decode()}")
    with pytest.raises(SecretsError, match="damaged or altered"):
        codec.open(f"{head}:{body[:-8]}")
    with pytest.raises(SecretsError, match="damaged or altered"):
        codec.open(f"{head}:not base64!")
    with pytest.raises(SecretsError, match="not in the form turtles writes"):
        codec.open(HIDDEN)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_has_32_bytes(length):
    with pytest.raises(SecretsError, match=f"expected 32 bytes, got {length}"):
        SecretsCodec(b"x" * length)


# -- where the key comes from -------------------------------------------------------------------


def test_the_key_file_is_made_once_and_for_its_owner_only(tmp_path):
    file = tmp_path / "runs.db.key"
    first, second = load_codec(file, {}), load_codec(file, {})
    assert first.key_id == second.key_id
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert second.open(first.seal(HIDDEN)) == HIDDEN


def test_a_key_file_that_others_can_read_is_refused(tmp_path):
    file = tmp_path / "runs.db.key"
    load_codec(file, {})
    for mode in (0o640, 0o604, 0o666):
        file.chmod(mode)
        with pytest.raises(SecretsError, match=rf"mode {mode:o} lets others.*chmod 600"):
            load_codec(file, {})


@pytest.mark.parametrize("content", [b"", b"short", b"not base64 at all!", b"QUJD"])
def test_a_damaged_key_file_is_an_error_and_is_kept(tmp_path, content):
    file = tmp_path / "runs.db.key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(SecretsError):
        load_codec(file, {})
    assert file.read_bytes() == content


def test_a_key_file_that_cannot_be_made_is_an_error(tmp_path):
    with pytest.raises(SecretsError, match="cannot be made"):
        load_codec(tmp_path / "nowhere" / "key", {})


def test_the_environment_comes_first(tmp_path):
    given_key = {"TURTLES_MASTER_KEY": base64.b64encode(KEY).decode()}
    assert load_codec(tmp_path / "key", given_key).key_id == SecretsCodec(KEY).key_id
    assert not (tmp_path / "key").exists()
    for wrong in ("???", base64.b64encode(b"short").decode()):
        with pytest.raises(SecretsError, match="32 bytes"):
            load_codec(None, {"TURTLES_MASTER_KEY": wrong})


def test_without_either_the_key_lives_as_long_as_the_process():
    assert load_codec(None, {}).key_id != load_codec(None, {}).key_id


# -- shown to nobody ----------------------------------------------------------------------------


def test_a_secret_shows_itself_to_nobody():
    secret = Secret(HIDDEN)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r:>30}", "%s" % secret,  # noqa: UP031
             repr([secret]), repr({"a": secret}), str(Exception(secret))]  # fmt: skip
    assert not any(HIDDEN in text for text in shown)
    assert secret.reveal() == HIDDEN
    for dump in (pickle.dumps, json.dumps, msgspec.json.encode, msgspec.msgpack.encode):
        with pytest.raises(TypeError):
            dump(secret)
    with pytest.raises(AttributeError):
        secret.__dict__  # noqa: B018 - the access is the test


def test_secrets_compare_by_value_and_copy_as_themselves():
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert copy.deepcopy([Secret("a")])[0] == Secret("a")


def test_secret_types_are_recognised():
    assert is_secret_type(Secret)
    assert is_secret_type(Secret[str])
    assert is_secret_type(Secret[str] | None)
    assert not is_secret_type(str)
    assert not is_secret_type(list[str])


@pytest.mark.parametrize("kind", [Secret, Secret[str], Secret[str] | None])
def test_a_plain_value_becomes_a_secret_and_a_secret_stays(kind):
    assert secret_of(kind, "hunter2") == Secret("hunter2")
    assert secret_of(kind, Secret("hunter2")) == Secret("hunter2")


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (Secret[str], ["hunter2"], "Expected str, got list"),
        (Secret[int] | None, "hunter2", "Expected int, got str"),
        (Secret[Literal["a", "b"]], "hunter2", "Expected a value of its type, got str"),
    ],
)
def test_a_value_of_another_type_is_refused_without_being_shown(kind, value, expected):
    with pytest.raises(TypeError) as caught:
        secret_of(kind, value)
    assert str(caught.value) == expected
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


class Vault(Context):
    code: Secret[str]
    spare: Secret[str] | None = None
    opened: int = 0


class Try(Event, tag="try_it"):
    code: Secret[str]


class Safe(Machine[Vault]):
    shut = State(initial=True, waits=True)
    ajar = State(final=True)
    try_it = shut.to(ajar, cond="fits") | shut.to.itself(on="count")

    def fits(self, context: Vault, event: Try) -> bool:
        return context.code == event.code

    def count(self, context: Vault) -> Vault:
        return self.but(context, opened=context.opened + 1)

    @requires(try_it)
    def not_too_often(self, context: Vault, event: Try) -> bool:
        return context.opened < 2 or event.code.reveal() == ""


async def test_no_secret_reaches_the_database_a_verdict_or_a_reason(bench):
    everything = []
    async with bench.harness(Safe) as harness:
        start = Vault(code=Secret(HIDDEN), spare=Secret("another-secret"))
        run_id = (await harness.app.start(Safe, start)).run_id
        guesses = ("wrong-guess-1", "wrong-guess-2", "wrong-guess-3", HIDDEN)
        for number, guess in enumerate(guesses):
            receipt = await harness.app.send(run_id, Try(code=Secret(guess)), key=f"try {number}")
            await harness.app.settle()
            everything.append(repr(bench.store.inbox.receipt(run_id, receipt.key)))
        run = await harness.app.get(run_id)
        assert run.context.code.reveal() == HIDDEN
        assert run.context.spare.reveal() == "another-secret"
        journal = await harness.app.journal(run_id)
        assert journal[1].payload.code.reveal() == "wrong-guess-1"
        permission = await harness.app.can(run_id, Try(start.code))
        assert "event.code='***'" in permission.reason
        everything += [repr(run), repr(journal), repr(permission)]
        everything += [repr(bench.store.runs.get(run_id)), repr(bench.store.journal.read(run_id))]
        await bench.sound(harness)
    for text in everything:
        assert HIDDEN not in text
        assert "wrong-guess" not in text
        assert "another-secret" not in text


async def test_an_event_with_a_secret_sent_twice_is_the_same(bench):
    async with bench.harness(Safe) as harness:
        run_id = (await harness.app.start(Safe, Vault(code=Secret(HIDDEN)))).run_id
        await harness.app.send(run_id, Try(code=Secret("x")), key="k")
        again = await harness.app.send(run_id, Try(code=Secret("x")), key="k")
        assert (again.duplicate, again.same) == (True, True)


async def test_a_lost_key_is_a_clear_error_and_nothing_is_lost(bench):
    async with bench.harness(Safe) as harness:
        run_id = (await harness.app.start(Safe, Vault(code=Secret(HIDDEN)))).run_id
        await harness.app.settle()
    right, bench.secrets = bench.secrets, SecretsCodec(OTHER)
    async with bench.harness(Safe) as harness:
        with pytest.raises(SecretsError, match=r"sealed with master key .* but the key here is"):
            await harness.app.get(run_id)
        await harness.app.send(run_id, Try(code=Secret("x")))
        await harness.app.settle()
        stored = bench.store.runs.get(run_id)
        assert stored.run.status == "quarantined"
        assert "TURTLES_MASTER_KEY" in stored.run.last_error
    bench.secrets = SecretsCodec(KEY, older=(OTHER,))
    assert right.key_id == bench.secrets.key_id
    async with bench.harness(Safe) as harness:
        await harness.app.resume(run_id)
        await harness.app.settle()
        run = await harness.app.get(run_id)
        assert (run.status, run.context.opened) == ("waiting", 1)
