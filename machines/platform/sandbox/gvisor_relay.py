"""One byte pipe in each direction, and many streams over it.  Standard library only.

gVisor lets no descriptor cross its kernel, and only pipes survive a checkpoint.  Both ends of the
pair of pipes run this file, so that the agent and the host's `Channel` speak over ordinary unix
sockets as elsewhere, and descriptors *seem* to pass:

    Channel <=unix=> Relay (host thread) <=pipes=> Relay (process 1 inside) <=unix=> agent

Frames: kind (1 byte), stream (4), size (4), payload.  Streams 0 and 1 are the agent's channel and
the doorman's.  A descriptor that arrives beside bytes of those (SCM_RIGHTS) stays where it is; PASS
names a new stream to the other end, which makes something of the same form (pipe, socket pair,
terminal), passes one end of that on beside the same bytes, and moves bytes between the two:

    DATA bytes | END no more bytes | CLOSE gone | CREDIT n more bytes are welcome
    PASS (parent, form, rows, columns): announces a stream; SIZE (rows, columns): of a terminal
    PAUSE -> PAUSED, then RESUME or RESET: nothing is under way in between (checkpoints)

A side may send only as many bytes of a stream as were welcome (credit), so that one slow reader
neither stops the others nor fills memory.  What breaks a rule is `Broken`: the relay ends, and with
it every stream.  Nothing else of the other side is believed.
"""

import collections
import contextlib
import fcntl
import os
import select
import socket
import stat
import struct
import termios
import threading
import time
import tty
from collections.abc import Callable
from typing import Any

DATA, PASS, CREDIT, END, CLOSE, SIZE, PAUSE, PAUSED, RESUME, RESET = range(10)
PIPE_WRITE, PIPE_READ, SOCKET, TERMINAL, LISTENING, ACCEPTED = range(6)
HEADER = struct.Struct(">BII")
PASSED = struct.Struct(">IBHH")
WINDOW_BYTES = 256 * 1024
FRAME_BYTES_MAX = 64 * 1024
OUTGOING_BYTES_MAX = 256 * 1024
BACKLOG_BYTES_MAX = 4 * 1024 * 1024
STREAMS_MAX = 1024
DESCRIPTORS_MAX = 2
LOOK_SECONDS = 0.2  # how often the size of a terminal is looked at
ACCEPTS_AT_ONCE = 16


class Broken(Exception):
    """The other side does not keep to the protocol, or is gone."""


class Stream:
    """One stream: our descriptor, and what may be read from it and must be written to it."""

    def __init__(self, number: int, descriptor: int, form: int = SOCKET) -> None:
        os.set_blocking(descriptor, False)
        self.number = number
        self.form = form
        self.socket = socket.socket(fileno=descriptor) if is_socket(descriptor) else None
        self.descriptor = descriptor
        self.reads = form != PIPE_READ
        self.credit = WINDOW_BYTES  # what we may still send
        self.welcome = WINDOW_BYTES  # what may still come
        self.owed = 0
        self.queue: collections.deque[tuple[bytes, list[int]]] = collections.deque()
        self.passing: list[int] = []  # announced, for the next bytes
        self.ended = False  # nothing more will come
        self.unheard = False  # what is read is for nobody
        self.size = terminal_size(descriptor) if form == TERMINAL else (0, 0)

    @property
    def carries(self) -> bool:
        """Whether descriptors travel beside its bytes."""
        return 0 <= self.number < 2

    def close(self) -> None:
        """Close all that it holds."""
        for each in (*self.passing, *(one for _, beside in self.queue for one in beside)):
            close(each)
        if self.socket is not None:
            self.socket.close()
        else:
            close(self.descriptor)


