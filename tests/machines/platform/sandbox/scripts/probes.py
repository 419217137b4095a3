"""Runs inside a sandbox: tries to get out. Standard input: the host's canaries as JSON.

Prints one line a probe, `name: held|REACHED what | what it saw`, then {probe: [what was reached or
null, what it saw]} as JSON in the last line.
"""
# ruff: noqa: BLE001, PTH101, PTH108, PTH110, PTH112, PTH115, PTH123, PTH208, PTH211
# ruff: noqa: S103, S108, SIM115
# An attacker's script works with bare paths, and one failing probe must not hide the next.

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading

CANARIES = json.load(sys.stdin)
LIBC = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
PROBES = {}
SAW = []
NUMBERS = {  # x86_64, aarch64
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "mount": (165, 40),
    "umount2": (166, 39),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "clone": (56, 220),
    "clone3": (435, 435),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "sethostname": (170, 161),
    "clock_settime": (227, 112),
    "settimeofday": (164, 170),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "capset": (126, 91),
    "init_module": (175, 105),
    "kexec_load": (246, 104),
    "syslog": (103, 116),
    "acct": (163, 89),
    "swapon": (167, 224),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "mknodat": (259, 33),
}


def probe(function):
    PROBES[function.__name__] = function
    return function


def note(what, error=None):
    code = "" if error is None else f" {errno.errorcode.get(error, error)}"
    SAW.append(f"{what}{code}")


def call(name, *arguments):
    """A raw system call; its result, or None when it was refused."""
    result = LIBC.syscall(ctypes.c_long(NUMBERS[name][0 if X86 else 1]), *arguments)
    note(name, ctypes.get_errno()) if result == -1 else note(f"{name} = {result}")
    return None if result == -1 else result


def reached(calls):
    """Names of the calls that were let through, or None."""
    return [name for name, result in calls.items() if result is not None] or None


def opens(path, flags=os.O_RDONLY):
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        note(f"open {path}", error.errno)
        return False
    note(f"open {path} worked")
    return True


def tries(what, function, *arguments):
    """Whether it worked."""
    try:
        function(*arguments)
    except OSError as error:
        note(what, error.errno)
        return False
    note(f"{what} worked")
    return True


def runs(*argv):
    """What a program prints when it ends well; None when it does not, or is absent."""
    try:
        done = subprocess.run(argv, capture_output=True, timeout=10, stdin=subprocess.DEVNULL)
    except OSError as error:
        note(argv[0], error.errno)
        return None
    said = (done.stdout + done.stderr).decode(errors="replace").strip()
    note(f"{' '.join(argv)} -> {done.returncode} {said[:80]}")
    return done.stdout.decode() if done.returncode == 0 else None


