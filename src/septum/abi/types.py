"""Index types of the address spaces, so that a page number is not taken for an address.

`Gfn`/`Pfn` count 4 KB pages of guest-physical and host-physical memory; `Gpa`/`Hpa` are
byte addresses; `Hkid` is a memory-encryption key id.
"""

from typing import NewType

Gfn = NewType("Gfn", int)
Pfn = NewType("Pfn", int)
Gpa = NewType("Gpa", int)
Hpa = NewType("Hpa", int)
Hkid = NewType("Hkid", int)

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PMD_SHIFT = 21
PMD_SIZE = 1 << PMD_SHIFT
PUD_SHIFT = 30
PUD_SIZE = 1 << PUD_SHIFT
PTRS_PER_TABLE = 512
U64_MASK = (1 << 64) - 1
