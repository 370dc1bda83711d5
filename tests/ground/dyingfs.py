"""Run a command on a file system that stops answering: python3 dyingfs.py PATH OPERATION COUNT -- COMMAND...

Needs root and a mount namespace of its own.  PATH, a directory, is covered by a FUSE file system in memory.  When a
file `arm` has been created in it, requests of the OPERATION (MKDIR, WRITE, RENAME ...) are counted.  After COUNT
answers to them, no request is read any more.  The exit status is that of the command.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
import time

DEVICE = "/dev/fuse"
# Operations of linux/fuse.h
LOOKUP, FORGET, GETATTR, SETATTR, MKDIR, UNLINK, RMDIR, RENAME = 1, 2, 3, 4, 9, 10, 11, 12
OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, INIT = 14, 15, 16, 17, 18, 20, 26
OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, ACCESS, CREATE, INTERRUPT, BATCH_FORGET, RENAME2 = (
    27, 28, 29, 30, 34, 35, 36, 42, 45)
OPERATIONS = {"MKDIR": (MKDIR,), "CREATE": (CREATE,), "WRITE": (WRITE,), "FSYNC": (FSYNC,), "UNLINK": (UNLINK,),
              "RENAME": (RENAME, RENAME2), "RMDIR": (RMDIR,), "NEVER": ()}
SILENT = (FORGET, BATCH_FORGET, INTERRUPT)  # operations without an answer
BLOCK = 4096


class Node:
    """A file or directory."""

    def __init__(self, number: int, mode: int) -> None:
        self.number = number
        self.mode = mode
        self.data = bytearray()
        self.names: dict[bytes, Node] = {}
        self.uid = self.gid = 0
        self.changed = time.time_ns()

    def attributes(self) -> bytes:
        """Return struct fuse_attr."""
        seconds, nanoseconds = divmod(self.changed, 10**9)
        return struct.pack("=6Q10I", self.number, len(self.data), -(-len(self.data) // 512), seconds, seconds, seconds,
                           nanoseconds, nanoseconds, nanoseconds, self.mode, 1, self.uid, self.gid, 0, BLOCK, 0)

    def entry(self) -> bytes:
        """Return struct fuse_entry_out; nothing of it is cached."""
        return struct.pack("=4Q2I", self.number, 0, 0, 0, 0, 0) + self.attributes()


class Server:
    """Answers the requests of the kernel."""

    def __init__(self, fd: int, operation: str, count: int) -> None:
        self.fd = fd
        self.counted = OPERATIONS[operation]
        self.left = count
        self.armed = False
        self.nodes = {1: Node(1, stat.S_IFDIR | 0o755)}

    def serve(self) -> None:
        """Answer until the file system dies."""
        while True:
            request = os.read(self.fd, 1 << 18)
            _, operation, unique, number, uid, gid, _, _ = struct.unpack_from("=2I2Q4I", request)
            body = request[40:]
            if operation in SILENT:
                continue
            is_counted = self.armed and operation in self.counted
            try:
                answer = self.answer(operation, self.nodes[number] if number else self.nodes[1], body, uid, gid)
                error = 0
            except OSError as failure:
                answer, error = b"", -(failure.errno or errno.EIO)
            os.write(self.fd, struct.pack("=IiQ", 16 + len(answer), error, unique) + answer)
            if is_counted and not error:
                self.left -= 1
                if self.left <= 0:
                    while True:
                        time.sleep(3600)

    def child(self, node: Node, name: bytes) -> Node:
        if name not in node.names:
            raise OSError(errno.ENOENT, "")
        return node.names[name]

    def create(self, parent: Node, name: bytes, mode: int, uid: int, gid: int) -> Node:
        if name in parent.names:
            raise OSError(errno.EEXIST, "")
        node = Node(max(self.nodes) + 1, mode)
        node.uid, node.gid = uid, gid
        self.nodes[node.number] = parent.names[name] = node
        self.armed = self.armed or name == b"arm"
        return node

    def answer(self, operation: int, node: Node, body: bytes, uid: int, gid: int) -> bytes:
        """Return the answer to a request.  Raises OSError."""
        opened = struct.pack("=Q2I", 0, 0, 0)
        attributes = struct.pack("=Q2I", 0, 0, 0)
        if operation == INIT:
            return struct.pack("=4I2H2I2H8I", 7, 31, 0, 0, 12, 9, 1 << 17, 1, 0, 0, *[0] * 8)
        if operation == LOOKUP:
            return self.child(node, body.rstrip(b"\0")).entry()
        if operation == GETATTR:
            return attributes + node.attributes()
        if operation == SETATTR:
            self.set_attributes(node, body)
            return attributes + node.attributes()
        if operation == MKDIR:
            mode, _ = struct.unpack_from("=2I", body)
            return self.create(node, body[8:].rstrip(b"\0"), stat.S_IFDIR | mode & 0o7777, uid, gid).entry()
        if operation == CREATE:
            _, mode, _, _ = struct.unpack_from("=4I", body)
            return self.create(node, body[16:].rstrip(b"\0"), stat.S_IFREG | mode & 0o7777, uid, gid).entry() + opened
        if operation in (UNLINK, RMDIR):
            if self.child(node, body.rstrip(b"\0")).names:
                raise OSError(errno.ENOTEMPTY, "")
            del node.names[body.rstrip(b"\0")]
            return b""
        if operation in (RENAME, RENAME2):
            (target,) = struct.unpack_from("=Q", body)
            old, new = body[8 if operation == RENAME else 16:].split(b"\0")[:2]
            self.nodes[target].names[new] = self.child(node, old)
            del node.names[old]
            return b""
        if operation in (OPEN, OPENDIR):
            return opened
        if operation == READ:
            _, offset, size = struct.unpack_from("=2QI", body)
            return bytes(node.data[offset:offset + size])
        if operation == WRITE:
            _, offset, size = struct.unpack_from("=2QI", body)
            node.data.extend(bytes(max(0, offset - len(node.data))))
            node.data[offset:offset + size] = body[40:40 + size]
            node.changed = time.time_ns()
            return struct.pack("=2I", size, 0)
        if operation == READDIR:
            return self.listing(node, *struct.unpack_from("=2QI", body)[1:])
        if operation == STATFS:
            return struct.pack("=5Q10I", 1 << 20, 1 << 19, 1 << 19, 1000, 900, BLOCK, 255, BLOCK, *[0] * 7)
        # FLUSH is answered with ENOSYS, so that the kernel asks no more: a process that waits for FLUSH can't be killed
        if operation in (RELEASE, FSYNC, RELEASEDIR, FSYNCDIR, ACCESS):
            return b""
        raise OSError(errno.ENOSYS, "")

    def set_attributes(self, node: Node, body: bytes) -> None:
        """Change what struct fuse_setattr_in asks for."""
        (valid,), (size,) = struct.unpack_from("=I", body), struct.unpack_from("=Q", body, 16)
        if valid & 1:
            node.mode = stat.S_IFMT(node.mode) | struct.unpack_from("=I", body, 68)[0] & 0o7777
        if valid & 2:
            (node.uid,) = struct.unpack_from("=I", body, 76)
        if valid & 4:
            (node.gid,) = struct.unpack_from("=I", body, 80)
        if valid & 8:
            node.data[size:] = bytes(max(0, size - len(node.data)))
            node.changed = time.time_ns()

    def listing(self, node: Node, offset: int, size: int) -> bytes:
        """Return struct fuse_dirent for each name from the offset on."""
        data = b""
        for place, (name, child) in enumerate(list(node.names.items())[offset:], offset + 1):
            entry = struct.pack("=2Q2I", child.number, place, len(name), stat.S_IFMT(child.mode) >> 12) + name
            entry += bytes(-len(entry) % 8)
            if len(data) + len(entry) > size:
                break
            data += entry
        return data


def main() -> None:
    path, operation, count = sys.argv[1:4]
    if not os.path.exists(DEVICE):
        os.mknod(DEVICE, stat.S_IFCHR | 0o600, os.makedev(10, 229))
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions"
    if libc.mount(b"dying", os.fsencode(os.path.realpath(path)), b"fuse.dying", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount", path)
    server = os.fork()
    if server == 0:
        Server(fd, operation, int(count)).serve()
    os.close(fd)
    pid = os.fork()
    if pid == 0:
        os.execvp(sys.argv[5], sys.argv[5:])
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.kill(server, 9)
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
