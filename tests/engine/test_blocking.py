"""The same front door for programs without an event loop."""

from __future__ import annotations

import threading

import pytest

from engine import App, BlockingApp
from engine.errors import StoreBusy, UnknownEvent
from persistence.store import open_store


def test_a_synchronous_program(tmp_path, zoo):
    ledger, store = zoo.Ledger(), open_store(f"sqlite:///{tmp_path}/runs.db")
    before = threading.active_count()
    with BlockingApp(App([zoo.Shop], store, resources={zoo.Ledger: ledger})) as app:
        run = app.start(zoo.Shop, zoo.Order(), key="order-42")
        assert app.start(zoo.Shop, zoo.Order(), key="order-42").run_id == run.run_id
        with pytest.raises(TimeoutError):
            app.wait(run.run_id, timeout_seconds=0.2)
        assert app.get(run.run_id).state == "packing"
        assert app.can(run.run_id, "pack").allowed
        with pytest.raises(UnknownEvent):
            app.send(run.run_id, "nope")
        app.pause(run.run_id)
        assert app.wait(run.run_id).status == "paused"
        app.resume(run.run_id)
        app.send(run.run_id, "pack", key="pack")
        app.send(run.run_id, zoo.Shipped(parcels=1), key="ship")
        assert app.wait(run.run_id, timeout_seconds=20).state == "done"
        other = app.start(zoo.Shop, zoo.Order())
        app.cancel(other.run_id)
        assert app.wait(other.run_id, timeout_seconds=20).status == "cancelled"
    assert threading.active_count() == before
    assert store.inspector.findings() == []
    store.close()


def test_a_failing_start_leaves_no_thread_behind(tmp_path, zoo):
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    before = threading.active_count()

    def busy(*args, **kw):
        raise StoreBusy("database: locked for 10 s")

    store.machines.register = busy
    with pytest.raises(StoreBusy), BlockingApp(App([zoo.Shop], store)):
        raise AssertionError("not reached")
    assert threading.active_count() == before
    store.close()
