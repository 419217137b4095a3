"""The plugin in a pytest of its own: marker, fixtures, options; quiet where nobody uses it."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["pytester"]
ASYNC = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")
ROOT = Path(__file__).parents[3]
INSTALLED = any(one.name == "turtles" for one in entry_points(group="pytest11"))
LOADED = () if INSTALLED else ("-p", "engine.testing.plugin")
"""pytest loads it by its entry point where turtles is installed, as in CI."""

MACHINES = """
from engine import Call, Context, Event, Machine, NotDone, State, effect, invariant

class Jar(Context):
    coins: int = 0
    receipt: str = ""

class Put(Event, tag="put"):
    coins: int

class Paid(Event, tag="paid"):
    receipt: str

class Bank:
    def __init__(self, *, amnesia=False):
        self.paid, self.amnesia = [], amnesia

@effect()
async def pay(context: Jar, call: Call) -> Paid:
    call.resource(Bank).paid.append(call.key)
    return Paid(receipt=call.key)

@pay.reconcile
async def find_payment(context: Jar, call: Call) -> Paid | NotDone:
    bank = call.resource(Bank)
    return Paid(receipt=call.key) if call.key in bank.paid and not bank.amnesia else NotDone()

class Sound(Machine[Jar]):
    filling = State(initial=True, waits=True)
    paying = State(effect=pay)
    done = State(final=True)
    put = filling.to(paying, cond="is_small", on="add")
    paid = paying.to(done, on="keep")

    def is_small(self, event: Put) -> bool:
        return 0 < event.coins < 4

    def add(self, context: Jar, event: Put) -> Jar:
        return self.but(context, coins=context.coins + event.coins)

    def keep(self, context: Jar, event: Paid) -> Jar:
        return self.but(context, receipt=event.receipt)

class Broken(Sound):
    @invariant
    def at_most_two(self, context: Jar) -> bool:
        return context.coins <= 2
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a test file, and runs it by a pytest of its own with warnings as errors."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{pytester.path}")
    pytester.makepyfile(shop=MACHINES)

    def run(text: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(test_shop=f"import pytest\nfrom shop import *\n{text}")
        return pytester.runpytest_subprocess(
            *LOADED, "-p", "no:cacheprovider", "--strict-markers",
            "-W", "error", *ASYNC, *options,
        )  # fmt: skip

    return run


@pytest.mark.acceptance
def test_marker_passes_a_sound_machine_and_fails_a_broken_one(suite: Any) -> None:
    result = suite(
        """
        @pytest.mark.turtles_verify(Sound, budget=5)
        def test_sound(): pass

        @pytest.mark.turtles_verify(Broken, budget=5)
        def test_broken(): pass
    """.replace("\n        ", "\n")
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "verify Broken*seed 0*",
            "FAIL safety: quarantined*",
            "*invariant at_most_two does not hold*",
            "*1  a run of Broken is accepted with*",
            "*replay  turtles verify Broken --replay tv1:*",
            "exit 3",
        ]
    )
    assert "Traceback" not in result.stdout.str() and "verifying.py" not in result.stdout.str()


@pytest.mark.acceptance
def test_body_runs_after_the_verification_also_async_and_in_a_class(suite: Any) -> None:
    result = suite(
        """
        @pytest.mark.turtles_verify(Sound, budget=3)
        class TestSound:
            def test_own_assertion(self):
                assert 1 + 1 == 3

            async def test_coroutine(self):
                assert Sound.__name__ == "Sound"
    """.replace("\n        ", "\n")
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*assert (1 + 1) == 3*"])


@pytest.mark.acceptance
def test_one_line_is_enough(suite: Any) -> None:
    result = suite(
        """
        from engine.testing import VerificationFailed, verify

        def test_sound():
            assert verify(Sound, budget=5, exhaustive=True).exhausted

        def test_broken():
            with pytest.raises(VerificationFailed, match="at_most_two") as caught:
                verify(Broken, budget=5)
            assert caught.value.found.exit_code == 3

        def test_budget_that_is_over():
            with pytest.raises(VerificationFailed, match="exit 6|was over before anything"):
                verify(Sound, budget=0.02, exhaustive=True)
            with pytest.raises(VerificationFailed, match="0.02 s was over before anything"):
                verify(Sound, budget=0.02)

        def test_gap():
            from engine.verification.result import Scope
            alone = {"scope": Scope(messages=0), "phases": ["scope"], "budget": 5}
            with pytest.raises(VerificationFailed, match="MISSING   filling --put--> paying"):
                verify(Sound, **alone)
            verify(Sound, **alone, allow_gaps=True)
    """.replace("\n        ", "\n")
    )
    result.assert_outcomes(passed=4)


@pytest.mark.acceptance
def test_options_override_budget_and_seed(suite: Any) -> None:
    text = """
        @pytest.mark.turtles_verify(Broken, budget=600, seed=3)
        def test_broken(): pass
    """.replace("\n        ", "\n")
    result = suite(text, "--turtles-budget", "3", "--turtles-seed", "41")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["verify Broken*seed 41*"])
    assert result.duration < 60
    assert suite(text, "--turtles-budget", "0").ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize(
    ("arguments", "said"),
    [("", "expected a machine, got none"), ("Sound, budget=0", "more than 0 seconds"),
     ("Sound, bugdet=1", "unexpected keyword argument 'bugdet'"),
     ("Sound, phases=['magic']", "phase 'magic'")],
)  # fmt: skip
def test_mistakes_in_a_marker_are_named(suite: Any, arguments: str, said: str) -> None:
    result = suite(f"@pytest.mark.turtles_verify({arguments})\ndef test_it(): pass")
    result.assert_outcomes(failed=1)
    assert said in result.stdout.str()


