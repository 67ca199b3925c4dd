"""Apache Cassandra: one node, or one in each of several datacenters, on 127.0.0.1, 127.0.0.2 and so on."""

import json
import sys

import cache
import classes
import cql
import processes
import tls
from processes import Server, free_port

LOGIN = "cassandra:cassandra"

# What Cassandra's own jvm17-server.options opens to it.
EXPORTS = """java.base/jdk.internal.misc java.management.rmi/com.sun.jmx.remote.internal.rmi java.rmi/sun.rmi.registry java.rmi/sun.rmi.server
    java.sql/java.sql java.base/java.lang.ref jdk.unsupported/sun.misc jdk.attach/sun.tools.attach""".split()
OPENS = """java.base/java.lang.module java.base/jdk.internal.loader java.base/jdk.internal.ref java.base/jdk.internal.reflect java.base/jdk.internal.math
    java.base/jdk.internal.module java.base/jdk.internal.util.jar jdk.management/com.sun.management.internal java.base/sun.nio.ch java.base/java.io
    java.base/java.lang.reflect java.base/java.lang java.base/java.util""".split()


def install():
    """The Java command on Cassandra's class path, with the agent that measures objects."""
    agent = next(cache.class_path("cassandra").glob("jamm-*.jar"))
    # Kept are the classes as they are loaded; this agent changes none.
    words = ["-XX:+UnlockDiagnosticVMOptions", "-XX:+AllowArchivingWithJavaAgent", f"-javaagent:{agent}"]
    return classes.java("cassandra", sys.modules[__name__], words)


def create(directory, parent, options, java=None):
    """Nodes, not yet started, and the addresses to print."""
    hosts = [f"127.0.0.{number}" for number in range(1, options.datacenters + 1)]
    # One port for all: drivers take it that every node of a cluster listens on the same.
    clients, nodes = free_port(*hosts), free_port(*hosts)
    addresses = {"CASSANDRA": ",".join(f"{host}:{clients}" for host in hosts)}
    if options.password:
        addresses["CASSANDRA_LOGIN"] = LOGIN
    authority = tls.authority(directory) if options.tls else None
    if authority:
        addresses["TLS_CA"] = authority.ca

    java = java or install()
    created = []
    for number, host in enumerate(hosts, 1):
        folder = directory / f"cassandra-{number}"
        folder.mkdir()
        settings = processes.overridden(node(host, hosts, clients, nodes, folder) | secured(options, authority), options.set)
        # JSON is YAML.
        (folder / "cassandra.yaml").write_text(json.dumps(settings, indent=1, default=str))
        (folder / "cassandra-rackdc.properties").write_text(f"dc=dc{number}\nrack=rack1\n")
        created.append(
            Server.create(
                folder,
                [*java_command(java, folder, options.unkilled), "org.apache.cassandra.service.CassandraDaemon"],
                parent,
                address=f"{host}:{clients}",
                login=LOGIN if options.password else None,
                ca=authority and str(authority.ca),
            )
        )
    return created, addresses


def node(host, hosts, clients, nodes, folder):
    return {
        "cluster_name": "contrail",
        "num_tokens": 16,
        "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
        "endpoint_snitch": "GossipingPropertyFileSnitch",
        # All of them: none waits for another to come up.
        "seed_provider": [
            {"class_name": "org.apache.cassandra.locator.SimpleSeedProvider", "parameters": [{"seeds": ",".join(f"{seed}:{nodes}" for seed in hosts)}]}
        ],
        "auto_bootstrap": False,
        "listen_address": host,
        "storage_port": nodes,
        "rpc_address": host,
        "native_transport_port": clients,
        "data_file_directories": [folder / "data"],
        "commitlog_directory": folder / "commitlog",
        "saved_caches_directory": folder / "saved_caches",
        "hints_directory": folder / "hints",
        # As by default: a write is acknowledged up to 10 s before it is on disk, and what came in the last 100 ms dies with the process.
        "commitlog_sync": "periodic",
        "commitlog_sync_period": "10s",
        "commitlog_segment_size": "8MiB",
        "commitlog_total_space": "256MiB",
        "memtable_heap_space": "192MiB",
        "memtable_offheap_space": "128MiB",
        "file_cache_size": "64MiB",
        "key_cache_size": "8MiB",
        "counter_cache_size": "0MiB",
        "auto_snapshot": False,
    }


def secured(options, authority):
    settings = {}
    if authority:
        settings["client_encryption_options"] = {
            "enabled": True,
            "optional": False,
            "keystore": authority.keystore,
            "keystore_password": authority.secret,
            "store_type": "PKCS12",
            "require_client_auth": False,
        }
    if options.password:
        settings |= {"authenticator": "PasswordAuthenticator", "authorizer": "CassandraAuthorizer"}
    return settings


def java_command(java, folder, unkilled):
    properties = {
        "cassandra-foreground": "yes",
        "cassandra.config": (folder / "cassandra.yaml").as_uri(),
        "cassandra-rackdc.properties": (folder / "cassandra-rackdc.properties").as_uri(),
        "cassandra.storagedir": folder,
        "logback.configurationFile": cache.HERE / "logback.xml",
        # A cluster of a test needs no time to find itself.
        "cassandra.skip_wait_for_gossip_to_settle": 0,
        "cassandra.ring_delay_ms": 1000,
        # Half of it is how long one that has no tokens yet may be silent before the others forget it, for good: twice the above by default.
        "cassandra.gossip_quarantine_delay_ms": 600_000,
        # Until a node that missed a change of the schema asks for it.
        "cassandra.migration_delay_ms": 5000,
        "cassandra.superuser_setup_delay_ms": 0,
        "cassandra.shutdown_announce_in_ms": 0,
        "io.netty.tryReflectionSetAccessible": "true",
        "jdk.attach.allowAttachSelf": "true",
        # What a process that dies has written outlives it either way; the machine of a test does not lose its power.
        "cassandra.skip_sync": "true",
    }
    if unkilled:
        # Half the time of a change: a node that starts reads the schema before its commit log.
        properties["cassandra.test.flush_local_schema_changes"] = "false"
    command = [*java, "-Xms256m", "-Xmx1g", "-XX:MaxDirectMemorySize=512m", "-Xss256k", "-XX:+UseG1GC", "-XX:+ExitOnOutOfMemoryError"]
    command += [f"-D{key}={value}" for key, value in properties.items()]
    command += [f"--add-exports={package}=ALL-UNNAMED" for package in EXPORTS]
    command += [f"--add-opens={package}=ALL-UNNAMED" for package in OPENS]
    return command


def wait(server, together):
    """Until the node answers queries, knows of those it is brought up together with and agrees with them on the schema."""

    def usable():
        with connect(server) as connection:
            here = connection.query("SELECT schema_version FROM system.local")
            peers = connection.query("SELECT schema_version FROM system.peers")
        if len(peers) < len(together) - 1:
            raise ValueError(f"knows of {len(peers)} others yet")
        if len(together) > 1 and any(peer != here[0] for peer in peers):
            raise ValueError("the nodes do not agree on the schema yet")

    server.wait_until(usable)


def connect(server):
    return cql.Connection(server.settings["address"], server.settings["login"], server.settings["ca"])
