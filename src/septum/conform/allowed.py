"""Which statuses each leaf may return, from the facts: leaf -> set of whole 64-bit statuses.

Built from the facts' blocks (explicit HPA, TD state, standard S-EPT beginning, tracking),
independently of the module's source.
"""

from __future__ import annotations

from septum.abi import status as s

RAX, RCX, RDX, R8, R9, R10, R11, R12, R13 = 0, 1, 2, 8, 9, 10, 11, 12, 13

Statuses = frozenset[int]


def _at(operand: int, *classes: int) -> Statuses:
    return frozenset(code | operand for code in classes)


def _used_page(operand: int) -> Statuses:
    """An explicit private HPA of a page in use (TDR, TDVPR)."""
    return _at(
        operand,
        s.TDX_OPERAND_INVALID,
        s.TDX_OPERAND_ADDR_RANGE_ERROR,
        s.TDX_OPERAND_BUSY,
        s.TDX_PAGE_METADATA_INCORRECT,
    )


def _new_page(operand: int) -> Statuses:
    """An explicit private HPA of a free page; its pair may be missing (Dynamic PAMT)."""
    return _used_page(operand) | _at(operand, s.TDX_MISSING_PAMT_PAGE_PAIR)


def _td_state(*allowed: int, locks_op_state: bool = True) -> Statuses:
    """FATAL, keys, TDCS pages, op_state lock, OP_STATE."""
    wrong = {s.TDX_OP_STATE_INCORRECT | state for state in (0, 1, 2) if state not in allowed}
    found = {s.TDX_TD_FATAL, s.TDX_TD_KEYS_NOT_CONFIGURED, s.TDX_TDCS_NOT_ALLOCATED} | wrong
    if locks_op_state:
        found.add(s.TDX_OPERAND_BUSY | s.OPERAND_ID_OP_STATE)
    return frozenset(found)


def _std(*, state_check: bool = True) -> Statuses:
    """TDR in RDX, TD state, GPA operand in RCX, tree lock, walk, entry lock, state check."""
    found = (
        _used_page(RDX)
        | _td_state(1, 2)
        | _at(RCX, s.TDX_OPERAND_INVALID, s.TDX_EPT_WALK_FAILED, s.TDX_OPERAND_BUSY)
        | {s.TDX_OPERAND_BUSY | s.OPERAND_ID_SEPT_TREE}
    )
    if state_check:
        found |= _at(RCX, s.TDX_EPT_ENTRY_STATE_INCORRECT)
    return found


_BASE = frozenset({s.TDX_SUCCESS, s.TDX_OPERAND_INVALID | RAX})
_TRACKING = _at(RCX, s.TDX_GPA_RANGE_NOT_BLOCKED, s.TDX_TLB_TRACKING_NOT_DONE)
_INTERRUPTED = frozenset({s.TDX_INTERRUPTED_RESTARTABLE, s.TDX_INTERRUPTED_BUSY})
_KOT_BUSY = frozenset({s.TDX_OPERAND_BUSY | s.OPERAND_ID_KOT})
_TDR_BUSY = frozenset({s.TDX_OPERAND_BUSY | s.OPERAND_ID_TDR})
_LIFECYCLE = frozenset({s.TDX_LIFECYCLE_STATE_INCORRECT})
_TD_FATAL = frozenset({s.TDX_TD_FATAL})


def _pamt_pages() -> Statuses:
    """The two new PAMT pages of DEMOTE."""
    return frozenset().union(
        *(
            _at(
                operand,
                s.TDX_OPERAND_INVALID,
                s.TDX_OPERAND_ADDR_RANGE_ERROR,
                s.TDX_OPERAND_BUSY,
                s.TDX_PAGE_NOT_FREE,
            )
            for operand in (R12, R13)
        )
    )


def _invalid(*operands: int) -> Statuses:
    return frozenset(s.TDX_OPERAND_INVALID | operand for operand in operands)


def _vcpu_state(*states: int) -> Statuses:
    return frozenset(s.TDX_VCPU_STATE_INCORRECT | state for state in states)


