"""What the scripts set for their process, looked at in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# In a thread, and beyond 64 MiB, which is all that glibc lets a thread's own arena grow to.
FAULTS = """
import ctypes, resource, sys, threading
from training.startup import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
kept = keep_freed_memory() if sys.argv[1] == "kept" else False
def steps(count, size=2**27):
    for _ in range(count):
        block = libc.malloc(size)
        ctypes.memset(block, 1, size)
        libc.free(block)
def counted():
    steps(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    steps(4)
    print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=counted)
thread.start()
thread.join()
"""


def faults(how: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_large_blocks_are_reused_without_page_faults() -> None:
    kept, count = faults("kept")
    if kept == "False":
        pytest.skip("the C library has no mallopt")
    _, left_alone = faults("left alone")
    if left_alone < 1000:
        pytest.skip(f"{left_alone} faults for 512 MiB: huge pages leave nothing to gain")
    assert count < left_alone / 100


def test_what_comes_too_late_from_a_failed_save_is_not_printed():
    script = (
        "import tensorstore, time\nfrom training.startup import start\nstart()\n"
        "def late(text):\n"
        "    promise, future = tensorstore.Promise.new()\n"
        "    def tell(_):\n        raise RuntimeError(text)\n"
        "    future.add_done_callback(tell)\n    promise.set_result(0)\n    time.sleep(0.2)\n"
        "late('Event loop is closed')\nlate('something else')\n"
    )
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert "something else" in done.stderr
    assert "Event loop is closed" not in done.stderr
