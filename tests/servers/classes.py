"""What Java has loaded of a server, kept beside its class path as Java shares it: a start then takes half the time."""

import argparse
import os
import pathlib
import signal
import tempfile

import cache
import processes
from processes import Failed


def java(kind, server, words=()):
    """The Java command on the class path of `kind`, with more words of the command; fetches what is missing. `server` is the module of that kind."""
    java, jars = cache.java(), cache.class_path(kind)
    command = [java, *words, "-cp", f"{jars}/*"]
    kept = jars.with_name(f"{jars.name}-java-{cache.version(java)}.jsa")
    if not kept.exists():
        with cache.alone(), tempfile.TemporaryDirectory(prefix="fill-", dir=cache.cache()) as scratch:
            if not kept.exists():
                keep(kind, server, command, pathlib.Path(scratch), kept)
    return [*command, f"-XX:SharedArchiveFile={kept}"]


def keep(kind, server, command, scratch, kept):
    """Of a server that starts and is told to stop: it writes them as it ends."""
    written = scratch / "classes.jsa"
    me = [os.getpid(), processes.started(os.getpid())]
    options = argparse.Namespace(brokers=1, datacenters=1, tls=False, password=False, unkilled=False, set=[])
    (one,), _ = server.create(scratch, me, options, [*command, f"-XX:ArchiveClassesAtExit={written}"])
    one.start()
    try:
        server.wait(one, [one])
        one.signal(signal.SIGTERM)
        if not one.wait_until_gone(processes.START_SECONDS) or not written.exists():
            raise Failed(f"the classes of {kind} were not kept:\n{one.log_end()}")
    except BaseException:
        one.abandon()
        raise
    written.rename(kept)
