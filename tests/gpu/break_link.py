#!/usr/bin/env python3
"""break_link.py PID PID: shuts down the connections of NCCL between two processes of a run of two_faces.sh, which go on.

NCCL finds out by itself, and says so through ncclCommGetAsyncError. Its connections are those between the two that have
no port of MPI's. Exit 1: there are none.
"""
import ctypes
import os
import socket
import sys

PORTS_OF_MPI = range(24000, 25000)  # as two_faces.sh says
PIDFD_GETFD = 438  # of every processor; Python does not know this call
ESTABLISHED = "01"


def connections(pid):
    """Number of the file by ends (own, other), each ADDRESS:PORT in hexadecimal digits."""
    ends = {}
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{table}", encoding="ascii") as file:
            for own, other, state, inode in (line.split()[1:4] + [line.split()[9]] for line in list(file)[1:]):
                if state == ESTABLISHED:
                    ends[f"socket:[{inode}]"] = (own, other)
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:  # closed meanwhile
            continue
        if target in ends:
            found[ends[target]] = int(number)
    return found


def port(end):
    return int(end.rsplit(":", 1)[1], 16)


def shut_down(pid, number):
    process = os.pidfd_open(pid)
    libc = ctypes.CDLL(None, use_errno=True)
    here = libc.syscall(PIDFD_GETFD, process, number, 0)
    os.close(process)
    if here < 0:
        raise OSError(ctypes.get_errno(), f"a connection of process {pid}: {os.strerror(ctypes.get_errno())}")
    with socket.socket(fileno=here) as connection:
        connection.shutdown(socket.SHUT_RDWR)


def main():
    one, other = int(sys.argv[1]), int(sys.argv[2])
    theirs = connections(other)
    between = [(ends, number) for ends, number in connections(one).items()
               if ends[::-1] in theirs and not any(port(end) in PORTS_OF_MPI for end in ends)]
    for _, number in between:
        shut_down(one, number)
    print(f"{len(between)} connections broken between processes {one} and {other}")
    return 0 if between else 1


if __name__ == "__main__":
    sys.exit(main())