ALLOWED: dict[str, Statuses] = {
    leaf: _BASE | statuses
    for leaf, statuses in {
        "TDH.MEM.SEPT.ADD": _std() | _new_page(R8) | _invalid(RDX, R8, R9, R10, R11),
        "TDH.MEM.PAGE.AUG": _std() | _new_page(R8),
        "TDH.MEM.PAGE.ADD": (
            _used_page(RDX)
            | _td_state(1, locks_op_state=False)
            | _at(
                RCX,
                s.TDX_OPERAND_INVALID,
                s.TDX_EPT_WALK_FAILED,
                s.TDX_EPT_ENTRY_STATE_INCORRECT,
            )
            | _new_page(R8)
            | _invalid(R9)
        ),
        "TDH.MEM.RANGE.BLOCK": _std() | _at(RCX, s.TDX_GPA_RANGE_ALREADY_BLOCKED),
        "TDH.MEM.RANGE.UNBLOCK": _std() | _at(RCX, s.TDX_TLB_TRACKING_NOT_DONE),
        "TDH.MEM.TRACK": (
            _used_page(RCX)
            | _td_state(1, 2)
            | {s.TDX_OPERAND_BUSY | s.OPERAND_ID_TD_EPOCH, s.TDX_PREVIOUS_TLB_EPOCH_BUSY}
        ),
        "TDH.MEM.PAGE.DEMOTE": (
            _std() | _TRACKING | _new_page(R8) | _INTERRUPTED | _pamt_pages() | _invalid(RDX)
        ),
        "TDH.MEM.PAGE.PROMOTE": (
            _std() | _TRACKING | _INTERRUPTED | _at(RCX, s.TDX_EPT_INVALID_PROMOTE_CONDITIONS)
        ),
        "TDH.MEM.PAGE.REMOVE": _std() | _TRACKING,
        "TDH.MEM.SEPT.REMOVE": _std() | _TRACKING | _at(RCX, s.TDX_EPT_PAGE_NOT_FREE),
        "TDH.MEM.PAGE.RELOCATE": _std() | _TRACKING | _new_page(R8),
        "TDH.MEM.SEPT.RD": _std(state_check=False) | _invalid(RDX),
        "TDH.MNG.CREATE": _new_page(RCX) | _invalid(RDX) | _KOT_BUSY | {s.TDX_HKID_NOT_FREE},
        "TDH.MNG.KEY.CONFIG": (_used_page(RCX) | _TD_FATAL | _LIFECYCLE | {s.TDX_KEY_CONFIGURED}),
        "TDH.MNG.ADDCX": (
            _used_page(RDX)
            | _new_page(RCX)
            | {s.TDX_TD_FATAL, s.TDX_TD_KEYS_NOT_CONFIGURED, s.TDX_TDCX_NUM_INCORRECT}
            | {s.TDX_OP_STATE_INCORRECT | state for state in (1, 2)}
        ),
        "TDH.MNG.INIT": (
            _used_page(RCX)
            | _td_state(0, locks_op_state=False)
            | _invalid(RDX, *range(s.OPERAND_ID_ATTRIBUTES, s.OPERAND_ID_NUM_L2_VMS + 1))
        ),
        "TDH.VP.CREATE": _used_page(RDX) | _td_state(1) | _new_page(RCX),
        "TDH.VP.ADDCX": (
            _used_page(RDX)
            | _new_page(RCX)
            | _TDR_BUSY
            | _td_state(1)
            | {s.TDX_TDCX_NUM_INCORRECT}
            | _vcpu_state(2, 4, 8)
        ),
        "TDH.VP.INIT": (
            _used_page(RCX)
            | _TDR_BUSY
            | _td_state(1)
            | {s.TDX_TDCX_NUM_INCORRECT, s.TDX_MAX_VCPUS_EXCEEDED}
            | _vcpu_state(2, 4, 8)
        ),
        "TDH.VP.ENTER": (
            _used_page(RCX)
            | _TDR_BUSY
            | _td_state(2)
            | _vcpu_state(0, 4, 8)
            | {s.TDX_VCPU_ASSOCIATED, s.TDX_OPERAND_BUSY | s.OPERAND_ID_TD_EPOCH}
            # fewer TDVPS pages than needed; the zero-step filter's tree lock and its refusal
            | {s.TDX_TDCX_NUM_INCORRECT, s.TDX_OPERAND_BUSY | s.OPERAND_ID_SEPT_TREE, 0x30}
        ),
        "TDH.VP.FLUSH": (
            _used_page(RCX)
            | _TDR_BUSY
            | {s.TDX_TD_KEYS_NOT_CONFIGURED, s.TDX_TDCX_NUM_INCORRECT, s.TDX_VCPU_NOT_ASSOCIATED}
        ),
        "TDH.MNG.VPFLUSHDONE": (
            _used_page(RCX) | _KOT_BUSY | _LIFECYCLE | {s.TDX_FLUSHVP_NOT_DONE}
        ),
        "TDH.PHYMEM.CACHE.WB": (
            _invalid(RCX)
            | _KOT_BUSY
            | {
                s.TDX_OPERAND_BUSY | s.OPERAND_ID_WBCACHE,
                s.TDX_NO_HKID_READY_TO_WBCACHE,
                s.TDX_WBCACHE_RESUME_ERROR,
                s.TDX_INTERRUPTED_RESUMABLE,
            }
        ),
        "TDH.MNG.KEY.FREEID": (
            _used_page(RCX) | _KOT_BUSY | _LIFECYCLE | {s.TDX_WBCACHE_NOT_COMPLETE}
        ),
        "TDH.MNG.KEY.RECLAIMID": frozenset(),
        "TDH.PHYMEM.PAGE.RECLAIM": (
            _used_page(RCX) | _TDR_BUSY | _LIFECYCLE | {s.TDX_TD_ASSOCIATED_PAGES_EXIST}
        ),
        "TDH.PHYMEM.PAGE.RDMD": _at(
            RCX, s.TDX_OPERAND_INVALID, s.TDX_OPERAND_ADDR_RANGE_ERROR, s.TDX_OPERAND_BUSY
        ),
        "TDH.PHYMEM.PAGE.WBINVD": _used_page(RCX),
        "TDH.PHYMEM.PAMT.ADD": (
            _at(
                RCX,
                s.TDX_OPERAND_INVALID,
                s.TDX_OPERAND_ADDR_RANGE_ERROR,
                s.TDX_OPERAND_BUSY,
                s.TDX_HPA_RANGE_NOT_FREE,
            )
            | frozenset().union(
                *(
                    _at(
                        operand,
                        s.TDX_OPERAND_INVALID,
                        s.TDX_OPERAND_ADDR_RANGE_ERROR,
                        s.TDX_OPERAND_BUSY,
                        s.TDX_PAGE_NOT_FREE,
                    )
                    for operand in (RDX, R8)
                )
            )
        ),
        "TDH.PHYMEM.PAMT.REMOVE": (
            _at(
                RCX,
                s.TDX_OPERAND_INVALID,
                s.TDX_OPERAND_ADDR_RANGE_ERROR,
                s.TDX_OPERAND_BUSY,
                s.TDX_NO_PAMT_PAGE_PAIR,
            )
            | {s.TDX_PAMT_PAGE_NOT_EMPTY | page for page in (0, 1)}
        ),
        "TDH.MR.EXTEND": (
            _used_page(RDX)
            | _td_state(1, locks_op_state=False)
            | _at(RCX, s.TDX_OPERAND_INVALID, s.TDX_EPT_ENTRY_NOT_PRESENT)
            | {s.TDX_EPT_ENTRY_NOT_PRESENT}
        ),
        "TDH.MR.FINALIZE": (
            _used_page(RCX) | _td_state(1, locks_op_state=False) | {s.TDX_NO_VCPUS}
        ),
        "TDG.MEM.PAGE.ACCEPT": (
            _at(RCX, s.TDX_OPERAND_INVALID, s.TDX_OPERAND_BUSY)
            | {s.TDX_PAGE_ALREADY_ACCEPTED | level for level in (0, 1, 2)}
            | {s.TDX_PAGE_SIZE_MISMATCH | level for level in (0, 1)}
        ),
        "TDG.VP.VEINFO.GET": frozenset({s.TDX_NO_VALID_VE_INFO}),
    }.items()
}
"""For a leaf with facts, every status it may return."""

_METADATA = frozenset(
    code for code in s.STATUS_NAMES if s.STATUS_NAMES[code].startswith("TDX_METADATA_")
)
_FIELD_ACCESS = _METADATA | {
    s.TDX_SUCCESS,
    s.TDX_OPERAND_INVALID,
    s.TDX_OPERAND_ADDR_RANGE_ERROR,
    s.TDX_OPERAND_BUSY,
    s.TDX_PAGE_METADATA_INCORRECT,
    s.TDX_TD_FATAL,
    s.TDX_TD_KEYS_NOT_CONFIGURED,
    s.TDX_TDCS_NOT_ALLOCATED,
    s.TDX_OP_STATE_INCORRECT,
    s.TDX_VCPU_STATE_INCORRECT,
    s.TDX_TD_NON_DEBUG,
}
ALLOWED_CLASSES: dict[str, frozenset[int]] = {
    "TDH.MNG.RD": _FIELD_ACCESS,
    "TDH.MNG.WR": _FIELD_ACCESS,
    "TDH.VP.RD": _FIELD_ACCESS | {s.TDX_VCPU_NOT_ASSOCIATED, s.TDX_VCPU_ASSOCIATED},
    "TDH.VP.WR": _FIELD_ACCESS | {s.TDX_VCPU_NOT_ASSOCIATED, s.TDX_VCPU_ASSOCIATED},
    "TDH.SYS.RD": _FIELD_ACCESS,
    "TDH.SYS.RDALL": _FIELD_ACCESS,
}
"""For leaves that the facts only name: the classes that they may return, with any detail."""


def status_allowed(call: str, status: int) -> bool:
    """The facts allow `status` as an answer of `call`. Leaves without facts: bad operand only."""
    whole = ALLOWED.get(call)
    if whole is not None:
        return status in whole
    classes = ALLOWED_CLASSES.get(call)
    if classes is not None:
        return status & s.STATUS_MASK in classes
    return status & s.STATUS_MASK in (s.TDX_SUCCESS, s.TDX_OPERAND_INVALID, s.TDX_SYS_NOT_READY)
