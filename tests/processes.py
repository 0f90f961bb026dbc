"""What the processes of a tree are, and where they listen, as Linux tells it."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

_LISTENS = "0A"  # the state of a socket in /proc/net/tcp


def tree(root: int) -> set[int]:
    """A process and all that descend from it."""
    parents = {pid: parent for pid, (parent, _) in _living().items()}
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def session(leader: int) -> set[int]:
    """Those that live in the session of a process, be it itself gone."""
    return {pid for pid, (_, found) in _living().items() if found == leader}


def _living() -> dict[int, tuple[int, int]]:
    """Parent and session of each process: proc_pid_stat(5)."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, _, leader = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:  # gone meanwhile
            continue
        if state != "Z":
            found[int(folder.name)] = int(parent), int(leader)
    return found


def listeners(pids: set[int]) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses on which these processes listen."""
    sockets = {link for pid in pids for link in _open(pid)}
    found = []
    for pid in pids:
        for table in ("tcp", "tcp6"):
            file = Path(f"/proc/{pid}/net/{table}")
            for line in file.read_text().splitlines()[1:] if file.exists() else ():
                words = line.split()
                if words[3] == _LISTENS and f"socket:[{words[9]}]" in sockets:
                    found.append(_address(words[1].partition(":")[0]))
    return found


def _open(pid: int) -> set[str]:
    found = set()
    for each in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            found.add(str(each.readlink()))
        except OSError:  # closed meanwhile
            continue
    return found


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Of words in this machine's order of bytes."""
    packed = b"".join(int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8))
    address = ipaddress.ip_address(packed)
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address
