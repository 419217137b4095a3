"""BENCHMARKS.md out of the results of one run.  The texts stand here, the figures never do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tests.benchmarks.figures import QUIET_CORES, median, number, ratio, spread, table, undisturbed
from tests.benchmarks.targets import Judge, Results

_HEAD = """# Benchmarks

Made by `{command}`
on {date}, in {minutes:.0f} minutes ({mode}: {sizes}).
**Read ratios, not figures**: both sides of a ratio were measured in turns in the same minutes.

A transition here is one durable step of `Walk` in `tests/benchmarks/machines.py`: an effect (a pure
function of a dict of four keys, about 55 bytes as JSON), a guard, an action, a precondition and a
postcondition, judged and recorded, and the next effect with its first
attempt. It is committed before the next step starts. Ten of them are a run. Every peer runs the
same function, one durable step each, without contracts.

| Workload | What |
| --- | --- |
| W1 | throughput of runs of ten steps |
| W2 | latency of one run at a time |
| W3 | recovery: runs that wait in the middle, SIGKILL, events, until all are complete |
| W4 | W2 with many finished runs in the store |
| W5 | what a waiting run costs |
| W6 | workers on one database |
| W7 | a step of a run with very many behind it |
"""

_METHOD = """## Method

- Each sample is a process of its own with a directory and, on PostgreSQL, a database of its own.
  Contenders take turns, round by round; a figure is the median over the samples during which other
  processes used less than {quiet} cores ("quiet"; all samples where none was). `n` is quiet of all.
- Peers as their documentation recommends, with equal durability: every step is synced before the
  next. Where a peer leaves SQLite in a slower mode than a user can set, both are shown.
- How many at once: ours is measured at 16, 200 and 1,000 in this run, all three are shown, and the
  lines against peers take the fastest of them, which favours us a little. Peers have one setting
  each, the table of settings says which: DBOS, Absurd and LangGraph the one that was fastest when
  they were swept once, earlier, on such a machine; Restate, at 64, was never swept.
- Peers are given fewer runs than we are (the sizes above) and fewer to warm up with. Absurd's end
  is looked for every 50 ms.
- The best peer is the best on any database, except where a line names one.
- The raw limits write one INSERT and one UPDATE for each step, with the same step and the same
  JSON, as many steps to a commit as ours had at 200 at once (counted: {batches}); W2's is a commit
  for the start and for each of ten steps.
- W3 counts from the new process's start (interpreter and imports too) until the last outcome was
  read; the events are sent by the new process. W4 and W7 take both sides in turns in one process;
  finished runs and long pasts are SQL clones of real ones (same rows, same indexes), after which
  PostgreSQL gets the VACUUM ANALYZE that autovacuum would have given it by the time.
- W5's runs wait after five steps. "Started" is until every start is durable, while a worker moves
  them already; memory is the growth of the process that did it all.
- SIGKILL proves recovery of a process, not of power loss.
"""

_AGAIN = """## To run again

```sh
python -m tests.benchmarks.peers.setup          # once: peers in an environment of their own
python -m tests.benchmarks --full --write       # this file
python -m tests.benchmarks --quick              # what CI prints
```

