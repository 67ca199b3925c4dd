"""Server processes of a directory: each in a folder DIR/NAME with its command, its log and, while it runs, its process id.

Each server is the child of a holder (`run hold`), which kills it when the process that the servers are for ends, and dies never before
it. So nothing lingers, and a killed server's id is free at once even where nobody else would wait for it.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

START_SECONDS = 180  # far above what a start takes alone: the machine may be building at the same time
STOP_SECONDS = 20


class Failed(Exception):
    """Told to the user as it stands."""


def started(pid):
    """When a process was started, in the kernel's ticks since boot: with the id, its identity. None if it runs no longer."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def process(pid, ticks):
    """A handle on exactly that process, or None if it runs no longer."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return None
    if started(pid) == ticks:
        return handle
    os.close(handle)
    return None


def free_port(*hosts):
    """A port that no listener has on any of the hosts, below those that the kernel hands out: nobody gets it by chance while its server is down."""
    low = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10000, low)
        try:
            for host in hosts or ["127.0.0.1"]:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((host, port))
            return port
        except OSError:
            continue


def overridden(settings, given):
    """The settings with those that the caller gave; one given without a value is left to the server."""
    return {key: value for key, value in (settings | dict(given)).items() if value != ""}


class Server:
    """One server of a directory. `settings` are what its module needs to tell whether it is usable."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.name = self.folder.name
        self.kind = self.name.rpartition("-")[0]
        about = json.loads((self.folder / "server.json").read_text())
        self.command, self.parent, self.settings = about["command"], about["parent"], about["settings"]
        self.holder = None

    @classmethod
    def create(cls, folder, command, parent, **settings):
        about = {"command": [str(word) for word in command], "parent": parent, "settings": settings}
        (pathlib.Path(folder) / "server.json").write_text(json.dumps(about, indent=1))
        return cls(folder)

    def running(self):
        """A handle on the running server, or None."""
        try:
            pid, ticks = (self.folder / "pid").read_text().split()
        except FileNotFoundError:
            return None
        return process(int(pid), int(ticks))

    def start(self):
        if self.running() is not None:
            raise Failed(f"{self.name} runs already")
        (self.folder / "pid").unlink(missing_ok=True)
        if self.parent and started(self.parent[0]) != self.parent[1]:
            raise Failed(f"process {self.parent[0]}, for which {self.name} was brought up, has ended")
        run = pathlib.Path(__file__).with_name("run")
        with open(self.folder / "log", "ab") as log:
            self.holder = subprocess.Popen([sys.executable, run, "hold", self.folder], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def wait_until(self, usable):
        """Until `usable` answers; what it raises meanwhile is what a server in its start does."""
        deadline = time.monotonic() + START_SECONDS
        last = "no answer yet"
        while time.monotonic() < deadline:
            if self.holder.poll() is not None:
                raise Failed(f"{self.name} ended while it was starting:\n{self.log_end()}")
            try:
                usable()
                return
            except (OSError, EOFError, ValueError) as error:
                last = error
            time.sleep(0.1)
        raise Failed(f"{self.name} was not usable within {START_SECONDS} s ({last}):\n{self.log_end()}")

    def abandon(self):
        """Gone at once, even before it has written its id."""
        self.holder.kill()
        self.holder.wait()
        self.wait_until_gone(STOP_SECONDS)

    def signal(self, number):
        handle = self.running()
        if handle is None:
            return
        try:
            signal.pidfd_send_signal(handle, number)
            # Asked of a stopped process too: it hears of it when it goes on.
            signal.pidfd_send_signal(handle, signal.SIGCONT)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)

    def wait_until_gone(self, seconds):
        handle = self.running()
        if handle is not None:
            gone, _, _ = select.select([handle], [], [], seconds)
            os.close(handle)
            if not gone:
                return False
        (self.folder / "pid").unlink(missing_ok=True)
        return True

    def log_end(self):
        return "\n".join((self.folder / "log").read_text(errors="replace").splitlines()[-30:])


def servers(directory):
    return [Server(about.parent) for about in sorted(pathlib.Path(directory).glob("*/server.json"))]


def stop(stopping, kill=False):
    """All of them at once: brokers that are told to stop one by one wait for those that are gone."""
    for server in stopping:
        server.signal(signal.SIGKILL if kill else signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for server in stopping:
        if not server.wait_until_gone(max(0, deadline - time.monotonic())):
            server.signal(signal.SIGKILL)
            if not server.wait_until_gone(STOP_SECONDS):
                raise Failed(f"{server.name} cannot be killed")


def hold(folder):
    """Runs in a process of its own for as long as its server."""
    server = Server(folder)
    pid, ticks, passing = server.parent or (None, None, False)
    parent = process(pid, ticks) if server.parent else None
    if server.parent and parent is None:
        return
    me = os.getpid()

    def die_with_me():
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != me:
            os._exit(1)

    child = subprocess.Popen(server.command, cwd=folder, preexec_fn=die_with_me)
    written = server.folder / "pid.new"
    written.write_text(f"{child.pid} {started(child.pid)}\n")
    written.rename(server.folder / "pid")
    ended = os.pidfd_open(child.pid)
    ready, _, _ = select.select([ended] + ([parent] if parent is not None else []), [], [])
    if ended not in ready:
        child.kill()
    print(f"{server.name} ended with {child.wait()}", flush=True)
    (server.folder / "pid").unlink(missing_ok=True)
    if passing and ended not in ready:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another server's may be in it
            server.folder.parent.rmdir()
