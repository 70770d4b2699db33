#!/usr/bin/env python3
"""Runs a program as on a file system that can do less: `without.py WHAT[,WHAT] PROGRAM ARGUMENT...`.

A seccomp filter refuses what such file systems refuse, by the arguments of the call; everything else goes to the file system that is there.
It is inherited by all threads, needs no rights, and does not disturb strace or limits. Linux on x86-64 and aarch64.
"""

import ctypes
import errno
import os
import platform
import struct
import subprocess
import sys

#: By machine: its number for seccomp, and those of its calls.
MACHINES = {
    "x86_64": (0xC000003E, {"open": 2, "openat": 257, "renameat2": 316, "linkat": 265, "fallocate": 285}),
    "aarch64": (0xC00000B7, {"openat": 56, "renameat2": 276, "linkat": 37, "fallocate": 47}),
}

#: The bit of `O_TMPFILE` that no other flag has, and flags of `renameat2`.
TMPFILE, NOREPLACE, EXCHANGE = 0o20000000, 1, 2

#: What can be missing: calls, the argument that says so and its bits (`None` for any), and the error.
ABILITIES = {
    # NFS, FUSE, FAT, and most others that are not local.
    "unnamed": [("open", 1, TMPFILE, errno.EOPNOTSUPP), ("openat", 2, TMPFILE, errno.EOPNOTSUPP)],
    # NFS, FUSE.
    "exchange": [("renameat2", 4, NOREPLACE | EXCHANGE, errno.EINVAL)],
    # FAT.
    "links": [("linkat", None, None, errno.EPERM)],
    # NFS before 4.2, FUSE, ext3.
    "allocation": [("fallocate", None, None, errno.EOPNOTSUPP)],
}

LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000


def rules(names):
    """A program of the filter machine: (operation, jump if so, jump if not, value) each."""
    machine, calls = MACHINES[platform.machine()]
    # The machine is at 4 of what is looked at, the call's number at 0, arguments at 16 in 8 bytes each.
    code = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, machine), (RETURN, 0, 0, ALLOW)]
    for name in names:
        # There are machines without `open`.
        for call, argument, bits, error in [row for row in ABILITIES[name] if row[0] in calls]:
            code += [(LOAD, 0, 0, 0)]
            if bits is None:
                code += [(EQUAL, 0, 1, calls[call])]
            else:
                code += [(EQUAL, 0, 3, calls[call]), (LOAD, 0, 0, 16 + 8 * argument), (ANY_BIT, 0, 1, bits)]
            code += [(RETURN, 0, 0, ERROR | error)]
    return code + [(RETURN, 0, 0, ALLOW)]


class Program(ctypes.Structure):
    """What `prctl` takes."""

    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def refusing(names):
    """A function that refuses these from now on, in its process and those that this becomes or starts; to be made before a fork."""
    code = rules(names)
    program = Program(len(code), b"".join(struct.pack("HBBI", *rule) for rule in code))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, by_filter = 38, 22, 2

    def refuse():
        if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, by_filter, ctypes.byref(program), 0, 0):
            raise OSError(ctypes.get_errno(), "seccomp")

    return refuse


def missing():
    """Why this cannot be used here; `None` if it can."""
    if platform.machine() not in MACHINES or sys.platform != "linux":
        return "seccomp: not Linux on x86-64 or aarch64"
    try:
        subprocess.run(["true"], preexec_fn=refusing(ABILITIES), check=True)
    except (OSError, subprocess.SubprocessError):
        return "seccomp filters cannot be set here"
    return None


if __name__ == "__main__":
    refusing(sys.argv[1].split(","))()
    os.execvp(sys.argv[2], sys.argv[2:])
