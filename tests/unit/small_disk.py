"""A file system that is soon full."""

import contextlib
import math
import os
import subprocess


def can_mount():
    """Root of a container may have no right to."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], check=False, timeout=20).returncode == 0


@contextlib.contextmanager
def small_disk(folder, size=2**20, options="size=1m"):
    """A file system of 1 MB, filled but for `size` bytes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, timeout=20)
    try:
        filler = folder / "filler"
        if size < 2**20:
            filler.write_bytes(b"\0" * (2**20 - 4096 * math.ceil(size / 4096)))
        yield filler
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=20)
