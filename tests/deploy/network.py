"""A network and processes of their own, for checks that use fixed ports and start servers."""

import fcntl
import os
import socket
import struct
import subprocess
import sys

INSIDE = "inside"


def run_in_own_network(program, *arguments):
    """Runs a Python program, its first argument INSIDE, where all ports are free and nothing outside
    can reach them. What it starts ends with it."""
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command += [] if os.geteuid() == 0 else ["--map-root-user"]
    return subprocess.run([*command, sys.executable, program, INSIDE, *arguments]).returncode


def loopback_up():
    """What `ip link set lo up` does; a new network has its loopback device down."""
    with socket.socket() as any_socket:
        request = struct.pack("16sh", b"lo", 1 | 64)  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS
