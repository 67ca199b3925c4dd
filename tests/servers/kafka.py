"""Apache Kafka in KRaft mode: every broker is a controller too, so that of three any one may be lost."""

import base64
import contextlib
import os
import socket
import struct
import subprocess
import sys

import cache
import classes
import processes
import tls
from processes import Failed, Server, free_port

LOGIN = "contrail:contrail-secret"
LISTENERS = {"KAFKA": "PLAINTEXT", "KAFKA_TLS": "SSL", "KAFKA_SASL": "SASL_PLAINTEXT", "KAFKA_SASL_TLS": "SASL_SSL"}


def install():
    """The Java command on Kafka's class path."""
    return classes.java("kafka", sys.modules[__name__])


def create(directory, parent, options, java=None):
    """Formatted brokers, not yet started, and the addresses to print."""
    offered = ["KAFKA"] + ["KAFKA_TLS"] * options.tls + ["KAFKA_SASL"] * options.password + ["KAFKA_SASL_TLS"] * (options.tls and options.password)
    brokers = {number: {name: free_port() for name in [*offered, "CONTROLLER"]} for number in range(1, options.brokers + 1)}
    addresses = {name: ",".join(f"127.0.0.1:{ports[name]}" for ports in brokers.values()) for name in offered}
    if options.password:
        addresses["KAFKA_LOGIN"] = LOGIN
    authority = tls.authority(directory) if options.tls else None
    if authority:
        addresses["TLS_CA"] = authority.ca
    voters = ",".join(f"{number}@127.0.0.1:{ports['CONTROLLER']}" for number, ports in brokers.items())

    java = java or install()
    cluster = base64.urlsafe_b64encode(os.urandom(16)).decode().strip("=").replace("-", "_")
    created, formatting = [], []
    for number, ports in brokers.items():
        folder = directory / f"kafka-{number}"
        folder.mkdir()
        settings = processes.overridden(common(number, ports, voters, folder, len(brokers)) | secured(options, authority), options.set)
        (folder / "server.properties").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        formatting.append(format_storage(java, folder, cluster, options.password))
        command = [*java, "-Xms128m", "-Xmx512m", "-XX:+ExitOnOutOfMemoryError", f"-Dlog4j2.configurationFile={cache.HERE / 'log4j2.properties'}"]
        command += ["kafka.Kafka", folder / "server.properties"]
        created.append(Server.create(folder, command, parent, address=f"127.0.0.1:{ports['KAFKA']}", broker=number))
    for step in formatting:
        output, _ = step.communicate()
        if step.returncode:
            raise Failed(f"Kafka's storage cannot be formatted:\n{output}")
    return created, addresses


def common(number, ports, voters, folder, brokers):
    copies = min(3, brokers)
    listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
    return {
        "process.roles": "broker,controller",
        "node.id": number,
        "controller.quorum.voters": voters,
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "KAFKA",
        "listeners": listeners,
        "advertised.listeners": listeners.rpartition(",")[0],
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in (LISTENERS | {"CONTROLLER": "PLAINTEXT"}).items()),
        "log.dirs": folder / "data",
        # Topics are made by whoever needs them, as in production.
        "auto.create.topics.enable": "false",
        "default.replication.factor": copies,
        "min.insync.replicas": max(1, copies - 1),
        "offsets.topic.replication.factor": copies,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": max(1, copies - 1),
        "transaction.state.log.num.partitions": 4,
        "group.initial.rebalance.delay.ms": 0,
        # A killed broker is noticed, and let in again, after this and not after 9 s.
        "broker.heartbeat.interval.ms": 500,
        "broker.session.timeout.ms": 3000,
        "num.network.threads": 2,
        "num.io.threads": 4,
        # 128 MiB of the heap otherwise.
        "log.cleaner.dedupe.buffer.size": 8 << 20,
    }


def secured(options, authority):
    settings = {}
    if authority:
        settings |= {"ssl.keystore.type": "PKCS12", "ssl.keystore.location": authority.keystore, "ssl.keystore.password": authority.secret}
    if options.password:
        user, secret = LOGIN.split(":")
        settings["sasl.enabled.mechanisms"] = "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"
        for listener in ["kafka_sasl", "kafka_sasl_tls"]:
            module = "org.apache.kafka.common.security"
            settings[f"listener.name.{listener}.plain.sasl.jaas.config"] = f'{module}.plain.PlainLoginModule required user_{user}="{secret}";'
            for scram in ["scram-sha-256", "scram-sha-512"]:
                settings[f"listener.name.{listener}.{scram}.sasl.jaas.config"] = f"{module}.scram.ScramLoginModule required;"
    return settings


def format_storage(java, folder, cluster, password):
    command = [*java, "-Xmx128m", "kafka.tools.StorageTool", "format", "-t", cluster, "-c", folder / "server.properties"]
    if password:
        user, secret = LOGIN.split(":")
        for scram in ["SCRAM-SHA-256", "SCRAM-SHA-512"]:
            command += ["--add-scram", f"{scram}=[name={user},password={secret}]"]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait(server, together):
    """Until the broker tells clients of itself and of those it is brought up together with, which it does once the controller has let them in."""
    expected = {other.settings["broker"] for other in together}

    def usable():
        missing = expected - known_brokers(server.settings["address"])
        if missing:
            raise ValueError(f"does not know of broker {missing} yet")

    server.wait_until(usable)


def known_brokers(address):
    """The brokers' numbers in a broker's answer to a metadata request, version 1, about no topic."""
    host, port = address.split(":")
    with contextlib.closing(socket.create_connection((host, int(port)), 10)) as connection:
        metadata, version, client = 3, 1, b"tests"
        request = struct.pack("!hhih", metadata, version, 1, len(client)) + client + struct.pack("!i", 0)
        connection.sendall(struct.pack("!i", len(request)) + request)
        stream = connection.makefile("rb")

        def take(form):
            return struct.unpack(form, stream.read(struct.calcsize(form)) or b"")[0]

        try:
            take("!i"), take("!i")
            brokers = set()
            for _ in range(take("!i")):
                brokers.add(take("!i"))
                stream.read(take("!h")), take("!i")
                stream.read(max(0, take("!h")))
            return brokers
        except struct.error:
            raise EOFError("the broker closed the connection") from None