def ours():
    """The agent and the doorman."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":  # bubblewrap's has the same words among its arguments
            with contextlib.suppress(OSError):
                line = open(f"/proc/{name}/cmdline", "rb").read().split(b"\0")
                if b"/run/turtles/agent.py" in line and b"--cells" not in line:
                    found.append(int(name))
    if len(found) != 2:
        raise LookupError(f"the agent and the doorman were looked for, found {found}")
    return found


# -- processes -----------------------------------------------------------------------------------


@probe
def host_processes():
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    note(f"{len(pids)} processes")
    return pids if len(pids) > 8 else None


@probe
def kill_host():
    """The number may exist inside as well: then it is one of ours, which is no probe."""
    try:
        os.kill(CANARIES["victim"], 0)
    except ProcessLookupError as error:
        note("kill", error.errno)
        return None
    except PermissionError:
        return "it is visible"
    return None if os.path.exists(f"/proc/{CANARIES['victim']}") else "it was signalled"


@probe
def ptrace_ours():
    return [pid for pid in [1, *ours()] if call("ptrace", 16, pid, 0, 0) is not None] or None


@probe
def ptrace_child():
    """The filter alone forbids this one: a program may usually trace its own child."""
    child = os.fork()
    if child == 0:
        threading.Event().wait()
    attached = call("ptrace", 0x4206, child, 0, 0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "seized" if attached is not None else None


@probe
def read_our_memory():
    buffer = ctypes.create_string_buffer(64)
    here = struct.pack("PN", ctypes.addressof(buffer), 64)
    there = struct.pack("PN", 0x400000, 64)
    return [
        f"{name} {pid}"
        for pid in [1, *ours(), os.getppid()]
        for name in ("process_vm_readv", "process_vm_writev")
        if call(name, pid, here, 1, there, 1, 0) is not None
    ] or None


@probe
def open_our_memory():
    kinds = ("mem", "environ", "auxv", "maps", "pagemap", "ns/net")
    paths = [f"/proc/{pid}/{kind}" for pid in ours() for kind in kinds]
    return [path for path in paths if opens(path)] or None


@probe
def our_descriptors():
    found = []
    for pid in ours():
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError as error:
            note(f"/proc/{pid}/fd", error.errno)
            continue
        found += [name for name in names if opens(f"/proc/{pid}/fd/{name}", os.O_PATH)]
    return found or None


@probe
def take_our_descriptors():
    taken = []
    for pid in [1, *ours()]:
        watch = os.pidfd_open(pid)
        taken += [fd for fd in range(3, 8) if call("pidfd_getfd", watch, fd, 0) is not None]
        os.close(watch)
    return taken or None


@probe
def first_process():
    """bubblewrap's process 1 has our rights: it must have no more, and hold no file of the host."""
    with open("/proc/1/status") as status:
        fields = dict(line.split(":", 1) for line in status if ":" in line)
    found = []
    if int(fields["CapEff"], 16) or fields["Seccomp"].strip() != "2":
        found.append("it has more rights")
    for name in os.listdir("/proc/1/fd"):
        target = os.readlink(f"/proc/1/fd/{name}")
        note(target)
        if target.startswith("/") and target != "/dev/null":
            found.append(target)
    return found or None


@probe
def inherited_descriptors():
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            note(f"{name} -> {target}")
            if int(name) > 2 and not target.endswith("/fd"):
                found.append(f"{name}: {target}")
    return found or None


# -- files ---------------------------------------------------------------------------------------


@probe
def host_secrets():
    paths = ["/etc/shadow", "/root/.ssh", "/home", "/var/log", "/boot", "/sys/kernel", "/work"]
    return [path for path in paths if os.path.exists(path)] or None


@probe
def canary_file():
    return opens(CANARIES["file"]) or None


@probe
def other_roots():
    places = ("/proc/1/root", "/proc/self/root", "/proc/self/cwd/../../../../..", "/root/../..")
    return [path for path in places if opens(path + CANARIES["file"])] or None


@probe
def write_outside():
    places = ["/usr", "/etc", "/", "/dev", "/run", "/run/turtles", "/var", "/lib", "/etc/ssl/certs"]
    flags = os.O_WRONLY | os.O_CREAT
    made = [place for place in places if opens(f"{place}/turtles-probe", flags)]
    files = ["/usr/bin/env", "/etc/passwd", "/run/turtles/agent.py"]
    for directory, _, names in os.walk("/opt"):  # a toolbox, where there is one
        made += [directory] if opens(f"{directory}/turtles-probe", flags) else []
        files += [f"{directory}/{name}" for name in names]
    return made + [path for path in files if opens(path, os.O_WRONLY)] or None


@probe
def symbolic_links():
    """An absolute link means a path of this root, wherever it stands."""
    os.symlink(CANARIES["file"], "/tmp/link")
    os.symlink("/proc/1/root" + CANARIES["file"], "/tmp/link2")
    os.symlink("../../../../../.." + CANARIES["file"], "/tmp/link3")
    found = [path for path in ("/tmp/link", "/tmp/link2", "/tmp/link3") if opens(path)]
    for path in ("/tmp/link", "/tmp/link2", "/tmp/link3"):
        os.unlink(path)
    return found or None


@probe
def hard_links():
    """A second name for a file of the host, in a place that can be written."""
    found = []
    for path in ("/usr/bin/env", "/etc/passwd", "/run/turtles/agent.py", "/proc/self/exe"):
        if tries(f"link {path}", lambda one: os.link(one, "/tmp/hard"), path):
            found.append(path)
            os.unlink("/tmp/hard")
    return found or None


