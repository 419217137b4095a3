"""The campaign's parts: what a mutant touches, how it is installed, what contracts notice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.table import compile_table
from engine.verification.mutants import mutants_of
from machines.app import MACHINES
from machines.flows.f04_authentication import Authentication
from tests.verification.mutants import campaign
from tests.verification.mutants.survivors import EQUIVALENT, SURVIVORS

TABLE = compile_table(Authentication)
MUTANTS = {mutant.name: mutant for mutant in mutants_of(TABLE)}


def test_every_reason_is_of_a_mutant_that_there_is():
    """A list that outlives its mutants would hide new ones."""
    names = {(m.__name__, one.name) for m in MACHINES for one in mutants_of(compile_table(m))}
    assert set(EQUIVALENT) | set(SURVIVORS) <= names
    assert not set(EQUIVALENT) & set(SURVIVORS)
    assert all(len(why) > 20 for why in (*EQUIVALENT.values(), *SURVIVORS.values()))


@pytest.mark.parametrize(
    ("name", "touched"),
    [
        ("edge-removed verifying --denied--> rejected", {"verifying denied", "everywhere"}),
        ("cancellable resyncing", {"in resyncing", "everywhere"}),
        ("comparison is_expired (event.reason == 'expired' with !=)",
         {"verifying denied", "resyncing denied", "everywhere"}),
        ("contract-negated is_known", {"in authenticated", "everywhere"}),
        ("contract-negated resyncs_once", None),
    ],
)  # fmt: skip
def test_what_a_test_must_touch(name, touched):
    assert campaign.touches(TABLE, MUTANTS[name]) == touched


def test_a_mutant_is_installed_for_everybody():
    original = replace(TABLE)
    mutant = MUTANTS["failure skewed"]
    try:
        campaign.install(TABLE, mutant.table)
        assert compile_table(Authentication) is TABLE
        assert not compile_table(Authentication).places["skewed"].failure
    finally:
        campaign.install(TABLE, original)
    assert compile_table(Authentication).places["skewed"].failure


def test_a_watching_table_says_what_is_looked_up():
    touched: set[str] = set()
    table = campaign._watching(TABLE, touched)
    assert table.edges.get(("verifying", "accepted"))
    assert table.places["skewed"].final
    assert touched == {"verifying accepted", "in skewed"}
    assert len(table.all_edges()) == len(TABLE.all_edges())
    assert "everywhere" in touched


def test_contracts_tell_when_they_do_not_hold():
    noticed: set[str] = set()
    (resyncs,) = [
        clause
        for clause in campaign._telling(TABLE, noticed).invariants
        if clause.name == "resyncs_once"
    ]
    context = TABLE.context(public_key="pk", secret_key="sk")
    assert resyncs.judge({"context": context}).ok and not noticed
    with pytest.raises(AttributeError):
        resyncs.judge({"context": None})
    assert noticed == {"resyncs_once"}
