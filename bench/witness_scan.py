"""What the witness takes of a pause: a scan of the kernel's record, for 1 GiB of guest memory.

python bench/witness_scan.py
"""

import os
import time

from vhostfast.core.driver import Mapping
from vhostfast.core.witness import Witness

SIZE = 1 << 30
PAGE = 4096


def scan_ms(witness: Witness, pages: int) -> float:
    """Of a record that has `pages` written ones."""
    begin = time.perf_counter()
    found = witness.written()
    spent = time.perf_counter() - begin
    assert sum(size for _, size in found) == pages * PAGE
    return spent * 1e3


def main() -> None:
    fd = os.memfd_create("memory")
    os.ftruncate(fd, SIZE)
    memory = Mapping(fd, SIZE, populate=True).array()
    os.close(fd)
    witness = Witness([(memory.ctypes.data, SIZE)])
    none = scan_ms(witness, 0)
    memory[::PAGE] = 1
    every = scan_ms(witness, SIZE // PAGE)
    witness.close()
    print(f"a scan of 1 GiB: {none:.1f} ms with no page written, {every:.0f} ms with all")


if __name__ == "__main__":
    main()
