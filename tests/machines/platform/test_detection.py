"""Detection: a realistic source of each of the 42 languages, first lines, and what is no code."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machines.platform.detection import detect
from machines.platform.languages import LANGUAGES

SOURCES = {
    "python": """
from collections import Counter

def count(words: list[str]) -> dict[str, int]:
    return dict(Counter(words))

for word, number in sorted(count("a b a".split()).items()):
    print(f"{word}: {number}")
""",
    "javascript": """
const numbers = [3, 1, 2];
function total(values) {
  return values.reduce((sum, value) => sum + value, 0);
}
console.log(`sum ${total(numbers)}`);
""",
    "typescript": """
interface Point { x: number; y: number }

function length(point: Point): number {
  return Math.hypot(point.x, point.y);
}
const origin: Point = { x: 3, y: 4 };
console.log(length(origin));
""",
    "ruby": """
class Greeter
  attr_reader :name

  def initialize(name)
    @name = name
  end
end

%w[ada bob].each do |name|
  puts "Hello, #{Greeter.new(name).name}!"
end
""",
    "perl": """
use strict;
use warnings;

my %seen;
foreach my $word (split / /, "a b a") {
    $seen{$word}++;
}
print "$_ $seen{$_}\\n" for sort keys %seen;
""",
    "php": """<?php
$names = ['ada', 'bob'];
foreach ($names as $name) {
    echo "Hello, $name\\n";
}
""",
    "lua": """
local names = {"ada", "bob"}
for index, name in ipairs(names) do
  print(index .. ": " .. name)
end
""",
    "bash": """
set -e
for name in ada bob; do
  if [ "$name" = "bob" ]; then
    echo "hello $name"
  fi
done
""",
    "r": """
values <- c(1, 2, 3)
square <- function(x) x^2
cat(paste("sum", sum(sapply(values, square))), "\\n")
""",
    "elixir": """
defmodule Greeter do
  def greet(name) do
    "Hello, #{name}"
  end
end

["ada", "bob"] |> Enum.map(&Greeter.greet/1) |> Enum.each(&IO.puts/1)
""",
    "erlang": """
main(_) ->
    Squares = lists:map(fun(X) -> X * X end, [1, 2, 3]),
    io:format("~p~n", [Squares]).
""",
    "tcl": """
proc greet {name} {
    return "Hello, $name"
}
foreach name {ada bob} {
    puts [greet $name]
}
""",
    "scheme": """
