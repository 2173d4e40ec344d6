"""The network block device protocol, as far as QEMU needs it to read.

(https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md)
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Union

# The client speaks the newstyle handshake, and needs no zeros behind an answer (NBD_FLAG_*).
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
GREETING = struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", FIXED_NEWSTYLE | NO_ZEROES)
ZEROES = bytes(124)

OPTION = struct.Struct(">8sII")  # magic, option, length of its data
OPTION_REPLY = struct.Struct(">QIII")  # magic, option, type, length of its data
OPTION_REPLY_MAGIC = 0x3E889045565A9
EXPORT_NAME, ABORT, INFO, CHOOSE = 1, 2, 6, 7  # NBD_OPT_*; CHOOSE is NBD_OPT_GO
ACKNOWLEDGED, INFORMATION = 1, 3  # NBD_REP_*
UNSUPPORTED, INVALID, UNKNOWN = 0x80000001, 0x80000003, 0x80000006  # NBD_REP_ERR_*
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3
OPTION_LIMIT = 1 << 13  # bytes of an option's data: a name of 4096 at the most, and numbers

HAS_FLAGS, READ_ONLY, CAN_MULTI_CONN = 1, 2, 1 << 8  # of an export
FLAGS = HAS_FLAGS | READ_ONLY | CAN_MULTI_CONN
READ_LIMIT = 32 << 20  # bytes
BLOCK_SIZES = (1, 4096, READ_LIMIT)  # at least, preferred, at most

REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
REQUEST_MAGIC = 0x25609513
REPLY = struct.Struct(">IIQ")  # magic, error, cookie
REPLY_MAGIC = 0x67446698
READ, WRITE, DISCONNECT = 0, 1, 2  # NBD_CMD_*
EIO, EINVAL = 5, 22  # the numbers of the protocol


class ProtocolError(Exception):
    """The client has ended the connection, or does not keep to the protocol."""


@dataclass(frozen=True)
class Read:
    """A client's request to read, which `Client.answer` answers."""

    cookie: int
    offset: int
    length: int


class Client:
    """A connected client. All methods raise ProtocolError, OSError; answers may come from several threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def choice(self, sizes: Mapping[str, int]) -> str:
        """Negotiate, and return the name of the export that it chooses; `sizes` are in bytes by name."""
        self._connection.sendall(GREETING)
        (flags,) = struct.unpack(">I", self._received(4))
        while True:
            magic, option, length = OPTION.unpack(self._received(OPTION.size))
            if magic != b"IHAVEOPT" or length > OPTION_LIMIT:
                raise ProtocolError("no option")
            data = self._received(length)
            if option == EXPORT_NAME:
                name = data.decode(errors="replace")
                if name not in sizes:
                    raise ProtocolError("no such export")  # there is no answer for that
                zeroes = b"" if flags & NO_ZEROES else ZEROES
                self._connection.sendall(struct.pack(">QH", sizes[name], FLAGS) + zeroes)
                return name
            if option == ABORT:
                self._reply(option, ACKNOWLEDGED)
                raise ProtocolError("aborted")
            if option not in (INFO, CHOOSE):
                self._reply(option, UNSUPPORTED)  # it goes on without: TLS, structured replies
            elif (name := self._described(option, data, sizes)) and option == CHOOSE:
                return name

    def reads(self, size: int) -> Iterator[Read]:
        """Yield its requests to read an export of `size` bytes; refuse all others."""
        while True:
            magic, _, command, cookie, offset, length = REQUEST.unpack(self._received(REQUEST.size))
            if magic != REQUEST_MAGIC or command == WRITE:  # data would follow
                raise ProtocolError("no request, or one to write")
            if command == DISCONNECT:
                return
            if command == READ and 0 < length <= READ_LIMIT and offset + length <= size:
                yield Read(cookie, offset, length)
            else:
                self._send(REPLY.pack(REPLY_MAGIC, EINVAL, cookie))

    def answer(self, read: Read, data: Union[bytes, memoryview, None]) -> None:
        """Give it what it wanted to read; None for an error."""
        error = EIO if data is None else 0
        self._send(REPLY.pack(REPLY_MAGIC, error, read.cookie), *([] if data is None else [data]))

    def _described(self, option: int, data: bytes, sizes: Mapping[str, int]) -> str:
        """Describe the export that it names, and return that name; "" if there is none."""
        length = int.from_bytes(data[:4], "big")
        name = data[4 : 4 + length].decode(errors="replace")
        if len(data) < length + 6:
            self._reply(option, INVALID)
        elif name not in sizes:
            self._reply(option, UNKNOWN)
        else:
            self._reply(option, INFORMATION, struct.pack(">HQH", INFO_EXPORT, sizes[name], FLAGS))
            self._reply(option, INFORMATION, struct.pack(">HIII", INFO_BLOCK_SIZE, *BLOCK_SIZES))
            self._reply(option, ACKNOWLEDGED)
            return name
        return ""

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self._connection.sendall(OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data)

    def _send(self, *parts: Union[bytes, memoryview]) -> None:
        with self._sending:
            for part in parts:
                self._connection.sendall(part)

    def _received(self, length: int) -> bytes:
        parts: list[bytes] = []
        missing = length
        while missing:
            part = self._connection.recv(missing)
            if not part:
                raise ProtocolError("the connection has ended")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)
