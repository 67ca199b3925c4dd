"""Proves both servers with operations of their own clients: what was written before kill -9 is there after it, and nothing is left running."""

import os
import pathlib
import subprocess
import tempfile
import time

import cassandra
import kafka
import processes
from processes import Failed

RUN = pathlib.Path(__file__).with_name("run")


def run():
    with tempfile.TemporaryDirectory(prefix="contrail-servers-") as scratch:
        scratch = pathlib.Path(scratch)
        try:
            prove_both(scratch / "both")
            prove_that_nothing_outlives_its_parent(scratch / "orphans")
        finally:
            for directory in scratch.iterdir():
                processes.stop(processes.servers(directory), kill=True)
    print("real Kafka and Cassandra hold")


def prove_both(directory):
    addresses = ours("up", "kafka", "cassandra", "--own", "--parent", os.getpid(), "--dir", directory)
    kafka_client(addresses["KAFKA"], "TopicCommand", "--create", "--topic", "check", "--partitions", 2)
    kafka_client(addresses["KAFKA"], "ConsoleProducer", "--topic", "check", given="one record\n")
    with cassandra.connect(server(directory, "cassandra-1")) as connection:
        connection.query("CREATE KEYSPACE checked WITH replication = {'class': 'NetworkTopologyStrategy', 'dc1': 1}")
        connection.query("CREATE TABLE checked.rows (name text PRIMARY KEY, value text)")
        connection.query("INSERT INTO checked.rows (name, value) VALUES ('one', 'row')")
    # Cassandra marks its commit log's end ten times a second: what came after the last mark is lost with the process.
    time.sleep(1)

    expect_one_record(addresses)
    expect_one_row(directory)
    tell_memory(directory)
    before = [pid(directory, name) for name in ["kafka-1", "cassandra-1"]]
    ours("stop", "kafka-1", "cassandra-1", "--kill", "--dir", directory)
    if any(processes.started(number) for number in before):
        raise Failed("a killed server still runs")
    ours("start", "kafka-1", "cassandra-1", "--dir", directory)
    expect_one_record(addresses)
    expect_one_row(directory)

    before = [pid(directory, name) for name in ["kafka-1", "cassandra-1"]]
    ours("down", "--dir", directory)
    if any(processes.started(number) for number in before):
        raise Failed("a server that was brought down still runs")


def prove_that_nothing_outlives_its_parent(directory):
    parent = subprocess.Popen(["sleep", "600"])
    try:
        ours("up", "kafka", "--own", "--parent", parent.pid, "--dir", directory)
        number = pid(directory, "kafka-1")
    finally:
        parent.kill()
        parent.wait()
    if not server(directory, "kafka-1").wait_until_gone(10) or processes.started(number):
        raise Failed("a server outlives the process that it was brought up for")


def ours(command, *arguments):
    """A command of `run`, as others call it; the addresses that it prints."""
    began = time.monotonic()
    done = subprocess.run([RUN, command, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Failed(f"{command} failed")
    what = [command, *(word for word in arguments if word in ["kafka", "cassandra", "kafka-1", "cassandra-1"])]
    print(f"{' '.join(what)}: {time.monotonic() - began:.1f} s", flush=True)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def server(directory, name):
    return processes.Server(directory / name)


def pid(directory, name):
    return int((directory / name / "pid").read_text().split()[0])


def tell_memory(directory):
    for name in ["kafka-1", "cassandra-1"]:
        status = pathlib.Path(f"/proc/{pid(directory, name)}/status").read_text()
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        print(f"{name}: {int(resident.split()[1]) // 1024} MiB resident", flush=True)


def kafka_client(address, tool, *arguments, given=None):
    command = [*kafka.install(), "-Xmx128m", "-Dlog4j2.level=error", f"org.apache.kafka.tools.{tool}"]
    command += ["--bootstrap-server", address, *map(str, arguments)]
    done = subprocess.run(command, input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise Failed(f"Kafka's {tool} failed:\n{done.stdout}")
    return done.stdout


def expect_one_record(addresses):
    # Through a consumer group, so that its coordinator is proved too.
    said = kafka_client(addresses["KAFKA"], "consumer.ConsoleConsumer", "--topic", "check", "--from-beginning", "--max-messages", 1, "--timeout-ms", 60000)
    if "one record" not in said.splitlines():
        raise Failed(f"Kafka does not give the record back:\n{said}")


def expect_one_row(directory):
    with cassandra.connect(server(directory, "cassandra-1")) as connection:
        rows = connection.query("SELECT name, value FROM checked.rows")
    if rows != [[b"one", b"row"]]:
        raise Failed(f"Cassandra gives {rows} and not the row")
