"""Which language a source is written in: its first line, else what its lines look like.

A shebang decides.  Without one, patterns vote: each has a weight and counts once, however often
it is found; the language with most votes wins when it has at least `VOTES_MIN`.  Languages that
are written on top of another (TypeScript, Deno, Crystal) inherit the votes of that one as soon as
something of their own was seen.  Ties go to the language that stands first in the table.

Only the start is looked at, in bounded lines, so that a hostile source costs a bounded time.
"""

from __future__ import annotations

import re

LINES_MAX = 100
LINE_CHARACTERS_MAX = 200
VOTES_MIN = 2.5

_SHEBANG = re.compile(r"#!\s*(?:\S*/)?env\s+(?:-\S+\s+)*(?:\w+=\S*\s+)*(\S+)|#!\s*(\S+)")
_BLANKS = re.compile(r"[^\S\n]{9,}")
_VERSION = re.compile(r"[-.\d]+$")
_PROGRAMS = {
    "python": "python",
    "pypy": "python",
    "node": "javascript",
    "nodejs": "javascript",
    "ts-node": "typescript",
    "tsx": "typescript",
    "ruby": "ruby",
    "perl": "perl",
    "php": "php",
    "lua": "lua",
    "luajit": "lua",
    "bash": "bash",
    "sh": "bash",
    "dash": "bash",
    "ash": "bash",
    "ksh": "bash",
    "zsh": "bash",
    "rscript": "r",
    "r": "r",
    "elixir": "elixir",
    "escript": "erlang",
    "tclsh": "tcl",
    "guile": "scheme",
    "pwsh": "powershell",
    "powershell": "powershell",
    "clojure": "clojure",
    "clj": "clojure",
    "sbcl": "commonlisp",
    "clisp": "commonlisp",
    "crystal": "crystal",
    "groovy": "groovy",
    "deno": "deno",
    "awk": "awk",
    "gawk": "awk",
    "mawk": "awk",
    "raku": "raku",
    "perl6": "raku",
    "tcc": "c",
    "go": "go",
    "rust-script": "rust",
    "java": "java",
    "kotlin": "kotlin",
    "kotlinc": "kotlin",
    "rdmd": "d",
    "dub": "d",
    "zig": "zig",
    "nim": "nim",
    "v": "v",
    "dart": "dart",
    "julia": "julia",
    "runhaskell": "haskell",
    "runghc": "haskell",
    "stack": "haskell",
    "ocaml": "ocaml",
    "fsharpi": "fsharp",
    "swipl": "prolog",
    "gforth": "forth",
}

# What a language has on top of another: the other's votes count for it, too.
_INHERITS = {
    "typescript": ("javascript",),
    "deno": ("javascript", "typescript"),
    "crystal": ("ruby",),
    "objc": ("c",),
}

