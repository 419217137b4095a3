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
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli import Place, build_cli, output
from engine.cli.exits import FAILED, OK, EnvironmentUnusable, NotEnded, code_of_status
from engine.cli.front import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    Front,
    RunName,
    answering,
    say_stopped,
)
from engine.errors import UsageError
from machines.wheel import NAME, VERSION

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
    from engine.system import SystemClock
    from machines.clients import own_clients
    from machines.platform_keeper import BLOCK_SECONDS, kept_platform

    platform_dir = place.data_dir / PLATFORM
    with translated(), closing(open_store(place.store_url)) as store:
        async with (
            kept_platform(platform_dir, block_seconds=BLOCK_SECONDS) as base_url,
            own_clients(base_url, SystemClock().now_ms) as clients,
        ):
            app = turtles_app(store, clients, moved=place.moved)
            await app.open()
            await restore_reservations(app, clients)
            async with app:
                yield app


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
    version=f"{NAME} {VERSION}",
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
        int | None, typer.Option(help="Tier of every key, 1 to 32; default: 1.")
    ] = None,
    trust: Annotated[
        str | None,
        typer.Option(
            help="semitrusted (default): each layer is an engine inside the sandbox above it; "
            "zerotrust: nothing inside reaches anything, all layers are built from here."
        ),
    ] = None,
    one_key: Annotated[
        bool,
        typer.Option("--one-key", help="All layers on the first one's key (with --tier)."),
    ] = False,
    latency_ms_max: Annotated[
        int, typer.Option(help="What all layers may add to an operation; 0: no bound.")
    ] = 0,
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
    from machines.inception import InceptionOptions, usual_trust

    options = InceptionOptions(
        data_dir=data_dir,
        depth=depth,
        currency=currency,
        key=run,
        tier=tier,
        trust=usual_trust(one_key) if trust is None else trust,
        one_key=one_key,
        latency_ms_max=latency_ms_max,
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

    progress = Progress(as_json=as_json, label=Labels(), facts=facts, footer=footer)
    with translated(), progress:
        try:
            return run(incept(options, progress=progress.moved))
        except TimeoutError as error:
            raise NotEnded(
                f"inception {options.key!r} is still going after {options.timeout_seconds:g} s; "
                "run the same command again to go on"
            ) from error


class Labels:
    """Names the runs of a chain after their layers: `layer 1 Payment`.

    A run below a layer's own is known by its parent; when that has not moved since this process
    began, only the machine is told.
    """

    def __init__(self) -> None:
        self._layers: dict[str, int] = {}

    def __call__(self, run: Run) -> str:
        if run.machine == "Inception":
            self._layers[run.run_id] = run.context.depth
        elif run.parent is not None and run.parent.machine == "Inception":
            self._layers[run.run_id] = run.depth  # a layer's own is its number less one
        elif run.parent is not None and run.parent.run_id in self._layers:
            self._layers[run.run_id] = self._layers[run.parent.run_id]
        layer = self._layers.get(run.run_id)
        return run.machine if layer is None else f"layer {layer} {run.machine}"


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
        if layer.journal:
            output.write(f"         {len(layer.journal)} steps in the journal from inside")
        if layer.no_sibling:
            output.write(f"         sibling from inside: none ({layer.no_sibling})")
    output.write(
        f"{result.state} ({result.status}): {len(result.layers)} of {result.depth} layers, "
        f"spent {dollars(result.spent_cents)}, {result.transitions} transitions, "
        f"run {result.run_id}"
    )
    if result.refusal:
        output.write(f"refused: {result.refusal}")


@cli.command("tree")
@answering
def tree(
    run: RunName,
    follow: Annotated[
        bool, typer.Option("--follow", help="Draw it again when it changes, until it is over.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> int:
    """Draw a run and all runs below it, those of the engines inside sandboxes too."""
    from engine.cli.looking import look
    from machines.family import Relative, follow_family, lines_of

    def show(one: Relative) -> None:
        if as_json:
            output.emit(one)
        else:
            output.write("\n".join(lines_of(one)))

    look(make_app, data_dir, lambda app: follow_family(app, run, show, follow=follow))
    return OK


# -- one layer, from inside -----------------------------------------------------------------------

layer = typer.Typer(cls=Front, no_args_is_help=True, rich_markup_mode=None, hidden=True,
                    help="What a nested layer runs inside a sandbox.")  # fmt: skip
cli.add_typer(layer, name="layer")

BeganMs = Annotated[int, typer.Option("--began-ms", help="When the caller began, Unix ms.")]
LayerPlace = Annotated[Path | None, typer.Option("--place", help="Default: ~/.turtles/layer.")]


@layer.command("attend")
@answering
def attend(
    began_ms: BeganMs = 0,
    seconds: Annotated[float, typer.Option(help="How long to wait.")] = 45.0,
    place: LayerPlace = None,
) -> int:
    """See that the engine works, and print its report or its progress."""
    import msgspec

    from machines.layer_attendant import attend as wait

    told = wait(_layer_place(place), sys.stdin.read(), began_ms or _now_ms(), seconds)
    output.write(msgspec.json.encode(told).decode())
    return OK


@layer.command("serve")
@answering
def serve_layer(began_ms: BeganMs = 0, place: LayerPlace = None) -> int:
    """Be the engine: build the layer that standard input asks for, or go on with it."""
    from engine.cli.signals import run
    from machines.layer_process import serve as build

    run(build(_layer_place(place), sys.stdin.read(), began_ms or _now_ms()))
    return OK


@layer.command("stop")
@answering
def stop_layer(
    seconds: Annotated[float, typer.Option(help="How long to wait.")] = 40.0,
    place: LayerPlace = None,
) -> int:
    """Let the engine end what it has made."""
    from machines.layer_attendant import stop

    stop(_layer_place(place), seconds)
    return OK


def _layer_place(directory: Path | None) -> Any:
    from machines.layer_process import PLACE, Place

    return Place(directory or Path.home() / PLACE)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# -- the paper ------------------------------------------------------------------------------------


@cli.command("paper")
@answering
def paper(
    budget: Annotated[float, typer.Option(min=1, help="Seconds for all machines.")] = 240.0,
    as_json: AsJson = False,
) -> int:
    """Check every flow, and print the paper's table with our counts beside its own."""
    from machines.paper import report
    from machines.paper.count import count_all
    from machines.paper.figures import check_all
    from machines.paper.rows import ROWS

    counted = count_all([name for row in ROWS for name in row.machines], budget)
    lines = report.lines_of(counted, check_all())
    if as_json:
        output.emit(report.as_json(lines))
    else:
        output.table(report.HEADS, report.cells_of(lines))
        for line in lines:
            if not line.good:
                said = "; ".join(line.failed) or f"{line.ours} checks, the paper has {line.paper}"
                output.write(f"{line.title}: {said}")
    return OK if all(line.good for line in lines) else FAILED


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


# -- agents ---------------------------------------------------------------------------------------


@cli.command("tools")
@answering
def tools(
    manifest: Annotated[
        bool, typer.Option("--manifest", help="The capability manifest, in JSON.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """List what an agent may call: the 59 tools of the platform, and runs of our machines."""
    from machines.agents.capabilities import CAPABILITIES, catalogue
    from machines.agents.tools import TOOLS

    if manifest:
        from machines.agents.manifest import manifest as make_manifest

        output.emit(make_manifest())
    elif as_json:
        output.emit(catalogue())
    else:
        rows = [(one.name, one.machine or "-", one.description) for one in CAPABILITIES]
        output.table(("CAPABILITY", "MACHINE", "DOES"), rows)
        output.write()
        calls = [(one.name, f"{one.method} {one.path}", one.description) for one in TOOLS]
        output.table(("TOOL", "CALLS", "DOES"), calls)
    return OK


@cli.command("mcp")
@answering
def mcp(
    http: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve /mcp (streamable HTTP) and /call (signed) on a loopback address; "
            "default: stdio.",
        ),
    ] = None,
    conversation: Annotated[
        str, typer.Option(help="Names what is going on: the same call in it is the same run.")
    ] = "mcp",
    block_seconds: Annotated[
        float, typer.Option(min=0.001, help="Time between two blocks of our own platform.")
    ] = 0.25,
    platform_url: Annotated[
        str | None, typer.Option(help="A platform that runs; default: one of our own.")
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> int:
    """Serve every tool and capability to an MCP client, until it hangs up."""
    from engine.cli.signals import run
    from machines.agents.host import HostOptions, serve

    options = HostOptions(
        data_dir=data_dir,
        conversation=conversation,
        block_seconds=block_seconds,
        platform_url=platform_url,
        http=http,
    )
    options.check()
    with translated():
        return run(serve(options, say=output.complain))


def main() -> None:
    """The entry point.  Ctrl-C gives one line and exit code 130, wherever it comes."""
    try:
        cli()
    except KeyboardInterrupt:
        sys.exit(say_stopped("--json" in sys.argv))


if __name__ == "__main__":
    main()