def test_fixtures_survive_a_death_at_every_boundary(suite: Any) -> None:
    result = suite(
        """
        from engine.testing import Crash
        from engine.worker import LEASE_MS

        @pytest.mark.parametrize("at", range(1, 19))
        async def test_death(at, turtles_harness, turtles_faults, turtles_ledger, turtles_clock):
            bank = Bank()
            try:
                async with turtles_harness(
                    Sound, resources={Bank: bank}, plan=turtles_faults(at=at)
                ) as harness:
                    run = await harness.app.start(Sound, Jar(), key="one")
                    await harness.app.send(run.run_id, Put(coins=1), key="put")
                    await harness.until_idle()
            except Crash:
                turtles_clock.advance(LEASE_MS + 1)
            async with turtles_harness(Sound, resources={Bank: bank}) as harness:
                run = await harness.app.start(Sound, Jar(), key="one")
                await harness.app.send(run.run_id, Put(coins=1), key="put")
                await harness.until_idle()
                assert (await harness.app.get(run.run_id)).state == "done"
            assert len(bank.paid) == 1
            turtles_ledger.assert_at_most_once()
    """.replace("\n        ", "\n")
    )
    result.assert_outcomes(passed=18)


def test_ledger_tells_of_what_was_done_twice(suite: Any) -> None:
    """A bank that forgets is asked, says no, and pays again: the fixture fails by itself."""
    result = suite(
        """
        from engine import OutcomeUnknown
        from engine.performing import OutsideCalls

        async def test_forgetful(turtles_harness, turtles_ledger, turtles_store):
            assert turtles_store.inspector.findings() == []
            bank = Bank(amnesia=True)
            class Cut(OutsideCalls):
                async def perform(self, effect, context, call):
                    answer = await super().perform(effect, context, call)
                    if call.attempt == 1:
                        turtles_ledger._note("perform", effect, call, answer)
                        raise OutcomeUnknown("cut off")
                    return answer
            turtles_ledger._inner = Cut()
            async with turtles_harness(Sound, resources={Bank: bank}) as harness:
                run = await harness.app.start(Sound, Jar())
                await harness.app.send(run.run_id, Put(coins=1))
                await harness.until_idle()
            with pytest.raises(AssertionError, match="done 2 times under key"):
                turtles_ledger.assert_exactly_once("pay")
            with pytest.raises(AssertionError, match="never called; called were: pay"):
                turtles_ledger.entries.pop(); turtles_ledger.entries.pop()
                turtles_ledger.assert_exactly_once("ship")
            turtles_ledger.entries *= 2
    """.replace("\n        ", "\n")
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*effect pay was done * times under key*"])


@pytest.mark.acceptance
def test_marker_and_xdist(suite: Any) -> None:
    result = suite(
        """
        @pytest.mark.turtles_verify(Sound, budget=3)
        @pytest.mark.parametrize("number", range(2))
        def test_sound(number): pass
    """.replace("\n        ", "\n"),
        "-n",
        "2",
        "--turtles-seed",
        "5",
    )
    result.assert_outcomes(passed=2)


def test_it_costs_nothing_where_nobody_uses_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile("""
        import sys

        def test_nothing_is_loaded():
            ours = {name for name in sys.modules if name.split(".")[0] in ("engine", "persistence")}
            assert ours == {"engine", "engine.testing", "engine.testing.plugin"}
            assert not {"sqlalchemy", "msgspec", "structlog"} & set(sys.modules)
    """)
    result = pytester.runpytest_subprocess(
        *LOADED, "-p", "no:cacheprovider", "-p", "no:hypothesispytest",
        "-W", "error", *ASYNC,
    )  # fmt: skip
    result.assert_outcomes(passed=1)


def test_marker_is_documented(suite: Any) -> None:
    result = suite("", "--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.turtles_verify(machine, *, budget=10*"])


def test_it_is_the_entry_point() -> None:
    assert 'turtles = "engine.testing.plugin"' in (ROOT / "pyproject.toml").read_text()