@probe
def suid_programs():
    """No program may raise rights: mounts are nosuid, new privileges are off."""
    flags = open("/proc/self/status").read()
    mounts = {line.split()[1]: line.split()[3] for line in open("/proc/mounts")}
    loose = [place for place in ("/usr", "/root", "/tmp") if "nosuid" not in mounts[place]]
    return None if "NoNewPrivs:\t1" in flags and not loose else f"can be gained {loose}"


@probe
def file_handles():
    handle = ctypes.create_string_buffer(struct.pack("II", 128, 0) + bytes(128), 136)
    mount_id = ctypes.c_int()
    tried = {
        "name_to_handle_at": call("name_to_handle_at", -100, b"/", handle, mount_id, 0),
        "open_by_handle_at": call("open_by_handle_at", -100, handle, 0),
    }
    return reached(tried)


@probe
def devices():
    names = ("mem", "kmem", "kvm", "vda", "sda", "port", "fuse", "net/tun", "vsock", "kmsg", "vcs")
    found = [name for name in names if os.path.exists(f"/dev/{name}")]
    for number in (0xFE00, 0x0101, 0x0103):
        for kind in (stat.S_IFBLK, stat.S_IFCHR):
            if call("mknodat", -100, b"/tmp/device", kind | 0o600, number) is not None:
                found.append(f"mknod {kind:o} {number:x}")
    return found + [path for path in ("/proc/kcore", "/proc/kmem") if opens(path)] or None


@probe
def device_nodes():
    """Nothing but null, zero, full, random, urandom, tty, ptmx and terminals of its own."""
    harmless = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)}
    found = []
    for folder, _, names in os.walk("/dev"):
        for name in names:
            status = os.lstat(f"{folder}/{name}")
            where = (os.major(status.st_rdev), os.minor(status.st_rdev))
            special = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
            if special and where not in harmless and where[0] != 136:
                found.append(f"{folder}/{name} {where}")
            note(f"{name} {where}")
    return found or None


# -- the network ---------------------------------------------------------------------------------


def answers(port, host="127.0.0.1"):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(2)
        return client.connect_ex((host, port)) == 0


@probe
def host_port():
    return answers(CANARIES["port"]) or None


@probe
def every_port():
    """Only the way to the proxy answers, and that in a semitrusted sandbox only."""
    listening = []
    for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        rows = [line.split() for line in open(f"/proc/net/{kind}").read().splitlines()[1:]]
        own = [row for row in rows if kind[:3] != "tcp" or row[3] == "0A"]
        listening += [int(row[1].split(":")[1], 16) for row in own]
    likely = {*range(1, 1025), 3128, 5000, 8000, 8080, 8443, 9000, CANARIES["port"]}
    found = [port for port in sorted(likely) if answers(port)]
    found6 = [port for port in (CANARIES["port"], 3128) if answers(port, "::1")]
    note(f"listening {listening}, answering {found} {found6}")
    wanted = CANARIES["ports"]
    held = (sorted(listening), found, found6) == (wanted, wanted, [])
    return None if held else listening + found + found6


@probe
def routes():
    found = [line for line in open("/proc/net/route").read().splitlines()[1:] if line.strip()]
    for host in ("192.0.2.1", "10.0.0.1", "169.254.169.254", "8.8.8.8", *CANARIES["addresses"]):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
            if tries(f"UDP {host}", datagram.connect, (host, 53)):
                found.append(host)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagram:
        if tries("UDP 2001:db8::1", datagram.connect, ("2001:db8::1", 53)):
            found.append("IPv6")
    interfaces = [name for _, name in socket.if_nameindex() if name != "lo"]
    return found + interfaces or None


@probe
def names():
    try:
        return str(socket.getaddrinfo("example.test", 80))
    except OSError as error:
        note(f"getaddrinfo: {error}")
    return None