(define (square x) (* x x))
(display (map square '(1 2 3)))
(newline)
""",
    "powershell": """
$names = @('ada', 'bob')
foreach ($name in $names) {
    Write-Host "Hello, $name"
}
Get-ChildItem | Where-Object { $_.Length -gt 10 }
""",
    "clojure": """
(defn square [x] (* x x))
(println (map square [1 2 3]))
""",
    "commonlisp": """
(defun square (x) (* x x))
(format t "~a~%" (mapcar #'square '(1 2 3)))
""",
    "crystal": """
def square(x : Int32) : Int32
  x * x
end

puts [1, 2, 3].map { |x| square(x) }.sum
""",
    "groovy": """
def names = ['ada', 'bob']
names.each { name ->
    println "Hello, ${name}"
}
""",
    "deno": """
const text = await Deno.readTextFile("/etc/hostname");
console.log(text.trim());
""",
    "awk": """
BEGIN { FS = "," }
/ada/ { total += $2 }
END { print "total", total }
""",
    "raku": """
my @numbers = 1, 2, 3;
for @numbers -> $number {
    say "square: {$number ** 2}";
}
""",
    "c": """
#include <stdio.h>

int main(void) {
    for (int i = 0; i < 3; i++)
        printf("%d\\n", i * i);
    return 0;
}
""",
    "cpp": """
#include <iostream>
#include <vector>

int main() {
    std::vector<int> values{1, 2, 3};
    for (auto value : values)
        std::cout << value << "\\n";
}
""",
    "go": """
package main

import "fmt"

func main() {
	for i := 0; i < 3; i++ {
		fmt.Println(i * i)
	}
}
""",
    "rust": """
use std::collections::HashMap;

fn main() {
    let mut seen: HashMap<&str, i32> = HashMap::new();
    *seen.entry("a").or_insert(0) += 1;
    println!("{:?}", seen);
}
""",
    "java": """
import java.util.List;

public class Main {
    public static void main(String[] args) {
        for (String name : List.of("ada", "bob")) {
            System.out.println("Hello, " + name);
        }
    }
}
""",
    "kotlin": """
data class Person(val name: String, val age: Int)

fun main() {
    val people = listOf(Person("ada", 36), Person("bob", 41))
    people.filter { it.age > 40 }.forEach { println(it.name) }
}
""",
    "cobol": """
       IDENTIFICATION DIVISION.
       PROGRAM-ID. HELLO.
       PROCEDURE DIVISION.
           DISPLAY "HELLO".
           STOP RUN.
""",
    "fortran": """
program squares
  implicit none
  integer :: i
  do i = 1, 3
    print *, i * i
  end do
end program squares
""",
    "d": """
import std.stdio;
import std.algorithm : map;

void main()
{
    foreach (i; 0 .. 3)
        writeln(i * i);
}
""",
    "zig": """
const std = @import("std");

pub fn main() !void {
    const out = std.io.getStdOut().writer();
    try out.print("{d}\\n", .{42});
}
""",
    "nim": """
import strutils

proc square(x: int): int =
  x * x

for i in 0 ..< 3:
  echo "square: ", square(i)
""",
    "v": """
fn square(x int) int {
	return x * x
}

fn main() {
	mut total := 0
	for i in 0 .. 3 {
		total += square(i)
	}
	println('total ${total}')
}
""",
    "objc": """
#import <Foundation/Foundation.h>

int main(void) {
    @autoreleasepool {
        NSLog(@"Hello, %@", @"ada");
    }
    return 0;
}
""",
    "dart": """
String greet(String name) => 'Hello, $name';

void main() {
  for (final name in ['ada', 'bob']) {
    print(greet(name));
  }
}
""",
    "julia": """
function square(x::Int)
    return x^2
end

for i in 1:3
    println("square: $(square(i))")
end
""",
    "haskell": """
module Main where

square :: Int -> Int
square x = x * x

main :: IO ()
main = mapM_ (print . square) [1, 2, 3]
""",
    "ocaml": """
let rec factorial n = if n = 0 then 1 else n * factorial (n - 1)

let () =
  List.iter (fun n -> print_endline (string_of_int (factorial n))) [1; 2; 3]
""",
    "fsharp": """
let square x = x * x

[1; 2; 3]
|> List.map square
|> List.iter (printfn "%d")
""",
    "csharp": """
using System;
using System.Linq;

class Program {
    static void Main(string[] args) {
        foreach (var n in Enumerable.Range(1, 3))
            Console.WriteLine(n * n);
    }
}
""",
    "prolog": """
parent(ada, bob).
parent(bob, eve).
grandparent(X, Z) :- parent(X, Y), parent(Y, Z).

:- initialization(main).
main :- grandparent(ada, Who), write(Who), nl.
""",
    "forth": """
: square ( n -- n*n ) dup * ;
: squares 4 1 do i square . loop ;
squares cr bye
""",
}
ONE_LINERS = {
    "print('hello')": "python",
    "import sys; print(sys.version)": "python",
    "console.log(1 + 1)": "javascript",
    "echo hello": "bash",
    "ls -la": "bash",
    "puts 'hello'": "ruby",
    'print "hello\\n";': "perl",
    "puts hello": "tcl",
    'println("hello")': "julia",
    '(display "hello")': "scheme",
    '(println "hello")': "clojure",
    'BEGIN { print "hello" }': "awk",
    'IO.puts "hello"': "elixir",
    'say "hello"': "raku",
    "2 3 + .": "forth",
    "<?php echo 1;": "php",
    'main = putStrLn "hello"': "haskell",
    'print_endline "hello"': "ocaml",
    'printfn "hello"': "fsharp",
    'Console.WriteLine("hello");': "csharp",
    'println "hello"': "groovy",
    'Write-Output "hello"': "powershell",
    'cat("hello\\n")': "r",
    "const x: number = 1; console.log(x)": "typescript",
}
FIRST_LINES = {
    "#!/usr/bin/env python3": "python",
    "#! /usr/bin/python3.11 -u": "python",
    "#!/bin/sh": "bash",
    "#!/usr/bin/env -S deno run --allow-net": "deno",
    "#!/usr/bin/env LANG=C perl": "perl",
    "#!/usr/bin/perl6": "raku",
    "#!/usr/bin/lua5.4": "lua",
    "#!/usr/bin/guile-3.0": "scheme",
    "#!/usr/bin/Rscript": "r",
    "#!/usr/bin/awk -f": "awk",
    "#!/usr/bin/env escript": "erlang",
}


def test_every_language_has_a_source_here() -> None:
    assert list(SOURCES) == [language.name for language in LANGUAGES]


@pytest.mark.parametrize("language", SOURCES)
def test_a_realistic_source_is_recognized(language: str) -> None:
    assert detect(SOURCES[language]) == language


@pytest.mark.parametrize("language", SOURCES)
def test_windows_line_ends_change_nothing(language: str) -> None:
    assert detect(SOURCES[language].replace("\n", "\r\n")) == language


@pytest.mark.parametrize(("code", "language"), ONE_LINERS.items())
def test_a_single_line_is_recognized(code: str, language: str) -> None:
    assert detect(code) == language


@pytest.mark.parametrize(("line", "language"), FIRST_LINES.items())
def test_the_first_line_decides(line: str, language: str) -> None:
    assert detect(line + "\nconsole.log(1);\nuse strict;\n") == language


def test_an_unknown_interpreter_leaves_it_to_the_lines() -> None:
    assert detect("#!/usr/bin/env brainscript\nimport os\nprint(os.name)\n") == "python"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "hello world",
        "Dear all, the meeting is at the end of the week. Please do come in time.",
        "42",
        "[1, 2, 3]",
        '{"name": "value"}',
        "\u4f60\u597d\uff0c\u4e16\u754c",
    ],
)
def test_what_is_no_program_is_not_guessed(text: str) -> None:
    assert detect(text) is None


@given(st.text(max_size=400))
def test_any_text_gives_a_known_name_or_none(text: str) -> None:
    assert detect(text) in {None, *SOURCES}


@pytest.mark.parametrize("piece", ["(", " ", "a.", "\n", "print(", "foreach (a;", "' $", "#!"])
def test_a_hostile_source_takes_a_bounded_time(piece: str) -> None:
    # The suite's time limit for a test is what would fail here.
    detect(piece * 2_000_000)


@pytest.mark.parametrize("line", ["\t " * 100, " " * 199 + "x", "x" + " " * 199, "\v\f" * 100])
def test_blanks_cost_nothing(line: str) -> None:
    """Patterns that begin with blanks took seconds, in which no other thread can run."""
    began = time.thread_time()
    detect("\n".join([line] * 100))
    assert time.thread_time() - began < 1


def test_blank_lines_and_deep_indentation_do_not_matter() -> None:
    code = "def f(a):\n\n" + " " * 60 + "return [x for x in a]\n\n\nif __name__ == '__main__':\n"
    assert detect(code) == "python"