_VOTES: dict[str, tuple[tuple[float, str], ...]] = {
    "python": (
        (5, r"^\s*(async )?def \w+\(.*\)( -> .+)?:"),
        (4, r"^\s*class \w+(\(.*\))?:\s*$"),
        (4, r"^\s*from [\w.]+ import "),
        (2.5, r"^\s*import [a-z_]\w*(\.\w+)*( as \w+)?(, \w+)*\s*(;.+)?$"),
        (7, r"^if __name__ == "),
        (2, r"^\s*(if|elif|else|while|for|with|try|except)\b.*:\s*(#.*)?$"),
        (3, r"^\s*print\(.*\)\s*(#.*)?$"),
        (3, r"\bprint\(f['\"]"),
        (2, r"\[.+ for \w+ in .+\]|\blambda \w+:"),
        (1, r"\b(self|None|True|False)\b"),
    ),
    "javascript": (
        (4, r"\bconsole\.(log|error|table)\("),
        (4, r"\bmodule\.exports\b|\bexports\.\w+ ="),
        (4, r"\b(const|var|let) .+ = require\("),
        (1.5, r"^\s*(const|let|var) [\w{\[]"),
        (3, r"\bprocess\.(argv|stdout|stdin|exit|env)\b"),
        (3, r"^\s*import .+ from ['\"]"),
        (2, r"\b(async )?function\*? \w*\(.*\) \{"),
        (1, r"=> [\w{(\[]|==="),
        (2, r"\bJSON\.(stringify|parse)\(|\bnew Promise\(|\.then\("),
    ),
    "typescript": (
        (4, r"\w\??: (string|number|boolean|void|any|unknown|never)(\[\])*\s*([=;,){|]|$)"),
        (3, r"^\s*(export )?type \w+(<.+>)? = "),
        (2, r"^\s*(export )?interface \w+.*\{"),
        (4, r"^import type |\bas (const|string|number|any|unknown)\b"),
        (3, r"\b(private|public|readonly) \w+: \w"),
        (3, r"\b(Array|Promise|Record|Partial|Map)<(string|number|boolean|void)"),
    ),
    "deno": (
        (6, r"\bDeno\.\w+"),
        (6, r"from ['\"](https://deno\.land|jsr:|npm:)"),
    ),
    "ruby": (
        (3, r"^\s*def (self\.)?\w+[?!]?(\(.*\))?\s*$"),
        (3, r"(?<![.\w(])puts ['\"\w@#:\[(]"),
        (4, r"\.(each|map|times|select|reject|upto|each_with_index)(\(.*\))? (do|\{) ?\|"),
        (5, r"^\s*attr_(accessor|reader|writer) "),
        (3, r"^\s*require(_relative)? ['\"]"),
        (3, r"^\s*class [A-Z]\w*( < [A-Z]\w*)?\s*$"),
        (2, r"^\s*module [A-Z]\w*\s*$"),
        (1, r"^\s*end\s*$"),
        (1, r"#\{.+\}|\bunless\b|\belsif\b|@\w+ \|?\|?= "),
        (3, r"\d\.times\b|\.(nil\?|empty\?|to_s|to_i|inspect)\b"),
    ),
    "perl": (
        (7, r"^\s*use (strict|warnings|utf8|feature|[5v]5?[.\d]+)\b"),
        (4, r"\bmy (\(?[$@%]\w+)"),
        (3, r"=~ *(m|s|tr|qr|y)?[/{]"),
        (3, r"^\s*sub \w+ *\{"),
        (4, r"\bforeach my "),
        (3, r"\bprintf? .*\\n\"(, .+)?;"),
        (2, r"\b(chomp|qw\(|shift;|@ARGV|@_|%ENV|elsif)"),
    ),
    "php": ((12, r"<\?(php|=)"),),
    "lua": (
        (5, r"^\s*local \w+(, *\w+)* = |^\s*local function \w+"),
        (2, r"^\s*(if|elseif) [^;\[]+ then\s*$"),
        (3, r"\"\s*\.\.\s*\w|\w\s*\.\.\s*[\"']|\) \.\. "),
        (5, r"\bi?pairs\("),
        (4, r"\b(io\.write|io\.read|string\.\w+|table\.\w+|math\.\w+)\("),
        (5, r"^\s*for \w+ = .+, .+ do\b"),
        (2, r"^\s*function \w+([.:]\w+)?\(.*\)\s*$"),
        (1, r"^\s*end\)?\s*$|^\s*--"),
        (1, r"^\s*print\("),
    ),
    "bash": (
        (4, r"^\s*(fi|done|esac)\b"),
        (3, r"; *(then|do)\b"),
        (3, r"^\s*echo(\s|$)"),
        (2, r"(^|\s)\[\[? .+ \]\]?"),
        (1.5, r"\$\(.+\)|\$\{\w+|\"\$\w+"),
        (3, r"^\s*(export|local|readonly|declare|typeset)( -\w+)* \w+="),
        (1.5, r"^\w+=\S"),
        (3, r"^\s*(function )?[\w-]+ ?\(\) ?\{"),
        (3, r"\| *(grep|awk|sed|sort|wc|head|tail|tr|cut|xargs|uniq)\b"),
        (3, r"^\s*set -[euxo]"),
        (2.5, r"^\s*(ls|cd|mkdir|cat|rm|cp|mv|curl|touch|chmod|sleep|uname|pwd)( -\w| [/~.$\w]|$)"),
        (2, r"<<-? ?['\"]?EOF|2>&1|>/dev/null"),
    ),
    "r": (
        (5, r"\w+ <- function\("),
        (3.5, r"^\s*[\w.]+ <- ([\w.]+\(|\d|[\"'])"),
        (4, r"^\s*(library|require)\(\w+\)\s*$"),
        (4, r"\bpaste0?\(|\bdata\.frame\(|\b[slt]apply\(|\bseq_(along|len)\(|%in%|%>%"),
        (3, r"^\s*cat\("),
        (2, r"\bc\([\d\"]"),
        (1, r"\b(TRUE|FALSE)\b|\bfor \(\w+ in \w+"),
        (1, r"^\s*print\("),
    ),
    "elixir": (
        (7, r"^\s*defmodule [A-Z][\w.]* do"),
        (5, r"\bIO\.(puts|inspect|write)\b"),
        (4, r"^\s*defp? \w+[?!]?(\(.*\))?( when .+)? do\s*$"),
        (4, r"\bEnum\.\w+|\bString\.\w+\("),
        (1, r"\|> [A-Z]|\bfn .+ -> |&\(&1"),
    ),
    "erlang": (
        (6, r"^-(module|export|import|record|compile)\("),
        (7, r"\bio:(format|fwrite|put_chars)\("),
        (5, r"^main\(.*\) ->"),
        (4, r"\blists:\w+\(|\bspawn\(fun\b"),
        (1, r"^\w+\(.*\) (when .+ )?->"),
    ),
    "tcl": (
        (3, r"^\s*set \w+ [\"\[{$\w]"),
        (6, r"^\s*proc \w+ \{"),
        (5, r"\[expr\b|\bexpr \{"),
        (3, r"\bforeach \w+ [\[${]"),
        (3, r"\b(if|while|for) \{"),
        (4, r"\b(lappend|lindex|llength|dict set|namespace eval|package require|incr) "),
        (3.5, r"^\s*puts (stdout |-nonewline |\$\w+|\[|\{|[a-z]+\s*$)"),
        (2, r"^\s*puts \"[^#]*\$\w"),
    ),
    "scheme": (
        (6, r"\(define \(?[\w-]"),
        (5, r"\(display "),
        (4, r"\(newline\)|\(let loop \(|\(call/cc|\(set! "),
        (4, r"\(use-modules|\(import \("),
        (1.5, r"\(lambda \(|\(let\*? \(\(|\(c[ad]+r "),
    ),
    "commonlisp": (
        (6, r"\(defun "),
        (6, r"\(format t "),
        (5, r"\((defvar|defparameter|defmacro|defclass|set[fq]|do(list|times)|princ|write-line) "),
        (3, r"\(loop (for|while|repeat) "),
        (1, r"\(let\*? \(\(|\(lambda \("),
    ),
    "clojure": (
        (5, r"\(println\b"),
        (6, r"\(defn-? "),
        (4, r"\((def|ns|require|doseq|loop|when-let) [\[\w'(]"),
        (5, r"\((let|fn|doseq|for|loop) \["),
        (1.5, r"\((map|reduce|filter|str|->>?|range) "),
    ),
    "powershell": (
        (7, r"\bWrite-(Host|Output|Error|Verbose)\b"),
        (
            5,
            r"\b(Get|Set|New|ForEach|Where|Select|Out|Import|Export|Invoke|ConvertTo|Add|Remove|"
            r"Sort|Measure|Start|Test)-[A-Z]\w+",
        ),
        (5, r"^\s*function [A-Z]\w+-\w+"),
        (4, r"\[(string|int|bool|array|hashtable)(\[\])?\] ?\$"),
        (2, r"^\s*\$\w+ = [^;]*$"),
        (2, r"\$\w+ -(eq|ne|gt|lt|ge|le|like|match) |^\s*param ?\("),
    ),
    "crystal": (
        (5, r"^\s*def \w+[?!]?\(\w+ : [A-Z]|\) : (Nil|Int32|Int64|String|Bool|Float64|Void)\b"),
        (5, r"^\s*(property|getter|setter)[?!]? \w+ : |\bChannel\(\w+\)\.new"),
        (4, r"\b(Array|Hash|Slice)\((Int|String|Float|Char|Bool|Symbol)\w*|\bof (Int32|String)\b"),
        (3, r"^\s*spawn do|^require \"(http|json|yaml)/?\w*\""),
    ),
    "groovy": (
        (3.5, r"^\s*println [\"'\w$]"),
        (4, r"^\s*def \w+ = "),
        (4, r"^\s*def \w+\(.*\) \{"),
        (4, r"\.(each|collect|findAll|inject|times|any|every)(\(.*\))? ?\{ ?(?!\|)"),
        (7, r"^import groovy\b|^@Grab"),
        (1, r"\bit\b|\"[^\"]*\$\{"),
        (0.5, r"^\s*println\("),
    ),
    "awk": (
        (6, r"^\s*(BEGIN|END) *\{"),
        (5, r"^\s*/.+/ *\{"),
        (4, r"^\s*(\{|.+\{) *printf?\b.*\}\s*$"),
        (4, r"^\s*(\$\d+|N[RF]) *([=!<>]=?|~|%) *.+"),
        (2, r"\b(NR|NF|FS|OFS|RS|FNR|FILENAME|getline|gsub)\b"),
        (1, r"\$\d\b"),
    ),
    "raku": (
        (9, r"^\s*use v6"),
        (3, r"^\s*say [\"'$@(\w\[]"),
        (5, r"\bmy (Int|Str|Num|Rat|Bool|Array|Hash|UInt)(:D)? [$@%]"),
        (6, r"\bfor .+ -> \$\w+"),
        (6, r"\bhas (\w+ )?[$@%][.!]\w|^\s*(multi |proto )?sub MAIN|^\s*grammar \w+"),
        (4, r"\.say\b;?|\[[+*~]\]|»|\bgather\b|\bmulti (sub )?\w+\("),
        (3, r"^\s*sub [\w-]+\(.*[$@]\w.*\) *(is \w+ )?\{"),
        (1.5, r"\bmy [$@%]\w+ = |\bgiven \$|%%"),
    ),
    "c": (
        (5, r"^\s*#\s*include <(stdio|stdlib|string|math|stdint|stdbool|unistd|time|ctype)\.h>"),
        (2, r"^\s*#\s*include [<\"]"),
        (2, r"\bint main\("),
        (1, r"\bprintf\(|\bmalloc\(|\bsizeof\b|\bchar \*|^\s*#define \w"),
    ),
    "cpp": (
        (
            7,
            r"^\s*#\s*include <(iostream|vector|string|map|set|algorithm|memory|array|numeric|"
            r"functional|sstream|unordered_map|queue|thread|chrono|utility|optional|format)>",
        ),
        (4, r"\bstd::\w"),
        (4, r"\bcout *<<|\bcin *>>"),
        (5, r"^\s*using namespace \w+;"),
        (3, r"^\s*template *<|\bpublic:|\bnullptr\b|\bconstexpr\b"),
        (2, r"^\s*#\s*include [<\"]|\bint main\("),
    ),
    "go": (
        (7, r"^package main\b"),
        (2, r"^package \w+\s*$"),
        (5, r"\bfmt\.(Print|Sprint|Fprint|Scan|Errorf)"),
        (4, r"^import (\(|\")"),
        (4, r"^func (\(\w+ \*?\w+\) )?\w+\(.*\{"),
        (3, r"\berr != nil\b|\bgo func\b|\bdefer \w|\bmake\((chan|map|\[\])"),
        (1.5, r"\w := "),
    ),
    "rust": (
        (6, r"\b(e?println|print|vec|format|panic|assert|assert_eq|write|todo)!\s*[(\[]"),
        (5, r"\blet mut \w"),
        (6, r"^\s*use (std|crate|super)::"),
        (6, r"#!?\[(derive|allow|cfg|test)\b"),
        (4, r"\.unwrap\(\)|\bimpl(<.+>)? \w+"),
        (3, r"\bfn \w+(<.+>)?\(.*\) -> "),
        (2, r"^\s*(pub )?fn main\(\)|&str\b|&mut |\b(i32|u64|usize|u8)\b"),
    ),
    "java": (
        (8, r"\bpublic static void main\(\s*(final )?String"),
        (8, r"\bSystem\.(out|err)\.print"),
        (6, r"^import (static )?javax?\..+;"),
        (3, r"^\s*(public |final |abstract )*(class|interface|enum|record) \w+.*[{)]"),
        (4, r"@Override\b|^package [\w.]+;"),
        (1, r"\bprivate (static )?(final )?\w+ \w+|\bnew \w+<"),
    ),
    "kotlin": (
        (7, r"^\s*(suspend )?fun main\("),
        (4, r"\bfun (<.+> )?(\w+\.)?\w+\("),
        (5, r"^\s*(data|sealed|open|inline) class |\bcompanion object\b"),
        (5, r"\b(mutable)?(listOf|mapOf|setOf|ListOf|MapOf)\(|\barrayOf\("),
        (2.5, r"^\s*val \w+( ?: ?[\w<>?]+)? = "),
        (3, r"\bwhen *(\(.*\))? \{"),
        (2, r": (Int|String|Boolean|Unit|Double|Long|Any)\b"),
        (0.5, r"\bprintln\("),
    ),
    "cobol": (
        (10, r"(?i)\bidentification\s+division\b"),
        (8, r"(?i)\bprocedure\s+division\b|\bprogram-id\b"),
        (4, r"(?i)^\s*stop run\b|\bworking-storage\b"),
    ),
    "fortran": (
        (6, r"(?i)^\s*implicit none\b"),
        (5, r"(?i)^\s*(end )?program \w+\s*$|^\s*(end )?subroutine \w+"),
        (6, r"(?i)^\s*print ?\*,|\bwrite ?\( ?\*, ?['*]"),
        (5, r"(?i)^\s*(integer|real|logical|character|double precision)\b.*:: "),
        (2, r"(?i)^\s*end ?(do|if)\b|^\s*call \w+"),
    ),
    "d": (
        (7, r"^\s*import std(\.\w+)+( : .+)?;"),
        (4, r"\bwritef?(ln)?\("),
        (3, r"\b(void|int) main\((string\[\] \w+)?\)"),
        (5, r"\bforeach ?\(.+;.+\)|\.(map|filter|reduce|to)!|\bto!\w"),
        (1, r"\bimmutable\b|^module \w+;|\bauto \w+ = "),
    ),
    "zig": (
        (10, r"@import\(\"std\"\)"),
        (6, r"\bstd\.(debug|io|mem|heap|ArrayList)\b"),
        (4, r"\bpub fn \w+\(.*\) !?\w+ \{|\bcomptime\b|\banyerror\b"),
        (2, r"\bconst \w+: \w+ = |\btry \w"),
    ),
    "nim": (
        (6, r"^\s*(proc|func|iterator|method) [\w`]+\*?(\[.*\])?\(.*\).*="),
        (6, r"^\s*for \w+ in .+\.\.<? ?[\w.]+:"),
        (5, r"^import .*\b(strutils|sequtils|strformat|tables|algorithm|asyncdispatch|sugar|std/)"),
        (8, r"^when isMainModule:"),
        (6, r"= (ref )?object\b|\bnewSeq\b|@\["),
        (3, r"^\s*(var|let|const|type)\s*$"),
        (3, r"^\s*discard\b|\bresult\.add\b|^\s*echo .+, |^\s*echo \w+\("),
        (2, r"^\s*echo [\"&$]"),
        (1, r"\w: (int|string|float|bool|seq\[)"),
    ),
    "v": (
        (6, r"^\s*mut \w+ := "),
        (6, r"\bfn \(\w+ (mut |&)?\w+\) \w+\("),
        (6, r"^module main\b"),
        (3, r"^(pub )?fn main\(\) \{"),
        (3, r"^\s*(pub )?fn \w+\([^&]*\) \??\[?\]?\w+ \{"),
        (3, r"'[^']*\$\{?\w+.*'\)"),
        (2.5, r"^\s*println\('"),
        (2, r"^\s*\w+ := |\bor \{"),
        (1.5, r"^import (os|math|time|net\.http|json|rand|strings)\s*$"),
    ),
    "objc": (
        (7, r"^\s*#import [<\"]"),
        (6, r"@(interface|implementation|autoreleasepool|property|protocol|selector)\b"),
        (6, r"\bNS(Log|String|Array|Object|Integer|Dictionary|Mutable\w+)\b"),
        (5, r"<objc/|\[\[\w+ alloc\] init"),
    ),
    "dart": (
        (10, r"^import 'dart:"),
        (7, r"^import 'package:"),
        (3, r"^\s*(void|Future<void>) main\((List<String> \w+)?\)( async)? (\{|=>)"),
        (3, r"^\s*print\(.*\);"),
        (2, r"\b(final|var|late|List<\w+>|String|int|double) \w+ = .+;"),
        (3, r"\brequired this\.|@override\b|\bfor \((final|var) \w+ in "),
        (1, r"'[^']*\$\{?\w+"),
    ),
    "julia": (
        (3, r"^\s*println\("),
        (2.5, r"^\s*function \w+!?\(.*\)(::\w+)?( where .+)?\s*$"),
        (5, r"^\s*using [A-Z]\w+(, ?\w+)*\s*$"),
        (5, r"\w::(Int|Float64|String|Int64|Number|Any|Vector|Real|AbstractString)\b"),
        (6, r"\bfor \w+ (in|=|∈) \w+:\w+"),
        (6, r"^\s*mutable struct |\b(push|append|sort|pop|map|filter|delete)!\("),
        (4, r"^\s*@(show|time|printf|assert|btime|inline)\b"),
        (5, r"^\w+\(\w+(, ?\w+)*\) = "),
        (1, r"^\s*end\s*$"),
        (2, r"\.[+*/^] ?\w|\w\.\("),
    ),
    "haskell": (
        (8, r"^main :: IO\b"),
        (5, r"^main = "),
        (5, r"\b(putStrLn|putStr|mapM_|getLine|forM_|interact)\b"),
        (4, r"^\w+'? :: .+"),
        (4, r"^import (qualified )?[A-Z]\w+(\.[A-Z]\w+)+|^import qualified "),
        (7, r"^module [A-Z][\w.]*( \(.*\))? where|^\{-# LANGUAGE"),
        (4, r"^data \w+.* = |\bderiving\b|^instance \w"),
        (1, r"^\s+where\b|\bdo\s*$|\w \$ \w"),
    ),
    "ocaml": (
        (7, r"\b(print_endline|print_string|print_int|print_newline|string_of_int)\b"),
        (7, r"\bPrintf\.s?printf\b"),
        (5, r"^let \(\) ="),
        (3, r"^let (rec )?\w+.* = .*;;|;;\s*$"),
        (3, r"\bList\.(iter|fold_left|iteri|rev|hd|tl)\b|[*+/-]\.\s"),
        (2, r"^\s*let rec |\bmatch \w+ with\b|\bfunction\s*$"),
        (1.5, r"\) in\s*$|\w in\s*$|\(\*.*\*\)"),
    ),
    "fsharp": (
        (8, r"\bprintfn? \""),
        (6, r"^open System\b"),
        (6, r"\blet mutable \w"),
        (10, r"\[<EntryPoint>\]"),
        (3, r"\b(Seq|Array|Map|Option)\.\w+ |\|> (List|Seq|Array)\.\w+"),
        (1.5, r"^let (rec |inline )?\w+( \w+| \(.*\))* =|\bmatch \w+ with\b"),
    ),
    "csharp": (
        (7, r"^\s*using [A-Z][\w.]*;"),
        (8, r"\bConsole\.(Write|Read)"),
        (8, r"\bstatic (async )?(void|int|Task) Main\("),
        (6, r"\{ get; (private )?(set|init); \}|\bforeach \(\w+ \w+ in "),
        (2, r"^\s*namespace [\w.]+|\bstring\[\] args\b|\bvar \w+ = new "),
        (1, r"^\s*(public |internal |static )*class \w+"),
    ),
    "prolog": (
        (6, r"^:- *\w+"),
        (6, r"^\w+(\(.*\))? *:-"),
        (2, r"\bnl\b *[.,]|\bwrite(ln)?\(.+\)[.,]|\bformat\(\""),
        (2, r"^[a-z]\w*\([a-z]\w*(, *[a-z]\w*)*\)\.\s*$"),
    ),
    "forth": (
        (6, r"^: \S+ .*;\s*(\\.*)?$|^: \S+( .*)?$"),
        (4, r"(^|\s)\.\" "),
        (6, r"\( [^()]*-- ?[^()]*\)"),
        (2, r"(?i)(^|\s)(cr|bye|emit|cells|allot)(\s|$)"),
        (3, r"(?i)(^|\s)(dup|swap|over|rot|drop)(\s|$)"),
        (5, r"^\s*\d+( \d+)* [-+*/] \.(\s|$)"),
    ),
}
_PATTERNS = {
    language: tuple((weight, re.compile(pattern, re.MULTILINE)) for weight, pattern in votes)
    for language, votes in _VOTES.items()
}


def detect(code: str) -> str | None:
    """The name of the language of a source, one of the 42; None when it cannot be told."""
    lines = code.split("\n", LINES_MAX)[:LINES_MAX]
    named = _from_shebang(lines[0])
    if named is not None:
        return named
    # Patterns that begin with blanks would try each of them as their beginning.
    shown = (line[:LINE_CHARACTERS_MAX].rstrip() for line in lines)
    text = "\n".join(_BLANKS.sub(" " * 8, line) for line in shown if line)
    votes = _count(text)
    best = max(votes, key=lambda language: votes[language])
    return best if votes[best] >= VOTES_MIN else None


def _from_shebang(line: str) -> str | None:
    found = _SHEBANG.match(line[:LINE_CHARACTERS_MAX])
    if found is None:
        return None
    program = (found[1] or found[2]).rpartition("/")[2].lower()
    return _PROGRAMS.get(program) or _PROGRAMS.get(_VERSION.sub("", program))


def _count(text: str) -> dict[str, float]:
    own = {
        language: sum(weight for weight, pattern in patterns if pattern.search(text))
        for language, patterns in _PATTERNS.items()
    }
    return {
        language: votes + sum(own[other] for other in _INHERITS.get(language, ()) if votes)
        for language, votes in own.items()
    }