@probe
def change_the_network():
    """Take `lo` down, or give it an address."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        down = struct.pack("16sh14x", b"lo", 0)
        address = struct.pack("16sHH4s8x", b"lo", socket.AF_INET, 0, bytes((10, 9, 8, 7)))
        for name, number, request in (("down", 0x8914, down), ("address", 0x8916, address)):
            if tries(name, fcntl.ioctl, control, number, request):
                found.append(name)
    return found or None


def makes_socket(family, kind, protocol=0):
    def make():
        socket.socket(family, kind, protocol).close()

    return "a socket was made" if tries(f"socket {family} {kind}", make) else None


@probe
def socket_raw():
    return makes_socket(socket.AF_INET, socket.SOCK_RAW, 1) or makes_socket(
        socket.AF_INET6, socket.SOCK_RAW, 58
    )


@probe
def socket_packet():
    return makes_socket(17, socket.SOCK_RAW) or makes_socket(17, socket.SOCK_DGRAM)


@probe
def socket_vsock():
    return makes_socket(40, socket.SOCK_STREAM) or makes_socket(40, socket.SOCK_DGRAM)


@probe
def socket_algorithm():
    return makes_socket(38, 5)


@probe
def socket_netlink_other():
    return makes_socket(16, socket.SOCK_RAW, 12)


@probe
def socket_families():
    """Nothing but UNIX, INET, INET6 and NETLINK."""
    found = [number for number in range(3, 46) if number not in (10, 16)]
    return [
        number for number in found if any(makes_socket(number, kind) for kind in (1, 2, 5))
    ] or None


@probe
def socket_protocols():
    """SCTP, UDP-Lite, L2TP, MPTCP: surface of the kernel that nobody needs here."""
    tried = ((1, 132), (5, 132), (2, 136), (6, 33), (2, 115), (1, 262))
    return [number for kind, number in tried if makes_socket(socket.AF_INET, kind, number)] or None


@probe
def abstract_socket():
    with socket.socket(socket.AF_UNIX) as client:
        worked = tries("connect", client.connect, "\0" + CANARIES["abstract"])
    return "connected" if worked else None


# -- rights --------------------------------------------------------------------------------------


@probe
def become_someone():
    found = []
    if tries("setuid", os.setuid, 1000) or tries("setgid", os.setgid, 1000):
        found.append("setuid")
    if tries("setgroups", os.setgroups, [0, 4]):
        found.append("setgroups")
    shutil.copy("/usr/bin/id", "/tmp/id")
    if tries("chown", os.chown, "/tmp/id", 1, 1):
        found.append("chown")
    os.chmod("/tmp/id", 0o6755)
    if (said := runs("/tmp/id")) and "uid=0(root) gid=0(root)" not in said:
        found.append(said)
    with open("/proc/self/status") as status:
        found += [line for line in status if line.startswith("CapEff") and int(line[8:], 16)]
    return found or None


@probe
def rights_programs():
    show = "grep CapEff /proc/self/status"
    tried = [runs("su", "-c", show), runs("sudo", "-n", "sh", "-c", show)]
    return [said for said in tried if said and int(said.split()[1], 16)] or None


@probe
def regain_capabilities():
    header = struct.pack("Ii", 0x20080522, 0)
    data = struct.pack("IIIIII", *[0xFFFFFFFF] * 6)
    found = {"capset": call("capset", header, data)}
    ambient = LIBC.prctl(47, 2, 21, 0, 0)  # PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN
    privileges = LIBC.prctl(38, 0, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    found["ambient"] = None if ambient == -1 else ambient
    found["new privileges"] = None if privileges == -1 else privileges
    return reached(found)


@probe
def user_map():
    found = []
    for name, line in (
        ("uid_map", b"0 0 65536\n"),
        ("gid_map", b"0 0 1\n"),
        ("setgroups", b"allow"),
    ):

        def write(path=f"/proc/self/{name}", text=line):
            with open(path, "wb", buffering=0) as file:
                file.write(text)

        if tries(name, write):
            found.append(name)
    return found or None


@probe
def raise_limits():
    found = []
    for name in ("RLIMIT_NPROC", "RLIMIT_DATA", "RLIMIT_CORE"):
        number = getattr(resource, name)
        _, hard = resource.getrlimit(number)
        note(f"{name} {hard}")
        if hard == resource.RLIM_INFINITY:
            continue
        with contextlib.suppress(ValueError, PermissionError):
            resource.setrlimit(number, (hard + 1, hard + 1))
            found.append(name)
    if resource.getrlimit(resource.RLIMIT_NPROC)[1] == resource.RLIM_INFINITY:
        found.append("no limit of processes")
    if not 0 <= resource.getrlimit(resource.RLIMIT_CORE)[1] <= 1:
        found.append("core dumps reach the host's handler")
    return found or None


@probe
def spare_oneself():
    """Be the last to go when memory is short."""

    def write():
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-900")

    return "spared" if tries("oom_score_adj", write) else None


@probe
def nested_namespaces():
    flags = {"user": 0x10000000, "mount": 0x20000, "net": 0x40000000, "pid": 0x20000000}
    found = [name for name, flag in flags.items() if call("unshare", flag) is not None]
    watch = os.pidfd_open(1)
    if call("setns", watch, 0x10000000) is not None:
        found.append("setns")
    os.close(watch)
    child = call("clone", 0x10000000 | 17, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    if child is not None:
        os.waitpid(child, 0)
        found.append("clone")
    arguments = struct.pack("QQQQQQQQ", 0x10000000, 0, 0, 0, 17, 0, 0, 0)
    child = call("clone3", arguments, len(arguments))
    if child == 0:
        os._exit(0)
    if child is not None:
        os.waitpid(child, 0)
        found.append("clone3")
    return found or None


@probe
def nesting_programs():
    tried = {
        "unshare": runs("unshare", "-U", "true"),
        "unshare -r": runs("unshare", "-rmn", "true"),
        "nsenter": runs("nsenter", "-t", "1", "-U", "-n", "true"),
        "bwrap": runs("bwrap", "--unshare-user", "--ro-bind", "/", "/", "true"),
        "chroot": runs("chroot", "/tmp", "true"),
    }
    return reached(tried)


# -- kernel surface ------------------------------------------------------------------------------


@probe
def mount():
    tried = {
        "tmpfs": call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
        "remount": call("mount", b"none", b"/proc", None, 0x20 | 0x1000, None),
        "writable": call("mount", b"none", b"/", None, 0x20, None),
        "umount": call("umount2", b"/run/turtles/agent.py", 2),
        "move": call("move_mount", -1, b"/", -1, b"/tmp", 0),
        "fsopen": call("fsopen", b"tmpfs", 0),
        "open_tree": call("open_tree", -100, b"/", 1),
        "mount_setattr": call("mount_setattr", -100, b"/", 0, bytes(32), 32),
    }
    return reached(tried)


@probe
def other_root_calls():
    tried = {
        "chroot": call("chroot", b"/tmp"),
        "pivot_root": call("pivot_root", b"/tmp", b"/tmp"),
    }
    return reached(tried)


@probe
def keyctl():
    return "session keyring" if call("keyctl", 0, -3, 0) is not None else None


@probe
def add_key():
    result = call("add_key", b"user", b"turtles", b"x", 1, -3)
    return "key added" if result is not None else None


@probe
def request_key():
    """Without the filter the kernel says that there is no such key."""
    call("request_key", b"user", b"turtles-nothing", None, 0)
    return "the kernel looked for it" if ctypes.get_errno() == errno.ENOKEY else None


@probe
def bpf():
    """Whatever the kernel itself answers to a command that does not exist, it was reached."""
    call("bpf", 9999, ctypes.create_string_buffer(128), 128)
    return "the kernel looked at it" if ctypes.get_errno() == errno.EINVAL else None


@probe
def kernel_surfaces():
    attribute = ctypes.create_string_buffer(128)
    tried = {
        "perf": call("perf_event_open", attribute, 0, -1, -1, 0),
        "io_uring": call("io_uring_setup", 4, ctypes.create_string_buffer(120)),
        "userfaultfd": call("userfaultfd", 1),
        "fanotify": call("fanotify_init", 0, 0),
        "init_module": call("init_module", attribute, 0, b""),
        "kexec_load": call("kexec_load", 0, 0, None, 0),
        "kcmp": call("kcmp", os.getpid(), os.getpid(), 0, 0, 0),
        "syslog": call("syslog", 3, attribute, 128),
        "acct": call("acct", None),
        "swapon": call("swapon", b"/tmp/swap", 0),
    }
    return reached(tried)


@probe
def other_architecture():
    """A 32-bit system call from a 64-bit program: other numbers, which the filter does not know."""
    if not X86:
        return None
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
        address = ctypes.addressof(ctypes.c_char.from_buffer(code))
        os._exit(0 if ctypes.CFUNCTYPE(ctypes.c_int)(address)() > 0 else 1)
    how = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    note(f"it ended with {how}")
    x32 = LIBC.syscall(ctypes.c_long(0x40000000 | 39))
    return "a 32-bit call was served" if how == 0 or x32 != -1 else None


@probe
def kernel_settings():
    paths = (
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hostname",
        "/proc/sys/user/max_user_namespaces",
        "/proc/irq/default_smp_affinity",
        "/proc/bus",
        "/proc/fs",
    )
    return [path for path in paths if not os.path.isdir(path) and opens(path, os.O_WRONLY)] or None


@probe
def cgroup_files():
    lines = open("/proc/mounts").read().splitlines()
    note(open("/proc/self/cgroup").read().replace("\n", " "))
    return [line for line in lines if " cgroup" in line or " sysfs " in line] or None


@probe
def shared_memory():
    """What the host keeps under a key."""
    key = CANARIES["key"]
    tried = {
        "shm": call("shmget", key, 0, 0),
        "msg": call("msgget", key, 0),
        "sem": call("semget", key, 0, 0),
    }
    return reached(tried)


@probe
def uncounted_memory():
    """Segments of System V live on without a process."""
    tried = {"shmget": call("shmget", 0, 1 << 20, 0o1600)}
    return reached(tried)


@probe
def clock_and_name():
    moved = struct.pack("qq", 0, 0)
    tried = {
        "clock": call("clock_settime", 0, moved),
        "time": call("settimeofday", moved, None),
        "name": call("sethostname", b"owned", 5),
    }
    return reached(tried)


@probe
def terminal_injection():
    """Type into a terminal, our own here; the host's must not be at hand at all."""
    master, slave = os.openpty()
    injected = tries("TIOCSTI", fcntl.ioctl, slave, 0x5412, b"x")
    os.close(master)
    os.close(slave)
    return "injected" if injected or opens("/dev/tty", os.O_RDWR) else None


