"""Runs inside a sandbox: tries to get out. Standard input: the host's canaries as JSON.

Prints {probe: null when the wall held, else what was reached}.
"""
# ruff: noqa: BLE001, PTH110, PTH115, PTH123, PTH208, S108, SIM115
# An attacker's script works with bare paths, and one failing probe must not hide the next.

import contextlib
import ctypes
import fcntl
import json
import os
import platform
import shutil
import socket
import struct
import sys
import threading

CANARIES = json.load(sys.stdin)
LIBC = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
PROBES = {}


def probe(function):
    PROBES[function.__name__] = function
    return function


def call(name, *arguments):
    """A raw system call; its result, or None when it was refused."""
    numbers = {
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "keyctl": (250, 219),
        "add_key": (248, 217),
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "io_uring_setup": (425, 425),
        "userfaultfd": (323, 282),
        "mount": (165, 40),
        "unshare": (272, 97),
        "setns": (308, 268),
        "pivot_root": (155, 41),
        "chroot": (161, 51),
        "sethostname": (170, 161),
        "clock_settime": (227, 112),
        "open_by_handle_at": (304, 265),
        "clone3": (435, 435),
        "umount2": (166, 39),
        "move_mount": (429, 429),
        "shmat": (30, 196),
        "shmget": (29, 194),
        "capset": (126, 91),
        "init_module": (175, 105),
        "reboot": (169, 142),
        "clone": (56, 220),
        "pidfd_getfd": (438, 438),
        "mknodat": (259, 33),
    }
    result = LIBC.syscall(ctypes.c_long(numbers[name][0 if X86 else 1]), *arguments)
    return None if result == -1 else result


def opens(path, flags=os.O_RDONLY):
    try:
        os.close(os.open(path, flags))
    except OSError:
        return False
    return True


def agent_pid():
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":  # bubblewrap's has the same words among its arguments
            with contextlib.suppress(OSError):
                if b"agent.py" in open(f"/proc/{name}/cmdline", "rb").read():
                    return int(name)
    raise LookupError("the agent was not found")


@probe
def host_processes():
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    return f"{len(pids)} processes" if len(pids) > 8 else None


@probe
def host_secrets():
    paths = ["/etc/shadow", "/root/.ssh", "/home", "/var/log", "/boot", "/sys/kernel", "/work"]
    return [path for path in paths if os.path.exists(path)] or None


@probe
def canary_file():
    return os.path.exists(CANARIES["file"]) or None


@probe
def write_outside():
    places = ["/usr", "/etc", "/", "/dev", "/run", "/run/turtles", "/var", "/lib", "/etc/ssl/certs"]
    flags = os.O_WRONLY | os.O_CREAT
    made = [place for place in places if opens(f"{place}/turtles-probe", flags)]
    return (
        made + [path for path in ("/usr/bin/env", "/etc/passwd") if opens(path, os.O_WRONLY)]
        or None
    )


@probe
def loopback_port():
    try:
        socket.create_connection(("127.0.0.1", CANARIES["port"]), timeout=2).close()
    except OSError:
        return None
    return "connected"


@probe
def network():
    found = [line for line in open("/proc/net/route").read().splitlines()[1:] if line.strip()]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(("192.0.2.1", 53))
        found.append("UDP went out")
    with contextlib.suppress(OSError):
        socket.getaddrinfo("example.test", 80)
        found.append("DNS answered")
    interfaces = [name for _, name in socket.if_nameindex() if name != "lo"]
    return found + interfaces or None


def makes_socket(family, kind, protocol=0):
    try:
        socket.socket(family, kind, protocol).close()
    except OSError:
        return None
    return "a socket was made"


@probe
def socket_raw():
    return makes_socket(socket.AF_INET, socket.SOCK_RAW, 1)


@probe
def socket_packet():
    return makes_socket(17, socket.SOCK_RAW)


@probe
def socket_vsock():
    return makes_socket(40, socket.SOCK_STREAM)


@probe
def socket_algorithm():
    return makes_socket(38, 5)


@probe
def socket_netlink_other():
    return makes_socket(16, socket.SOCK_RAW, 12)


@probe
def mount():
    tried = [
        call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
        call("mount", b"none", b"/proc", None, 0x20 | 0x1000, None),
        call("umount2", b"/run/turtles/agent.py", 2),
        call("move_mount", -1, b"/", -1, b"/tmp", 0),
    ]
    return "mounted" if any(result is not None for result in tried) else None


@probe
def ptrace_agent():
    return "attached" if call("ptrace", 16, agent_pid(), 0, 0) is not None else None


@probe
def ptrace_child():
    """The filter alone forbids this one: a program may usually trace its own child."""
    child = os.fork()
    if child == 0:
        threading.Event().wait()
    attached = call("ptrace", 0x4206, child, 0, 0)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "seized" if attached is not None else None


@probe
def agent_memory():
    return opens(f"/proc/{agent_pid()}/mem", os.O_RDWR) or None


@probe
def agent_descriptors():
    folder = f"/proc/{agent_pid()}/fd"
    return [name for name in os.listdir(folder) if opens(f"{folder}/{name}", os.O_PATH)] or None


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
        if target.startswith("/") and target != "/dev/null":
            found.append(target)
    return found or None


