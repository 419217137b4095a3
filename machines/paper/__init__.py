"""The paper's table beside ours: `turtles paper`.

The paper backs its flows with 2,324 assertions over simulated APIs.  Here each of its rows is the
machines of that flow, explored with the engine and the store that production uses (`count`), and
the figures that the paper fixes, checked against the code that uses them (`figures`).  What counts
as one check, so that no loop can pad it:

    contract     a precondition, postcondition or invariant judged at one transition
    cell         one event in one state: applied, or refused without a trace
    fault        one transition with one thing that goes wrong at it, recovered from
    oracle       a rule of the engine, or of an environment's author, asked in one state
    figure       one named assertion, however many values it looks at

How often they were judged is told apart, and counts nothing.
"""