# -- what is told --------------------------------------------------------------------------------


@probe
def environment_leak():
    known = {"HOME", "PATH", "LANG", "USER", "PWD", "LC_CTYPE", *CANARIES["variables"]}
    found = sorted(set(os.environ) - known)
    for name in ("1", "self", *map(str, ours())):
        with contextlib.suppress(OSError):
            if CANARIES["secret"].encode() in open(f"/proc/{name}/environ", "rb").read():
                found.append(f"/proc/{name}/environ")
    return found or None


@probe
def argument_leak():
    line = open("/proc/1/cmdline", "rb").read()
    note(line.decode(errors="replace").replace("\0", " "))
    return line.decode() if b"--ro-bind" in line or CANARIES["root"].encode() in line else None


@probe
def host_paths():
    """Where the platform keeps its things."""
    files = ("/proc/self/mountinfo", "/proc/1/mountinfo", "/run/turtles/agent.py")
    return [path for path in files if CANARIES["root"] in open(path).read()] or None


def main():
    results = {}
    for name, function in PROBES.items():
        SAW.clear()
        try:
            what = function()
        except Exception as error:
            what = f"the probe itself failed: {error!r}"
        saw = "; ".join(SAW[:12])[:400]
        print(f"{name}: {'held' if what is None else f'REACHED {what}'} | {saw}")
        results[name] = [what, saw]
    print(json.dumps(results))


main()