@probe
def kill_host():
    try:
        os.kill(CANARIES["victim"], 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "it is visible"
    return "it was signalled"


@probe
def other_roots():
    reached = []
    for path in ("/proc/1/root", "/proc/self/root", "/proc/self/cwd/../../../../.."):
        if os.path.exists(path + CANARIES["file"]):
            reached.append(path)
    return reached or None


@probe
def abstract_socket():
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect("\0" + CANARIES["abstract"])
        except OSError:
            return None
    return "connected"


@probe
def devices():
    names = ("mem", "kmem", "kvm", "vda", "sda", "port", "fuse", "net/tun", "vsock", "kmsg")
    found = [name for name in names if os.path.exists(f"/dev/{name}")]
    if call("mknodat", -100, b"/tmp/disk", 0o60600, 0xFE00) is not None:
        found.append("mknod")
    if opens("/proc/kcore"):
        found.append("kcore")
    return found or None


@probe
def keyctl():
    return "session keyring" if call("keyctl", 0, -3, 0) is not None else None


@probe
def add_key():
    result = call("add_key", b"user", b"turtles", b"x", 1, -3)
    return "key added" if result is not None else None


@probe
def become_someone():
    found = []
    with contextlib.suppress(OSError):
        os.setuid(1000)
        found.append("setuid")
    with contextlib.suppress(OSError):
        shutil.copy("/usr/bin/id", "/tmp/id")
        os.chown("/tmp/id", 1, 1)
        found.append("chown")
    with open("/proc/self/status") as status:
        found += [line for line in status if line.startswith("CapEff") and int(line[8:], 16)]
    return found or None


@probe
def regain_capabilities():
    header = struct.pack("Ii", 0x20080522, 0)
    data = struct.pack("IIIIII", *[0xFFFFFFFF] * 6)
    return "capset" if call("capset", header, data) is not None else None


@probe
def nested_namespaces():
    found = []
    for name, flag in (("user", 0x10000000), ("mount", 0x20000), ("net", 0x40000000)):
        if call("unshare", flag) is not None:
            found.append(name)
    if call("setns", 0, 0) is not None:
        found.append("setns")
    child = call("clone", 0x10000000 | 17, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    if child is not None:
        os.waitpid(child, 0)
        found.append("clone")
    return found or None


@probe
def environment_leak():
    known = {"HOME", "PATH", "LANG", "USER", "PWD", "LC_CTYPE"}
    found = sorted(set(os.environ) - known)
    for name in ("1", str(agent_pid())):
        with contextlib.suppress(OSError):
            if CANARIES["secret"].encode() in open(f"/proc/{name}/environ", "rb").read():
                found.append(f"/proc/{name}/environ")
    return found or None


@probe
def argument_leak():
    line = open("/proc/1/cmdline", "rb").read()
    return line.decode() if b"--ro-bind" in line or CANARIES["root"].encode() in line else None


@probe
def inherited_descriptors():
    return [
        f"{name}: {os.readlink('/proc/self/fd/' + name)}"
        for name in os.listdir("/proc/self/fd")
        if int(name) > 2
        and os.path.exists("/proc/self/fd/" + name)
        and not os.readlink("/proc/self/fd/" + name).endswith("/fd")
    ] or None


@probe
def kernel_surfaces():
    attribute = ctypes.create_string_buffer(128)
    reached = {
        "bpf": call("bpf", 0, attribute, 128),
        "perf": call("perf_event_open", attribute, 0, -1, -1, 0),
        "io_uring": call("io_uring_setup", 4, ctypes.create_string_buffer(120)),
        "userfaultfd": call("userfaultfd", 1),
        "init_module": call("init_module", attribute, 0, b""),
        "pidfd_getfd": call("pidfd_getfd", os.pidfd_open(agent_pid()), 3, 0),
    }
    return [name for name, result in reached.items() if result is not None] or None


@probe
def kernel_settings():
    paths = (
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/user/max_user_namespaces",
    )
    return [path for path in paths if opens(path, os.O_WRONLY)] or None


@probe
def cgroup_files():
    lines = open("/proc/mounts").read().splitlines()
    return [line for line in lines if " cgroup" in line or " sysfs " in line] or None


@probe
def shared_memory():
    """A segment of the host, found by its key."""
    return "found" if call("shmget", CANARIES["shm_key"], 0, 0) is not None else None


@probe
def clock_and_name():
    moved = struct.pack("qq", 0, 0)
    tried = [call("clock_settime", 0, moved), call("sethostname", b"owned", 5)]
    return "changed" if any(result is not None for result in tried) else None


@probe
def terminal_injection():
    master, slave = os.openpty()
    try:
        fcntl.ioctl(slave, 0x5412, b"x")
    except OSError:
        return None
    finally:
        os.close(master)
        os.close(slave)
    return "injected"


@probe
def other_root_calls():
    tried = {
        "chroot": call("chroot", b"/tmp"),
        "pivot_root": call("pivot_root", b"/tmp", b"/tmp"),
        "open_by_handle_at": call("open_by_handle_at", -100, ctypes.create_string_buffer(32), 0),
    }
    return [name for name, result in tried.items() if result is not None] or None


@probe
def suid_programs():
    """No program may raise rights: the mounts are nosuid and new privileges are off."""
    flags = open("/proc/self/status").read()
    usr = next(line for line in open("/proc/mounts") if line.split()[1] == "/usr")
    return None if "NoNewPrivs:\t1" in flags and "nosuid" in usr else "can be gained"


def main():
    results = {}
    for name, function in PROBES.items():
        try:
            results[name] = function()
        except Exception as error:
            results[name] = f"the probe itself failed: {error!r}"
    print(json.dumps(results))


main()
