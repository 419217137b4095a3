"""The command `turtles`: the generic commands over our machines, `inception`, and `platform`.

::

    DIR/runs.db            runs of all machines
    DIR/platform/          the embedded platform that they use, if it was started here

`turtles inception`, `run` and `work` find the platform there or start it; `turtles platform serve`
serves it by itself; `turtles platform ledger` and `doctor` look at it.
Everything heavy is imported when a command is called: `turtles --help` has to be quick.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli import Place, build_cli, output
from engine.cli.exits import FAILED, OK, EnvironmentUnusable, NotEnded, code_of_status
from engine.cli.front import DEFAULT_DATA_DIR, AsJson, DataDir, Front, answering, say_stopped
from engine.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.app import App
    from engine.ports import Finding
    from engine.run import Run
    from machines.inception import InceptionOptions, InceptionResult

PLATFORM = "platform"


# -- what the generic commands need ---------------------------------------------------------------


@asynccontextmanager
async def make_app(place: Place) -> AsyncIterator[App]:
    """An app over all our machines; one that works has a platform to work with."""
    from machines.app import restore_reservations, turtles_app
    from persistence import open_store

    if not place.work or place.data_dir is None:
        async with turtles_app(open_store(place.store_url), work=False) as app:
            yield app
        return
    from machines.platform_keeper import BLOCK_SECONDS, kept_platform

    platform_dir = place.data_dir / PLATFORM
    with translated(), closing(open_store(place.store_url)) as store:
        async with (
            kept_platform(platform_dir, block_seconds=BLOCK_SECONDS) as base_url,
            _clients(base_url) as clients,
        ):
            app = turtles_app(store, clients, moved=place.moved)
            await app.open()
            await restore_reservations(app, clients)
            async with app:
                yield app


@asynccontextmanager
async def _clients(base_url: str) -> AsyncIterator[Any]:
    from engine.secret import Secret
    from engine.system import SystemClock
    from machines.clients import clients_for

    password = Secret("turtles")
    clients = clients_for(
        base_url, rpc_username="turtles", rpc_password=password, clock_ms=SystemClock().now_ms
    )
    try:
        yield clients
    finally:
        await clients.aclose()


@contextmanager
def translated() -> Iterator[None]:
    """Errors of the platform and of this machine, as errors of the environment."""
    from machines.clients.ports import ClientError
    from machines.inception import EnvironmentRefused
    from machines.platform.server import ServerError

    try:
        yield
    except (EnvironmentRefused, ServerError, ClientError) as error:
        raise EnvironmentUnusable(str(error)) from error


def schema() -> ModuleType:
    """What knows the schema of our database."""
    from persistence import schema as module

    return module


def check_platform(data_dir: Path) -> Iterator[Finding]:
    """The findings of the platforms in a data directory."""
    from engine.ports import Finding
    from machines.platform.reports import platform_doctor

    for place in _platforms(data_dir):
        for one in platform_doctor(place):
            yield Finding(f"platform.{one.check}", None, one.message)


def _platforms(data_dir: Path) -> list[Path]:
    return [one for one in (data_dir, data_dir / PLATFORM) if (one / "platform.db").is_file()]


cli = build_cli(
    make_app,
    about="Durable state machines, and agents that provision their own sandboxes.",
    schema=schema,
    checks=[check_platform],
    environments=("machines.environments",),
)


# -- inception ------------------------------------------------------------------------------------


@cli.command("inception")
@answering
def inception(
    depth: Annotated[int, typer.Option(help="Layers of sandboxes, 1 to 8.")] = 2,
    currency: Annotated[str, typer.Option(help="XMR, BTC, LTC or DOGE.")] = "XMR",
    run: Annotated[str, typer.Option("--run", metavar="KEY", help="Names the chain.")] = "default",
    tier: Annotated[
        int | None, typer.Option(help="Tier of every key, 1 to 32; default: the lowest that does.")
    ] = None,
    trust: Annotated[
        str, typer.Option(help="zerotrust, or semitrusted: code inside may use the platform.")
    ] = "zerotrust",
    months: Annotated[int, typer.Option(help="1, 3, 6, 12 or 24.")] = 1,
    budget_cents: Annotated[
        int | None, typer.Option(help="Money for all layers; default: the list price.")
    ] = None,
    block_seconds: Annotated[float, typer.Option(help="Time between two blocks.")] = 0.25,
    poll_seconds: Annotated[float, typer.Option(help="Time between two looks.")] = 0.5,
    platform_url: Annotated[
        str | None, typer.Option(help="A platform that runs; default: one of our own.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds to wait.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> int:
    """Buy a key, prove it, open a sandbox, run in it, and go one layer deeper; go on if stopped."""
    from machines.inception import InceptionOptions, lowest_tier

    options = InceptionOptions(
        data_dir=data_dir,
        depth=depth,
        currency=currency,
        key=run,
        tier=tier if tier is not None else lowest_tier(trust),
        trust=trust,
        months=months,
        budget_cents=budget_cents,
        poll_seconds=poll_seconds,
        block_seconds=block_seconds,
        platform_url=platform_url,
        timeout_seconds=timeout,
    )
    options.check()
    result = _incept(options, as_json)
    if as_json:
        output.write(result.to_json())
    else:
        _print_result(result)
    return code_of_status(result.status)


def _incept(options: InceptionOptions, as_json: bool) -> InceptionResult:
    from engine.cli.progress import Progress
    from engine.cli.signals import run
    from machines.inception import incept

    progress = Progress(as_json=as_json, label=label, facts=facts, footer=footer)
    with translated(), progress:
        try:
            return run(incept(options, progress=progress.moved))
        except TimeoutError as error:
            raise NotEnded(
                f"inception {options.key!r} is still going after {options.timeout_seconds:g} s; "
                "run the same command again to go on"
            ) from error


def label(run: Run) -> str:
    """A run of a chain, named after its layer: `layer 1 Payment`."""
    if run.machine == "Inception":
        return f"layer {run.context.depth} Inception"
    if run.parent is None or run.parent.machine not in _BELOW_LAYER:
        return run.machine
    return f"layer {run.depth - _BELOW_LAYER[run.parent.machine]} {run.machine}"


_BELOW_LAYER = {"Inception": 0, "Payment": 1}
"""How far below its layer's machine a parent stands; a layer's own depth is its number less one."""


def facts(run: Run) -> str:
    """What a layer has cost so far, and where it lives."""
    context = run.context
    if run.machine != "Inception" or not context.public_key:
        return ""
    paid = f"paid {dollars(context.paid_cents)} in {context.currency}"
    return f"{paid}, sandbox {context.session_id}" if context.session_id else paid


def footer(runs: list[Run]) -> str:
    """Money spent by all layers that have been seen."""
    layers = [run.context for run in runs if run.machine == "Inception"]
    return f"spent {dollars(sum(layer.paid_cents for layer in layers))}" if layers else ""


def dollars(amount_cents: int) -> str:
    """`7.00 USD`."""
    return f"{amount_cents // 100}.{amount_cents % 100:02} USD"


def _print_result(result: InceptionResult) -> None:
    for layer in result.layers:
        output.write(
            f"layer {layer.depth}: key {layer.public_key}, paid {dollars(layer.paid_cents)} in "
            f"{', '.join(layer.txids)}, sandbox {layer.session_id}, {layer.latency_ms} ms"
        )
        output.write(f"         {layer.stdout.rstrip()}")
        told = f"made {layer.sibling}" if layer.sibling else f"none ({layer.no_sibling})"
        output.write(f"         sibling from inside: {told}")
    output.write(
        f"{result.state} ({result.status}): {len(result.layers)} of {result.depth} layers, "
        f"spent {dollars(result.spent_cents)}, {result.transitions} transitions, "
        f"run {result.run_id}"
    )
    if result.refusal:
        output.write(f"refused: {result.refusal}")


# -- platform -------------------------------------------------------------------------------------

platform = typer.Typer(
    cls=Front, no_args_is_help=True, rich_markup_mode=None, help="The embedded local platform."
)
cli.add_typer(platform, name="platform")


@platform.command("serve")
@answering
def serve(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    host: Annotated[str, typer.Option(help="A loopback address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    block_seconds: Annotated[
        float | None, typer.Option(min=0, help="Time between two blocks; 0: by hand only.")
    ] = None,
    allow_faults: Annotated[
        bool, typer.Option("--allow-faults", help="Let misbehaviour be injected.")
    ] = False,
    backend: Annotated[
        str,
        typer.Option(
            help="What isolates: bubblewrap, or gvisor (needs root and runsc; whole processes "
            "can be kept in snapshots)."
        ),
    ] = "bubblewrap",
    operator: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PUBLIC_KEY", help="A key that may read the platform's own logs; repeatable."
        ),
    ] = None,
    egress_allow: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="What semitrusted sandboxes may reach; repeatable."),
    ] = None,
    egress_rate: Annotated[
        float, typer.Option(help="Requests a second that one of them may send.")
    ] = 5.0,
    egress_burst: Annotated[int, typer.Option(help="And how many at once.")] = 20,
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM chain; with --tls-key: https.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM key without a password.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Serve the platform of a directory until SIGTERM or SIGINT; prints `ready` when it listens."""
    from machines.platform.server import serve as serve_platform

    def say(line: str) -> None:
        word, _, base_url = line.partition(" ")
        if not as_json:
            output.write(line)
        elif word == "ready":
            output.emit({"ready": True, "base_url": base_url})

    with translated():
        return serve_platform(
            data_dir / PLATFORM,
            host,
            port,
            block_seconds=block_seconds,
            allow_faults=allow_faults,
            backend=backend,
            operators=operator or [],
            egress_allow=egress_allow or [],
            egress_requests_per_second=egress_rate,
            egress_burst=egress_burst,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
            say=say,
        )


