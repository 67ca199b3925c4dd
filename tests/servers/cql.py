"""As much of CQL's native protocol, version 4, as it takes to ask a server something and read the answer as text."""

import socket
import ssl
import struct

ERROR, STARTUP, READY, AUTHENTICATE, QUERY, RESULT, AUTH_RESPONSE, AUTH_SUCCESS = 0x00, 0x01, 0x02, 0x03, 0x07, 0x08, 0x0F, 0x10
ONE = 1


class Connection:
    """A connection that has been through its handshake. An answer that is none raises OSError."""

    def __init__(self, address, login=None, ca=None, timeout=60):
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout)
        try:
            if ca:
                self.socket = ssl.create_default_context(cafile=ca).wrap_socket(self.socket, server_hostname=host)
            opcode, _ = self.ask(STARTUP, struct.pack("!H", 1) + text("CQL_VERSION") + text("3.0.0"))
            if opcode == AUTHENTICATE:
                token = "".join(f"\0{part}" for part in (login or ":").split(":", 1)).encode()
                opcode, _ = self.ask(AUTH_RESPONSE, struct.pack("!i", len(token)) + token)
            if opcode not in (READY, AUTH_SUCCESS):
                raise OSError(f"{address} answers STARTUP with opcode {opcode}")
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def query(self, cql):
        """The rows, each a list of its columns' bytes; none where the statement gives none."""
        statement = cql.encode()
        opcode, body = self.ask(QUERY, struct.pack("!i", len(statement)) + statement + struct.pack("!HB", ONE, 0))
        rows = 2
        if opcode != RESULT or struct.unpack_from("!i", body)[0] != rows:
            return []
        return read_rows(body)

    def ask(self, opcode, body):
        self.socket.sendall(struct.pack("!BBhBi", 4, 0, 0, opcode, len(body)) + body)
        _, _, _, opcode, length = struct.unpack("!BBhBi", self.receive(9))
        body = self.receive(length)
        if opcode == ERROR:
            raise OSError(f"CQL error {struct.unpack_from('!i', body)[0]:#x}: {body[6:].decode(errors='replace')}")
        return opcode, body

    def receive(self, length):
        got = b""
        while len(got) < length:
            piece = self.socket.recv(length - len(got))
            if not piece:
                raise EOFError("the server closed the connection")
            got += piece
        return got


def text(value):
    return struct.pack("!H", len(value)) + value.encode()


def read_rows(body):
    """Of columns of one table and of plain types alone."""
    at = 4

    def take(form):
        nonlocal at
        (value,) = struct.unpack_from(form, body, at)
        at += struct.calcsize(form)
        return value

    def skip_text():
        nonlocal at
        length = take("!H")
        at += length

    flags, columns = take("!i"), take("!i")
    if flags != 1:
        raise ValueError(f"rows with the flags {flags:#x} are not read here")
    skip_text(), skip_text()
    for _ in range(columns):
        skip_text()
        if take("!H") >= 0x20:
            raise ValueError("columns of composite types are not read here")
    rows = []
    for _ in range(take("!i")):
        row = []
        for _ in range(columns):
            length = take("!i")
            row.append(None if length < 0 else body[at : at + length])
            at += max(length, 0)
        rows.append(row)
    return rows
