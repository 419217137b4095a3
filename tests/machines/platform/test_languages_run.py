"""Every language that is offered really runs: in a real sandbox, by its recipe.

Each program computes 6 * 7 and prints `turtles 42`.  All 42 are here, so that a machine with more
compilers tests more; at least ten must be offered everywhere (`.ci/run` sees to it).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from machines.platform import orders
from machines.platform.languages import INTERPRETERS, LANGUAGES, Probing, evaluation
from machines.platform.one_off import Outcome, run_alone
from machines.platform.sandbox.backend import Command, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend

OFFERED_MIN = 10
PROGRAMS = {
    "python": 'print("turtles", 6 * 7)',
    "javascript": "console.log(`turtles ${6 * 7}`);",
    "typescript": "const n: number = 6 * 7;\nconsole.log(`turtles ${n}`);",
    "ruby": 'puts "turtles #{6 * 7}"',
    "perl": 'use strict; my $n = 6 * 7; print "turtles $n\\n";',
    "php": '<?php echo "turtles ", 6 * 7, "\\n";',
    "lua": 'print("turtles " .. 6 * 7)',
    "bash": "echo turtles $((6 * 7))",
    "r": 'cat("turtles", 6 * 7, "\\n")',
    "elixir": 'IO.puts("turtles #{6 * 7}")',
    "erlang": '#!/usr/bin/env escript\nmain(_) -> io:format("turtles ~p~n", [6 * 7]).\n',
    "tcl": "puts [list turtles [expr {6 * 7}]]",
    "scheme": '(display "turtles ")\n(display (* 6 7))\n(newline)',
    "powershell": 'Write-Output "turtles $(6 * 7)"',
    "clojure": '(println "turtles" (* 6 7))',
    "commonlisp": '(format t "turtles ~a~%" (* 6 7))',
    "crystal": 'puts "turtles #{6 * 7}"',
    "groovy": 'println "turtles ${6 * 7}"',
    "deno": "const n: number = 6 * 7;\nconsole.log(`turtles ${n}`);",
    "awk": 'BEGIN { print "turtles", 6 * 7 }',
    "raku": 'say "turtles {6 * 7}";',
    "c": '#include <stdio.h>\nint main(void) { printf("turtles %d\\n", 6 * 7); return 0; }',
    "cpp": '#include <iostream>\nint main() { std::cout << "turtles " << 6 * 7 << std::endl; }',
    "go": 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("turtles", 6*7) }\n',
    "rust": 'fn main() { println!("turtles {}", 6 * 7); }',
    "java": "public class Main { public static void main(String[] arguments) {\n"
    '  System.out.println("turtles " + 6 * 7); } }',
    "kotlin": 'fun main() { println("turtles ${6 * 7}") }',
    "cobol": "       IDENTIFICATION DIVISION.\n       PROGRAM-ID. TURTLES.\n"
    "       DATA DIVISION.\n       WORKING-STORAGE SECTION.\n       01 N PIC 99.\n"
    "       PROCEDURE DIVISION.\n           COMPUTE N = 6 * 7.\n"
    '           DISPLAY "turtles " N.\n           STOP RUN.\n',
    "fortran": "program turtles\n  implicit none\n"
    "  print '(A, I0)', 'turtles ', 6 * 7\nend program turtles\n",
    "d": 'import std.stdio;\nvoid main() { writeln("turtles ", 6 * 7); }',
    "zig": 'const std = @import("std");\npub fn main() !void {\n'
    '    try std.io.getStdOut().writer().print("turtles {d}\\n", .{6 * 7});\n}',
    "nim": 'echo "turtles ", 6 * 7',
    "v": "fn main() {\n\tprintln('turtles ${6 * 7}')\n}",
    "objc": "#import <objc/Object.h>\n#include <stdio.h>\n"
    "@interface Turtle : Object\n+ (int) count;\n@end\n"
    "@implementation Turtle\n+ (int) count { return 6 * 7; }\n@end\n"
    'int main(void) { printf("turtles %d\\n", [Turtle count]); return 0; }\n',
    "dart": "void main() {\n  print('turtles ${6 * 7}');\n}",
    "julia": 'println("turtles $(6 * 7)")',
    "haskell": 'main :: IO ()\nmain = putStrLn ("turtles " ++ show (6 * 7 :: Int))',
    "ocaml": 'let () = print_endline ("turtles " ^ string_of_int (6 * 7))',
    "fsharp": 'printfn "turtles %d" (6 * 7)',
    "csharp": "using System;\nclass Program { static void Main() {\n"
    '  Console.WriteLine("turtles " + 6 * 7); } }',
    "prolog": ":- initialization(main).\nmain :- N is 6 * 7, write(turtles), write(' '), "
    "write(N), nl, halt.\n",
    "forth": '6 7 * ." turtles " 0 .r cr bye\n',
}


EVALUATIONS = {
    "python3": "print(6 * 7)",
    "bpython": "print(6 * 7)",
    "ipython": "print(6 * 7)",
    "node": "console.log(6 * 7)",
    "ruby": "puts 6 * 7",
    "irb": "puts 6 * 7",
    "lua": "print(6 * 7)",
    "php": "echo 6 * 7;",
    "perl": "print 6 * 7",
    "guile": "(display (* 6 7))",
    "ghci": "print (6 * 7)",
    "erl": 'io:format("~p~n", [6 * 7]).',
    "iex": "IO.puts(6 * 7)",
    "sbcl": "(princ (* 6 7))",
    "clisp": "(princ (* 6 7))",
    "r": "cat(6 * 7)",
    "julia": "println(6 * 7)",
    "clojure": "(println (* 6 7))",
}


@pytest.fixture
def sandboxes(tmp_path: Path) -> Iterator[BubblewrapBackend]:
    backend = BubblewrapBackend(tmp_path / "sandboxes")
    yield backend
    backend.close()


def test_there_is_a_program_for_each_of_the_42() -> None:
    assert list(PROGRAMS) == [language.name for language in LANGUAGES]


def test_at_least_ten_languages_are_offered(sandboxes: BubblewrapBackend) -> None:
    offered = Probing(sandboxes).languages()
    assert len(offered) >= OFFERED_MIN, offered


@pytest.mark.timeout(300)
def test_every_offered_language_runs(sandboxes: BubblewrapBackend) -> None:
    probing = Probing(sandboxes)
    failed = {}
    for name in probing.languages():
        outcome = _run(sandboxes, probing, name).result
        if (outcome.exit_code, outcome.stdout.decode().strip()) != (0, "turtles 42"):
            failed[name] = outcome
    assert failed == {}


def _run(backend: BubblewrapBackend, probing: Probing, name: str) -> Outcome:
    order = orders.parse_code({"language": name, "code": PROGRAMS[name]}, probing.language)
    return run_alone(backend, f"exec-{name}", "job", order, lambda: None)


def test_there_is_a_command_for_each_interpreter() -> None:
    assert tuple(EVALUATIONS) == INTERPRETERS


@pytest.mark.timeout(120)
def test_every_offered_shell_takes_a_command(sandboxes: BubblewrapBackend) -> None:
    probing = Probing(sandboxes)
    handle = sandboxes.create(Spec(sandbox_id="shells"))
    failed = {}
    for shell in probing.shells():
        command = EVALUATIONS.get(shell, "echo 42")
        argv = evaluation(shell, probing.shell_program(shell), command)
        result = sandboxes.execute(handle, Command(argv=argv))
        if (result.exit_code, result.stdout.split()[:1]) != (0, [b"42"]):
            failed[shell] = result
    assert failed == {}