class Relay:
    """One end.  `run` serves until the other is gone; `post` works from any thread.

    Args:
        source, sink: descriptors of the two pipes; ours.
        first_number: of the streams that this side announces; 2 on the host, 3 inside.
        listening: makes the listening socket that stands for one at the other side.
        accepted: makes a connection to that.
        unused: whether no program has a terminal open any more; for a kernel where reading the
            master side does not say so.
    """

    def __init__(
        self,
        source: int,
        sink: int,
        first_number: int,
        listening: "Callable[[], socket.socket] | None" = None,
        accepted: "Callable[[], socket.socket] | None" = None,
        unused: "Callable[[int], bool] | None" = None,
    ) -> None:
        self.streams: dict[int, Stream] = {}
        self.next_number = first_number
        self.listening = listening
        self.accepted = accepted
        self.unused = unused
        self.looked = 0.0
        self.next_unheard = -1  # numbers that no frame can name
        self.holding = False
        self.deferred = bytearray()
        self.paused = threading.Event()
        self.over = threading.Event()
        self.posted: collections.deque[Callable[[], None]] = collections.deque()
        self.waking_lock = threading.Lock()
        self.woken, self.waking = os.pipe()
        os.set_blocking(self.woken, False)
        self.attach(source, sink)

    def attach(self, source: int, sink: int) -> None:
        """Go on over these pipes."""
        os.set_blocking(source, False)
        os.set_blocking(sink, False)
        self.source, self.sink = source, sink
        self.incoming = bytearray()
        self.outgoing = bytearray()

    def add(self, number: int, descriptor: int) -> None:
        """One of the two streams that exist from the start."""
        self.streams[number] = Stream(number, descriptor)

    def post(self, action: "Callable[[], None]") -> None:
        """Have `action` called by the serving thread."""
        self.posted.append(action)
        with self.waking_lock:  # after the end that number may be somebody else's
            if self.waking >= 0:
                os.write(self.waking, b"!")

    def run(self) -> None:
        """Serve until an end; then nothing is left open."""
        try:
            while not self.over.is_set():
                self.turn()
        except (Broken, OSError):
            pass
        finally:
            self.over.set()
            for stream in self.streams.values():
                stream.close()
            self.streams.clear()
            with self.waking_lock:
                for each in (self.source, self.sink, self.woken, self.waking):
                    close(each)
                self.waking = -1
            self.paused.set()  # whoever waits for it finds the sandbox dead

    # -- what the host asks for ------------------------------------------------------------------

    def hold(self) -> None:
        """Send nothing after PAUSE; `paused` is set once the other side has said all, too."""
        self.send(PAUSE, 0)
        self.holding = True

    def resume(self, source: int, sink: int) -> None:
        """Go on where we stopped, over other pipes."""
        for each in (self.source, self.sink):
            close(each)
        self.attach(source, sink)
        self.holding = False
        self.paused.clear()
        self.send(RESUME, 0)
        self.outgoing += self.deferred
        self.deferred.clear()
        for stream in self.streams.values():
            self.welcome_more(stream)

    def stop(self) -> None:
        """End it."""
        self.over.set()

    # -- one turn --------------------------------------------------------------------------------

    def turn(self) -> None:
        """Wait for something, and serve it."""
        poll = select.poll()
        poll.register(self.woken, select.POLLIN)
        if not self.paused.is_set():
            poll.register(self.source, select.POLLIN)
            if self.outgoing:
                poll.register(self.sink, select.POLLOUT)
        waiting: dict[int, Stream] = {}
        for stream in self.streams.values():
            if events := self.interest(stream):
                poll.register(stream.descriptor, events)
                waiting[stream.descriptor] = stream
        looks = any(stream.form == TERMINAL for stream in self.streams.values())
        ready = dict(poll.poll(LOOK_SECONDS * 1000 if looks else None))
        self.serve(ready, waiting)
        if looks and not self.holding and time.monotonic() - self.looked >= LOOK_SECONDS:
            self.looked = time.monotonic()
            self.look_at_terminals()
            self.flush()

    def interest(self, stream: Stream) -> int:
        """What to wait for at its descriptor."""
        room = len(self.outgoing) < OUTGOING_BYTES_MAX and not self.holding
        reads = stream.reads and stream.credit > 0 and room
        return (select.POLLIN if reads else 0) | (select.POLLOUT if stream.queue else 0)

    def serve(self, ready: "dict[int, int]", waiting: "dict[int, Stream]") -> None:
        """Whatever is possible now."""
        if self.woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self.woken, 4096)
            while self.posted:
                self.posted.popleft()()
        if self.source in ready and not self.paused.is_set():
            self.take()
        for descriptor, stream in waiting.items():
            events = ready.get(descriptor, 0)
            if events and stream.queue and self.streams.get(stream.number) is stream:
                self.write(stream)
            readable = events & ~select.POLLOUT and self.interest(stream) & select.POLLIN
            if readable and self.streams.get(stream.number) is stream:
                self.read(stream)
        self.flush()

    # -- from here to the other side -------------------------------------------------------------

    def send(self, kind: int, number: int, payload: bytes = b"") -> None:
        """Queue a frame; between PAUSE and RESUME, for later."""
        queue = self.deferred if self.holding else self.outgoing
        queue += HEADER.pack(kind, number, len(payload)) + payload
        if len(queue) > BACKLOG_BYTES_MAX:
            raise Broken("the other side does not listen")

    def flush(self) -> None:
        """Write what the pipe takes."""
        if not self.outgoing:
            return
        try:
            del self.outgoing[: os.write(self.sink, self.outgoing[:FRAME_BYTES_MAX])]
        except BlockingIOError:
            return

    def read(self, stream: Stream) -> None:
        """Take bytes, and descriptors, from our side."""
        if stream.form == LISTENING:
            self.accept(stream)
            return
        if stream.form == TERMINAL:  # what is typed after a change of size is seen after it
            self.look_at_size(stream)
        room = min(stream.credit, FRAME_BYTES_MAX)
        try:
            if stream.carries and stream.socket is not None:
                piece, came, _, _ = socket.recv_fds(stream.socket, room, DESCRIPTORS_MAX)
                for descriptor in came:
                    self.announce(descriptor, stream.number)
            else:
                piece = os.read(stream.descriptor, room)
        except BlockingIOError:
            return
        except OSError:  # a terminal's way of saying that its program ended, or a reset
            piece = b""
        if piece and stream.unheard:
            return
        if piece:
            stream.credit -= len(piece)
            self.send(DATA, stream.number, piece)
            return
        self.end_reading(stream)

    def end_reading(self, stream: Stream) -> None:
        """Nothing more comes from our side."""
        if stream.carries:
            raise Broken("a channel ended")
        stream.reads = False
        if not stream.unheard:
            self.send(END, stream.number)
        if stream.form != SOCKET or (stream.ended and not stream.queue):
            self.drop(stream, tell=False)

    def accept(self, stream: Stream) -> None:
        """Somebody connected to a listening socket that was passed."""
        if stream.socket is None:
            return
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                connection, _ = stream.socket.accept()
            except OSError:
                return
            if len(self.streams) >= STREAMS_MAX // 2:
                connection.close()
            else:
                self.announce(connection.detach(), stream.number, ACCEPTED)

    def announce(self, descriptor: int, parent: int, form: "int | None" = None) -> None:
        """Keep a descriptor, and have the other side make one like it."""
        found = form_of(descriptor) if form is None else form
        if len(self.streams) >= STREAMS_MAX:
            close(descriptor)
            raise Broken("too many streams")
        number, self.next_number = self.next_number, self.next_number + 2
        kept = {PIPE_WRITE: PIPE_READ, PIPE_READ: PIPE_WRITE, ACCEPTED: SOCKET}.get(found, found)
        stream = Stream(number, descriptor, kept)
        self.streams[number] = stream
        self.send(PASS, number, PASSED.pack(parent, found, *stream.size))

    def look_at_terminals(self) -> None:
        """Tell the other side of a terminal whose size was changed at ours, or which has ended."""
        for stream in [each for each in self.streams.values() if each.form == TERMINAL]:
            self.look_at_size(stream)
            if self.unused and self.unused(stream.descriptor) and not has_bytes(stream.descriptor):
                self.end_reading(stream)

    def look_at_size(self, stream: Stream) -> None:
        """Tell the other side of a new size."""
        if (size := terminal_size(stream.descriptor)) != stream.size:
            stream.size = size
            self.send(SIZE, stream.number, struct.pack(">HH", *size))

    # -- from the other side to here -------------------------------------------------------------

    def take(self) -> None:
        """Read the pipe, and do what whole frames say."""
        try:
            piece = os.read(self.source, 4 * FRAME_BYTES_MAX)
        except BlockingIOError:
            return
        if not piece:
            raise Broken("the other side is gone")
        self.incoming += piece
        while len(self.incoming) >= HEADER.size:
            kind, number, size = HEADER.unpack_from(self.incoming)
            if size > FRAME_BYTES_MAX:
                raise Broken("a frame is too long")
            if len(self.incoming) < HEADER.size + size:
                return
            payload = bytes(self.incoming[HEADER.size : HEADER.size + size])
            del self.incoming[: HEADER.size + size]
            self.obey(kind, number, payload)

    def obey(self, kind: int, number: int, payload: bytes) -> None:
        """One frame.  One of a stream that we have dropped already means nothing."""
        if kind == PASS:
            self.make(number, payload)
        elif kind == PAUSE and not self.holding:
            self.pause()
        elif kind == PAUSED and self.holding:
            self.paused.set()
        elif (stream := self.streams.get(number)) is not None:
            self.obey_for(stream, kind, payload)

    def obey_for(self, stream: Stream, kind: int, payload: bytes) -> None:
        """A frame of one stream."""
        if kind == DATA:
            stream.welcome -= len(payload)
            if stream.welcome < 0 or stream.ended:
                raise Broken("more bytes than were welcome")
            stream.queue.append((payload, stream.passing))
            stream.passing = []
            self.write(stream)
        elif kind == CREDIT and len(payload) == 4:
            stream.credit = min(stream.credit + int.from_bytes(payload, "big"), WINDOW_BYTES)
        elif kind == END:
            stream.ended = True
            self.write(stream)
        elif kind == CLOSE:
            self.drop(stream, tell=False)
        elif kind == SIZE and stream.form == TERMINAL and len(payload) == 4:
            stream.size = struct.unpack(">HH", payload)
            set_terminal_size(stream.descriptor, stream.size)
        else:
            raise Broken(f"frame {kind} of {len(payload)} bytes")

    def make(self, number: int, payload: bytes) -> None:
        """Make what stands here for a descriptor of the other side."""
        if len(payload) != PASSED.size or number % 2 == self.next_number % 2:
            raise Broken("a stream is announced wrongly")
        parent_number, form, rows, columns = PASSED.unpack(payload)
        parent = self.streams.get(parent_number)
        if number in self.streams or number < 2 or len(self.streams) >= STREAMS_MAX:
            raise Broken("a stream is announced twice, or too many are")
        if parent is None:
            self.send(CLOSE, number)
            return
        if form == ACCEPTED:
            self.make_accepted(number, parent)
            return
        if not parent.carries or len(parent.passing) >= DESCRIPTORS_MAX:
            raise Broken("a descriptor is passed where none may be")
        ours, theirs = self.pair(form, (rows, columns))
        parent.passing.append(theirs)
        self.streams[number] = Stream(number, ours, form)
        self.streams[number].reads &= form != LISTENING  # what listens here is served by another

    def make_accepted(self, number: int, parent: Stream) -> None:
        """Connect to our listening socket as somebody did to the other side's."""
        if parent.form != LISTENING or self.accepted is None:
            raise Broken("nothing listens there")
        try:
            self.streams[number] = Stream(number, self.accepted().detach())
        except OSError:
            self.send(CLOSE, number)

    def pair(self, form: int, size: "tuple[int, int]") -> "tuple[int, int]":
        """(the end that we keep, the end that is passed on)."""
        if form in (PIPE_WRITE, PIPE_READ):
            reading, writing = os.pipe()
            return (reading, writing) if form == PIPE_WRITE else (writing, reading)
        if form == SOCKET:
            ours, theirs = socket.socketpair()
            return ours.detach(), theirs.detach()
        if form == TERMINAL:
            master, slave = os.openpty()
            tty.setraw(slave)  # the real one is at the other side, and echoes there
            set_terminal_size(slave, size)
            return slave, master
        if form == LISTENING and self.listening is not None:
            listening = self.listening()
            return os.open("/dev/null", os.O_RDONLY), listening.detach()
        raise Broken(f"form {form}")

    def write(self, stream: Stream) -> None:
        """Give our side what came for it; then the end, when that has come."""
        while stream.queue:
            data, beside = stream.queue[0]
            try:
                if stream.carries and stream.socket is not None and beside:
                    sent = socket.send_fds(stream.socket, [data], beside)
                else:
                    sent = os.write(stream.descriptor, data)
            except BlockingIOError:
                return
            except OSError:
                self.drop(stream)
                return
            for descriptor in beside:
                close(descriptor)
            stream.queue.popleft()
            if sent < len(data):
                stream.queue.appendleft((data[sent:], []))
            stream.owed += sent
            if stream.owed >= WINDOW_BYTES // 4 and not self.holding:
                self.welcome_more(stream)
        if stream.ended:
            self.finish(stream)

    def finish(self, stream: Stream) -> None:
        """All that came was written."""
        if stream.socket is None or not stream.reads:
            self.drop(stream, tell=stream.reads)
            return
        with contextlib.suppress(OSError):
            stream.socket.shutdown(socket.SHUT_WR)

    def welcome_more(self, stream: Stream) -> None:
        """Tell that as many bytes may come as were written."""
        if stream.owed:
            self.send(CREDIT, stream.number, stream.owed.to_bytes(4, "big"))
            stream.welcome += stream.owed
            stream.owed = 0

    def drop(self, stream: Stream, *, tell: bool = True) -> None:
        """Forget a stream.  Without the agent's channel there is nothing left to do."""
        if stream.carries:
            raise Broken("a channel ended")
        self.streams.pop(stream.number, None)
        stream.close()
        if tell:
            self.send(CLOSE, stream.number)

    # -- inside: standing at a frame's boundary ---------------------------------------------------

    def pause(self) -> None:
        """Say all that is left, and PAUSED; then wait for what comes next, however long."""
        if self.incoming:
            raise Broken("something came after PAUSE")
        self.send(PAUSED, 0)
        os.set_blocking(self.sink, True)
        while self.outgoing:
            del self.outgoing[: os.write(self.sink, self.outgoing)]
        os.set_blocking(self.sink, False)
        os.set_blocking(self.source, True)
        header = b""
        while len(header) < HEADER.size:
            piece = os.read(self.source, HEADER.size - len(header))
            if not piece:
                raise Broken("the other side is gone")
            header += piece
        os.set_blocking(self.source, False)
        if HEADER.unpack(header)[0] == RESET:
            self.reset()

    def reset(self) -> None:
        """Another host has taken over: of our streams only the channels are left, as if new.

        What programs print is read on, for nobody: they must not end by it.
        """
        kept: dict[int, Stream] = {}
        for stream in self.streams.values():
            if stream.carries:
                kept[stream.number] = stream
            elif stream.form == PIPE_WRITE:
                stream.unheard = True
                stream.number, self.next_unheard = self.next_unheard, self.next_unheard - 1
                kept[stream.number] = stream
            else:
                stream.close()
            stream.credit = stream.welcome = WINDOW_BYTES
            stream.owed = 0
            stream.queue.clear()
        self.streams = kept


def form_of(descriptor: int) -> int:
    """What the other side must make to stand for a descriptor."""
    if is_socket(descriptor):
        with socket.socket(fileno=os.dup(descriptor)) as seen:
            listens = seen.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return LISTENING if listens else SOCKET
    if os.isatty(descriptor):
        return TERMINAL
    access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    return PIPE_WRITE if access == os.O_WRONLY else PIPE_READ


def is_socket(descriptor: int) -> bool:
    """Whether it is one."""
    return stat.S_ISSOCK(os.fstat(descriptor).st_mode)


def has_bytes(descriptor: int) -> bool:
    """Whether something can be read at once."""
    return bool(select.select([descriptor], [], [], 0)[0])


def terminal_size(descriptor: int) -> "tuple[int, int]":
    """(rows, columns)."""
    try:
        size: Any = struct.unpack("HHHH", fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return (0, 0)
    return size[0], size[1]


def set_terminal_size(descriptor: int, size: "tuple[int, int]") -> None:
    """Rows and columns of a terminal that may be gone."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


def close(descriptor: int) -> None:
    """Close what may be closed already."""
    with contextlib.suppress(OSError):
        os.close(descriptor)