`--only w1,w2`, `--without peers,postgresql`, `--set NAME=VALUE` (sizes: `Sizes` in
`tests/benchmarks/plan.py`), `--render FILE` (the tables once more out of the results that a run
left in the temporary directory). `python -m tests.benchmarks.ours w1-profile '{"directory":
"/tmp/x", "runs": 1000, "at_once": 200}'` prints where our side spends its time.
"""


def document(found: dict[str, Any]) -> str:
    """The whole of it."""
    results: Results = found["results"]
    judge = Judge(results)
    targets = list(judge.all())
    lost = [each for each in targets if each.reached == "**no**"]
    sizes = ", ".join(f"{name} {value}" for name, value in found["sizes"].items())
    head = _HEAD.format(
        command=found["command"],
        date=found["machine"]["date"],
        minutes=found["minutes"],
        mode=found["mode"],
        sizes=sizes,
    )
    parts = [
        head,
        disturbance(results),
        "## Targets\n",
        f"{len(lost)} of {len(targets)} are not reached.\n",
        table(
            ("What", "turtles", "against, in the same run", "target", "reached"),
            (each.cells() for each in targets),
        ),
        "",
        *sections(judge, found["sizes"]),
        _METHOD.format(quiet=QUIET_CORES, batches=batches(results)),
        machine(found),
        _AGAIN,
    ]
    return "\n".join(parts)


def disturbance(results: Results) -> str:
    """How much of the run others spoiled."""
    samples = [
        sample
        for rows in results.values()
        for row in rows.values()
        for sample in row["samples"]
        if "failed" not in sample
    ]
    calm, load = len(undisturbed(samples)), median(samples, "foreign_cores")
    warning = " **The machine was busy: measure again.**" if calm < 0.75 * len(samples) else ""
    return (
        f"{calm} of {len(samples)} samples were quiet (others used less than {QUIET_CORES} cores; "
        f"median over those {number(load)}).{warning}\n"
    )


def sections(judge: Judge, sizes: dict[str, Any]) -> Iterator[str]:
    """A table for each workload."""
    results = judge.results
    runs = f"{sizes['w1_runs']:,} runs, peers {sizes['w1_peer_runs']:,}"
    yield section(
        results, "w1", f"W1: throughput ({runs})",
        (("steps/s", "steps_per_second"), ("CPU ms per run", "cpu_ms_per_run"),
         ("bytes in the store per run", "bytes_per_run")),
        "steps_per_second", note=counted(results),
    )  # fmt: skip
    yield section(
        results, "w2", "W2: latency of one run of ten steps",
        (("p50 ms", "p50_ms"), ("p95 ms", "p95_ms")), "p50_ms",
    )  # fmt: skip
    runs = f"{sizes['w3_runs']:,} waiting, peers {sizes['w3_peer_runs']:,}"
    yield section(
        results, "w3", f"W3: recovery after SIGKILL ({runs}), seconds from process start",
        (("launched", "launch_seconds"), ("events sent", "sent_seconds"), ("all done", "seconds"),
         ("runs done", "runs")),
        "seconds",
    )  # fmt: skip
    yield section(
        results, "w4", "W4: latency beside finished runs",
        (("p50 ms", "p50_ms"), ("p50 ms, empty store", "empty_p50_ms"), ("ratio", "ratio"),
         ("bytes per finished run", "bytes_per_finished")),
        "p50_ms", note="Bytes per finished run of the peers: W1.\n",
    )  # fmt: skip
    yield section(
        results, "w5", "W5: runs that wait after five steps",
        (("s until started", "started_seconds"), ("s until all wait", "waiting_seconds"),
         ("bytes of memory each", "bytes_per_waiting"), ("threads each", "threads_per_waiting"),
         ("idle cores", "idle_cores"), ("idle cores, new process", "fresh_idle_cores"),
         ("resident MB, new process", "fresh_resident_bytes")),
        "waiting_seconds",
    )  # fmt: skip
    yield section(
        results, "w6", f"W6: workers over one database ({sizes['w6_runs']:,} runs)",
        (("steps/s", "steps_per_second"),), "steps_per_second",
        note="Every effect was performed once: a sample that counts more or fewer fails.\n",
    )  # fmt: skip
    yield section(
        results, "w7", "W7: a step of a long run",
        (("steps before", "steps_before"), ("ms a step", "step_ms"),
         ("ms a step of a fresh run", "fresh_step_ms"), ("ratio", "ratio")),
        "step_ms",
    )  # fmt: skip
    yield small(results)


def section(
    results: Results,
    workload: str,
    title: str,
    columns: Sequence[tuple[str, str]],
    main: str,
    note: str = "",
) -> str:
    """One workload: its rows, ours first, peers, then the raw limits."""
    rows = results.get(workload)
    if not rows:
        return f"## {title}\n\nNot measured in this run.\n"
    order = {"ours": 0, "peer": 1, "raw": 2}
    lines = [
        line(row, columns, main)
        for row in sorted(rows.values(), key=lambda each: order[each["kind"]])
    ]
    heads = [head for head, _ in columns]
    heads.insert(1 + [name for _, name in columns].index(main), "least - most")
    return f"## {title}\n\n{table(('', *heads, 'n', 'foreign cores'), lines)}\n\n{note}"


def line(row: dict[str, Any], columns: Sequence[tuple[str, str]], main: str) -> list[str]:
    """One row of a table."""
    samples = row["samples"]
    failed = next((each["failed"] for each in samples if "failed" in each), None)
    if failed is not None:
        return [row["label"], _plain(failed), *([""] * (len(columns) + 2))]
    cells = [row["label"]]
    for _, name in columns:
        cells.append(shown(name, median(samples, name)))
        if name == main:
            between = spread(samples, name)
            cells.append(" - ".join(map(number, between)) if between else "-")
    load = median(samples, "foreign_cores")
    return [*cells, f"{len(undisturbed(samples))}/{len(samples)}", number(load)]


def shown(name: str, value: float | None) -> str:
    """A figure in the unit of its column."""
    if value is not None and name == "fresh_resident_bytes":
        return number(value / 1e6)
    if value is not None and name in ("runs", "steps_before"):
        return f"{value:,.0f}"
    return number(value)


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:120]


def counted(results: Results) -> str:
    """Statements and commits of our W1 on SQLite."""
    samples = results.get("counts", {}).get("turtles-sqlite", {}).get("samples", [])
    steps, statements = (
        median(samples, name) for name in ("steps_per_commit", "statements_per_step")
    )
    if steps is None:
        return ""
    return (
        f"Ours on SQLite at 200 at once: {number(steps)} steps to a transaction (reading ones "
        f"too), {number(statements)} statements a step, as the driver counted them.\n"
    )


def batches(results: Results) -> str:
    """How many steps shared a commit of the raw limits."""
    found = []
    for database in ("sqlite", "postgresql"):
        samples = results.get("w1", {}).get(f"raw-{database}-driver", {}).get("samples", [])
        asked = sorted(each["options"]["at_once"] for each in samples if "failed" not in each)
        if asked:
            found.append(f"{asked[len(asked) // 2]} on {database}")
    return ", ".join(found) or "not measured"


def small(results: Results) -> str:
    """The two small figures."""
    samples = results.get("micro", {}).get("turtles", {}).get("samples")
    if not samples:
        return ""
    found = samples[-1]
    rows = [
        (
            "one `decide`, contracts judged and their values recorded",
            f"{found['decide_us']:.1f} us",
            f"{found['send_us']:.1f} us: one `send` of python-statemachine, warm, no contracts",
            number(ratio(found["decide_us"], found["send_us"])),
        ),
        (
            "`turtles --help`",
            f"{found['help_ms']:.0f} ms",
            f"{found['bare_ms']:.0f} ms: `python -c pass`",
            number(ratio(found["help_ms"], found["bare_ms"])),
        ),
    ]
    return f"## Small figures\n\n{table(('What', 'turtles', 'baseline', 'ratio'), rows)}\n"


def machine(found: dict[str, Any]) -> str:
    """Machine, versions, settings."""
    at = found["machine"]
    own = ", ".join(f"{name} {each}" for name, each in at["packages"].items())
    peers = ", ".join(f"{name} {each}" for name, each in found["peers"].items()) or "none installed"
    settings = [(label, text) for label, text in found["settings"].items() if text]
    return (
        "## Machine, versions, settings\n\n"
        f"- {at['cores']} x {at['cpu']}, {at['memory_gib']} GiB, {at['file_system']}, kernel "
        f"{at['kernel']}. Virtual machines of this kind have two speeds (the same loop varies by "
        "1.6) and share a host: compare only what was measured together.\n"
        f"- Python {at['python']}, SQLite {at['sqlite']}, PostgreSQL {at['postgresql']} (a private "
        f"server, initdb's defaults: fsync and synchronous_commit on). {own}.\n"
        f"- Peers, in an environment of their own: {peers}.\n\n"
        f"{table(('', 'Settings'), settings)}\n"
    )


def brief(sample: dict[str, Any]) -> str:
    """A sample in one line, for whoever watches."""
    if "failed" in sample:
        return str(sample["failed"])
    return ", ".join(
        f"{name} {number(float(value))}"
        for name, value in sample.items()
        if isinstance(value, int | float) and name not in ("wall_seconds", "seconds_cpu")
    )
