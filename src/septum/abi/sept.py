"""Secure EPT entries: bits, states, and the view of an entry that the module shows to a host.

    63   60:58     56  55  54  53  52  51:12             11    10  9  8  7   6     5:3  2  1  0
    SVE  L2 alias  P   B   BW  EX  HP  HPA with HKID     lock  Xu  D  A  PS  IPAT  MT   X  W  R

In a PENDING 2 MB leaf, bits 20:12 count the 4 KB chunks that an interrupted ACCEPT has done.
The state is held in bits 56:53, 9, 7 and 6.  Source: TDX module 1.5.25, S-EPT definitions.
"""

R = 1 << 0
W = 1 << 1
X = 1 << 2
MT_WB = 6 << 3
IPAT = 1 << 6
PS = 1 << 7
A = 1 << 8
D = 1 << 9
XU = 1 << 10
LOCK = 1 << 11
HP = 1 << 52
"""Host priority: a host call failed on this entry's lock and none has succeeded since."""
EXPORTED = 1 << 53
BLOCKED_W = 1 << 54
BLOCKED = 1 << 55
PENDING = 1 << 56
SVE = 1 << 63

HPA_MASK = 0x000F_FFFF_FFFF_F000
RWX = R | W | X | XU
RWX_HW = R | W | X
"""What the page walk tests: an entry with R = W = X = 0 is not present."""
ACCEPT_COUNTER_SHIFT = 12
ACCEPT_COUNTER = 511 << ACCEPT_COUNTER_SHIFT

STATE_MASK = PENDING | BLOCKED | BLOCKED_W | EXPORTED | D | PS | IPAT

# The state bits of each state (a subset of STATE_MASK).
STATE_FREE = EXPORTED | BLOCKED_W | BLOCKED
STATE_REMOVED = BLOCKED_W | BLOCKED
STATE_NL_MAPPED = 0
STATE_NL_BLOCKED = BLOCKED
STATE_MAPPED = PS | IPAT
STATE_BLOCKED = PS | IPAT | BLOCKED
STATE_PENDING = PS | IPAT | PENDING
STATE_PENDING_BLOCKED = PS | IPAT | PENDING | BLOCKED

# Whole entries, but for the HPA.
FREE_ENTRY = SVE | STATE_FREE
NL_MAPPED_ENTRY = SVE | RWX
MAPPED_ENTRY = SVE | STATE_MAPPED | MT_WB | RWX
PENDING_ENTRY = SVE | STATE_PENDING | MT_WB

# The number in RDX[15:8] of each state.
ARCH_STATE: dict[int, int] = {
    STATE_FREE: 0x00,
    STATE_REMOVED: 0x05,
    STATE_NL_MAPPED: 0x84,
    STATE_NL_BLOCKED: 0x81,
    STATE_MAPPED: 0x04,
    STATE_BLOCKED: 0x01,
    STATE_PENDING: 0x02,
    STATE_PENDING_BLOCKED: 0x03,
}
STATE_NAMES: dict[int, str] = {
    STATE_FREE: "FREE",
    STATE_REMOVED: "REMOVED",
    STATE_NL_MAPPED: "NL_MAPPED",
    STATE_NL_BLOCKED: "NL_BLOCKED",
    STATE_MAPPED: "MAPPED",
    STATE_BLOCKED: "BLOCKED",
    STATE_PENDING: "PENDING",
    STATE_PENDING_BLOCKED: "PENDING_BLOCKED",
}


def state_name(entry: int) -> str:
    """The state of a raw entry, by the specification's name."""
    return STATE_NAMES.get(entry & STATE_MASK, "?")


def is_leaf(entry: int) -> bool:
    """The entry maps a page (PS is set in every leaf, also of 4 KB)."""
    return bool(entry & PS)