@platform.command("ledger")
@answering
def ledger(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> int:
    """Show invoices, what was paid for each, and balances; exit 1 if the books do not balance."""
    from machines.platform.reports import ledger as read_ledger

    places = _platforms(data_dir)
    if not places:
        raise UsageError(
            f"data directory {data_dir}: no platform has run there. Give the right --data-dir."
        )
    report = read_ledger(places[0])
    if as_json:
        output.emit(report)
    else:
        _print_ledger(report)
    return OK if report["consistent"] else FAILED


def _print_ledger(report: Mapping[str, Any]) -> None:
    rows = [
        (
            f"{one['invoice_id'][:12]}...",  # the whole id opens the payment's status
            one["currency"],
            one["status"],
            dollars(one["price_cents"]),
            str(one["amount_atomic"]),
            str(one["received_atomic"]),
            str(one["confirmed_spends"]),
            str(len(one["refunds"])),
        )
        for one in report["invoices"]
    ]
    heads = ("INVOICE", "COIN", "STATUS", "PRICE", "DUE", "RECEIVED", "SPENDS", "REFUNDS")
    output.table(heads, rows)
    output.write()
    coins = [
        (name, str(coin["height"]), str(coin["fees_atomic"]), "yes" if coin["conserved"] else "NO")
        for name, coin in report["currencies"].items()
    ]
    output.table(("COIN", "HEIGHT", "FEES", "BALANCED"), coins)


def main() -> None:
    """The entry point.  Ctrl-C gives one line and exit code 130, wherever it comes."""
    try:
        cli()
    except KeyboardInterrupt:
        sys.exit(say_stopped("--json" in sys.argv))


if __name__ == "__main__":
    main()
