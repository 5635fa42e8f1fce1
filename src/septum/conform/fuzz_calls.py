"""What the fuzzer calls next: TDs built and taken down, and calls of any kind between.

Operands are mostly near valid: pages that are free or in use where that is wanted, GPAs where the
S-EPT walk just ends; one call in a few has a register replaced by anything at all.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from septum.abi.leaves import SEAMCALL_LEAVES
from septum.abi.sept import PS
from septum.conform.scene import GIGABYTE, MIN_TDCS_PAGES, MIN_TDVPS_PAGES, TD_PARAMS
from septum.module.pamt import PT_NDA
from septum.module.state import TD_KEYS_CONFIGURED

if TYPE_CHECKING:
    from random import Random

    from septum.conform.scene import Scene

MASK64 = (1 << 64) - 1
NULL_PA = MASK64
OPERANDS = ("rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13")

TDRS = (0x4000_0000, 0x4004_0000, 0x4008_0000)
VCPUS_PER_TD = 2
CONTROL_PAGES = tuple(range(0x400C_0000, 0x4010_0000, 0x1000))
PAMT_PAGES = tuple(range(0x4040_0000, 0x4044_0000, 0x1000))
SMALL_PAGES = (*range(0x4100_0000, 0x4102_0000, 0x1000), 0x4110_0000, 0x411F_F000)
LARGE_PAGES = tuple(range(0x4200_0000, 0x4300_0000, 0x20_0000))
OTHER_PAGES = (0xFFE0_0000, 0xFFC0_0000, 0xC000_0000, 0x3000_0000, 0x1_C000_0000, 0)
GPAS = (
    0x4000_0000,
    0x4000_1000,
    0x401F_F000,
    0x4020_0000,
    0x4020_3000,
    0x8000_0000,
    0x0,
    0x7F_FFE0_0000,
    0x3FFF_FFFF_F000,
)

ANY_LP = -1


class Call(NamedTuple):
    """A TDH.* call to make, on processor `lp` if that matters."""

    name: str
    version: int
    operands: dict[str, int]
    lp: int = ANY_LP


_S_EPT_LEAVES = (
    ("TDH.MEM.SEPT.ADD", 14),
    ("TDH.MEM.PAGE.AUG", 22),
    ("TDH.MEM.RANGE.BLOCK", 18),
    ("TDH.MEM.RANGE.UNBLOCK", 4),
    ("TDH.MEM.TRACK", 14),
    ("TDH.MEM.PAGE.DEMOTE", 9),
    ("TDH.MEM.PAGE.PROMOTE", 7),
    ("TDH.MEM.PAGE.REMOVE", 8),
    ("TDH.MEM.SEPT.REMOVE", 4),
    ("TDH.MEM.PAGE.RELOCATE", 3),
    ("TDH.MEM.SEPT.RD", 3),
    ("TDH.MEM.PAGE.ADD", 2),
    ("TDH.MR.EXTEND", 1),
)
_OTHER_LEAVES = (
    ("TDH.PHYMEM.PAGE.RDMD", 3),
    ("TDH.PHYMEM.PAGE.RECLAIM", 2),
    ("TDH.PHYMEM.PAGE.WBINVD", 1),
    ("TDH.PHYMEM.PAMT.ADD", 5),
    ("TDH.PHYMEM.PAMT.REMOVE", 3),
    ("TDH.PHYMEM.CACHE.WB", 1),
    ("TDH.MNG.CREATE", 1),
    ("TDH.MNG.KEY.CONFIG", 1),
    ("TDH.MNG.ADDCX", 1),
    ("TDH.MNG.INIT", 1),
    ("TDH.MNG.VPFLUSHDONE", 1),
    ("TDH.MNG.KEY.FREEID", 1),
    ("TDH.MNG.KEY.RECLAIMID", 1),
    ("TDH.VP.CREATE", 1),
    ("TDH.VP.ADDCX", 1),
    ("TDH.VP.INIT", 1),
    ("TDH.VP.FLUSH", 1),
    ("TDH.MR.FINALIZE", 1),
)
_WEIGHTED = tuple(name for name, n in _S_EPT_LEAVES + _OTHER_LEAVES for _ in range(n))
_EVERY_LEAF = tuple(sorted(set(SEAMCALL_LEAVES) - {"TDH.VP.ENTER"}))
_MIN_LEVEL = {"TDH.MEM.PAGE.DEMOTE": 1, "TDH.MEM.PAGE.PROMOTE": 1, "TDH.MEM.SEPT.ADD": 1}
_MAX_LEVEL = {"TDH.MEM.PAGE.AUG": 1, "TDH.MEM.PAGE.ADD": 0, "TDH.MEM.PAGE.RELOCATE": 0}


class CallSource:
    """Chooses host calls for one scene. All randomness comes from `rng`."""

    def __init__(self, scene: Scene, rng: Random) -> None:
        self.scene = scene
        self.rng = rng
        self.agenda: deque[Call] = deque()

    # ---- building and taking down

    def plan_build(self, tdr: int) -> None:
        """Put the calls that build a TD, with vCPUs and some S-EPT, on the agenda."""
        rng = self.rng
        add = self._add
        for page in (0x4000_0000, 0x4100_0000):
            add(
                "TDH.PHYMEM.PAMT.ADD",
                rcx=page | 1,
                rdx=self.free_page(PAMT_PAGES),
                r8=self.free_page(PAMT_PAGES),
            )
        add("TDH.MNG.CREATE", rcx=tdr, rdx=33 + rng.randrange(4))
        add("TDH.MNG.KEY.CONFIG", rcx=tdr)
        add("TDH.MNG.KEY.CONFIG", rcx=tdr)
        for index in range(1, MIN_TDCS_PAGES + 1 + (rng.random() < 0.2)):
            add("TDH.MNG.ADDCX", rcx=tdr + (index << 12), rdx=tdr)
        add("TDH.MNG.INIT", rcx=tdr, rdx=TD_PARAMS)
        for tdvpr in self.tdvprs(tdr):
            add("TDH.VP.CREATE", rcx=tdvpr, rdx=tdr)
            for index in range(1, MIN_TDVPS_PAGES):
                add("TDH.VP.ADDCX", rcx=tdvpr + (index << 12), rdx=tdvpr)
            add("TDH.VP.INIT", rcx=tdvpr)
        for level in (3, 2, 1) if rng.random() < 0.5 else (3, 2):
            add(
                "TDH.MEM.SEPT.ADD",
                rcx=(0x4000_0000 if level < 3 else 0) | level,
                rdx=tdr,
                r8=self.free_page(CONTROL_PAGES),
            )
        for page in range(rng.randrange(4)):
            add(
                "TDH.MEM.PAGE.ADD",
                rcx=0x4000_0000 + (page << 12),
                rdx=tdr,
                r8=self.free_page(SMALL_PAGES),
                r9=rng.choice((0x2000, 0x2000, 0x1_C000_0000)),
            )
            add("TDH.MR.EXTEND", rcx=0x4000_0000 + (page << 12) + 0x100, rdx=tdr)
        if rng.random() < 0.85:
            add("TDH.MR.FINALIZE", rcx=tdr)

    def plan_teardown(self, tdr: int) -> None:
        """Put the calls that end a TD on the agenda, with its pages in any order."""
        add = self._add
        for tdvpr in self.tdvprs(tdr):
            for lp in range(self.scene.machine.config.num_lps):
                add("TDH.VP.FLUSH", rcx=tdvpr, lp=lp)
        add("TDH.MNG.VPFLUSHDONE", rcx=tdr)
        for lp in range(self.scene.machine.config.num_packages):
            add("TDH.PHYMEM.CACHE.WB", rcx=0, lp=lp)
        add("TDH.MNG.KEY.FREEID", rcx=tdr)
        pages = [tdr + (i << 12) for i in range(1, 64)]
        pages += [*CONTROL_PAGES, *SMALL_PAGES, *LARGE_PAGES]
        pamt = self.scene.module.pamt
        found = [hpa for hpa in pages if (pamt.lookup(hpa) or (0, 0, 0))[2] == tdr >> 12]
        self.rng.shuffle(found)
        for hpa in found:
            add("TDH.PHYMEM.PAGE.RECLAIM", rcx=hpa)
        add("TDH.PHYMEM.PAGE.RECLAIM", rcx=tdr)

    def plan_gigabyte(self, tdr: int, gpa: int) -> None:
        """AUG 512 large pages of one TDMR, so that PROMOTE to 1 GB and DEMOTE are possible."""
        add = self._add
        add("TDH.MEM.SEPT.ADD", rcx=gpa >> 39 << 39 | 3, rdx=tdr, r8=self.free_page(CONTROL_PAGES))
        add("TDH.MEM.SEPT.ADD", rcx=gpa | 2, rdx=tdr, r8=self.free_page(CONTROL_PAGES))
        for index in range(512):
            add(
                "TDH.MEM.PAGE.AUG",
                rcx=gpa + (index << 21) | 1,
                rdx=tdr,
                r8=GIGABYTE + (index << 21),
            )
        for _ in range(3):
            add("TDH.MEM.RANGE.BLOCK", rcx=gpa | 2, rdx=tdr)
            add("TDH.MEM.TRACK", rcx=tdr)
            add("TDH.MEM.PAGE.PROMOTE", rcx=gpa | 2, rdx=tdr)
            add("TDH.MEM.RANGE.BLOCK", rcx=gpa | 2, rdx=tdr)
            add("TDH.MEM.TRACK", rcx=tdr)
            add("TDH.MEM.PAGE.DEMOTE", rcx=gpa | 2, rdx=tdr, r8=self.free_page(CONTROL_PAGES))

    def _add(self, name: str, lp: int = ANY_LP, **operands: int) -> None:
        self.agenda.append(Call(name, 0, operands, lp))

    # ---- single calls

    def next_call(self) -> Call:
        """The next call of the agenda, or any call."""
        rng = self.rng
        if self.agenda and rng.random() < 0.9:
            call = self.agenda.popleft()
            return call if rng.random() < 0.97 else self.disturb(call)
        chance = rng.random()
        if chance < 0.03 and not self.agenda:
            self._plan()
        if chance < 0.02:
            name = rng.choice(_EVERY_LEAF)
            operands = {register: self.anything() for register in OPERANDS}
            return Call(name, rng.choice((0, 0, 0, 1, 2, 255)), operands)
        name = rng.choice(_WEIGHTED)
        if name == "TDH.MNG.VPFLUSHDONE" and rng.random() < 0.9:
            name = "TDH.MEM.TRACK"  # a TD should live for a while
        call = self.near_valid(name)
        return call if rng.random() < 0.88 else self.disturb(call)

    def _plan(self) -> None:
        """Build a TD that is not there; end one that lost its keys, or, seldom, one that lives."""
        tdr = self.rng.choice(TDRS)
        td = self.scene.module.tds.get(tdr >> 12)
        if td is None:
            self.plan_build(tdr)
        elif td.lifecycle != TD_KEYS_CONFIGURED or self.rng.random() < 0.04:
            self.plan_teardown(tdr)

    def follow_up(self, operands: dict[str, int], after: int) -> None:
        """A range was blocked: mostly, track it and do what it was blocked for.

        `after` is the raw entry.
        """
        rng = self.rng
        rcx, tdr = operands["rcx"], operands["rdx"]
        if rng.random() < 0.3:
            return
        choices = ("PAGE.PROMOTE", "SEPT.REMOVE")
        if after & PS:
            choices = (
                ("PAGE.DEMOTE", "PAGE.REMOVE") if rcx & 7 else ("PAGE.REMOVE", "PAGE.RELOCATE")
            )
        name = "TDH.MEM." + rng.choice((choices[0], *choices, "RANGE.UNBLOCK"))
        call = self.near_valid(name)
        call = call._replace(operands=call.operands | {"rcx": rcx, "rdx": tdr})
        self.agenda.appendleft(call if rng.random() < 0.85 else self.disturb(call))
        if rng.random() < 0.9:
            self.agenda.appendleft(Call("TDH.MEM.TRACK", 0, {"rcx": tdr}))

    def near_valid(self, name: str) -> Call:
        """A call of `name` that could succeed, as far as one look at the state can tell."""
        rng = self.rng
        maker = getattr(self, "_" + name.removeprefix("TDH.").replace(".", "_").lower())
        operands: dict[str, int] = maker(name)
        version = 0
        if name in ("TDH.MEM.PAGE.PROMOTE", "TDH.MEM.SEPT.ADD", "TDH.MEM.SEPT.REMOVE"):
            version = 1 if rng.random() < 0.25 else 0
            if version:
                operands |= {"r9": NULL_PA, "r10": NULL_PA, "r11": NULL_PA}
        return Call(name, version, operands)

    def disturb(self, call: Call) -> Call:
        """`call` with one register (or its version) replaced by anything."""
        operands = call.operands
        rng = self.rng
        if rng.random() < 0.05:
            return call._replace(version=rng.randrange(4))
        register = rng.choice(tuple(operands) if operands and rng.random() < 0.9 else OPERANDS)
        chance = rng.random()
        old = operands.get(register, 0)
        if chance < 0.35:
            new = old ^ 1 << rng.randrange(64)
        elif chance < 0.5:
            new = old ^ rng.choice((0x1000, 0x20_0000, 1, 2, 3, 1 << 47, 1 << 52, 0x21 << 40))
        else:
            new = self.anything()
        return call._replace(operands=operands | {register: new})

    def anything(self) -> int:
        """Any 64-bit value, with a taste for those that mean something."""
        rng = self.rng
        chance = rng.random()
        if chance < 0.25:
            return rng.getrandbits(64)
        if chance < 0.35:
            return rng.choice((0, 1, 2, 3, 4, 7, NULL_PA, 1 << 63, 0x7FFF_FFFF_FFFF_F000))
        if chance < 0.6:
            return rng.choice(GPAS) | rng.randrange(5)
        pool: tuple[int, ...] = rng.choice(
            (TDRS, CONTROL_PAGES, PAMT_PAGES, SMALL_PAGES, LARGE_PAGES, OTHER_PAGES)
        )
        return rng.choice(pool) + rng.choice((0, 0, 0, 1, 0x1000, 0x1_0000))

    # ---- operands

    def tdvprs(self, tdr: int) -> tuple[int, ...]:
        """Where the vCPUs of a TD slot have their TDVPR pages."""
        return tuple(tdr + 0x1_0000 + index * 0x8000 for index in range(VCPUS_PER_TD))

    def tdr(self) -> int:
        """A TDR, mostly of a TD that has its keys."""
        tdr = self.rng.choice(TDRS)
        for _ in range(2):
            td = self.scene.module.tds.get(tdr >> 12)
            if td is not None and td.lifecycle == TD_KEYS_CONFIGURED:
                break
            tdr = self.rng.choice(TDRS)
        return tdr

    def free_page(self, pool: tuple[int, ...]) -> int:
        """A page of `pool`, free if three tries find one."""
        rng = self.rng
        lookup = self.scene.module.pamt.lookup
        hpa = rng.choice(pool)
        for _ in range(3 if rng.random() < 0.95 else 0):
            found = lookup(hpa)
            if found is not None and found[1] == PT_NDA:
                break
            hpa = rng.choice(pool)
        return hpa

    def _where(self, tdr: int) -> tuple[int, int]:
        """A GPA of the pool and the level at which its walk ends."""
        gpa = self.rng.choice(GPAS)
        td = self.scene.module.tds.get(tdr >> 12)
        if td is None or td.root is None or td.lifecycle != TD_KEYS_CONFIGURED:
            return gpa, self.rng.randrange(4)
        return gpa, self.scene.module.sept_entry(td.tdr_pfn, gpa)[0]

    def _gpa_info(self, name: str, tdr: int) -> int:
        """RCX: a GPA with the level at which the call has something to do."""
        rng = self.rng
        gpa, level = self._where(tdr)
        chance = rng.random()
        if name in ("TDH.MEM.PAGE.PROMOTE", "TDH.MEM.SEPT.REMOVE") or chance < 0.08:
            level += 1
        elif chance < 0.12:
            level -= 1
        level = max(_MIN_LEVEL.get(name, 0), min(level, _MAX_LEVEL.get(name, 3)))
        return gpa >> 12 + 9 * level << 12 + 9 * level | level

    def _on_entry(self, name: str) -> dict[str, int]:
        tdr = self.tdr()
        return {"rcx": self._gpa_info(name, tdr), "rdx": tdr}

    _mem_range_block = _mem_range_unblock = _mem_page_promote = _on_entry
    _mem_page_remove = _mem_sept_remove = _mem_sept_rd = _on_entry

    def _mem_sept_add(self, name: str) -> dict[str, int]:
        operands = self._on_entry(name) | {"r8": self.free_page(CONTROL_PAGES)}
        if self.rng.random() < 0.1:
            operands["rdx"] |= 1
        return operands

    def _mem_page_aug(self, name: str) -> dict[str, int]:
        operands = self._on_entry(name)
        operands["r8"] = self.free_page(LARGE_PAGES if operands["rcx"] & 7 else SMALL_PAGES)
        return operands

    def _mem_page_relocate(self, name: str) -> dict[str, int]:
        return self._on_entry(name) | {"r8": self.free_page(SMALL_PAGES)}

    def _mem_page_add(self, name: str) -> dict[str, int]:
        return self._on_entry(name) | {"r8": self.free_page(SMALL_PAGES), "r9": 0x2000}

    def _mem_page_demote(self, name: str) -> dict[str, int]:
        return self._on_entry(name) | {
            "r8": self.free_page(CONTROL_PAGES),
            "r12": self.free_page(PAMT_PAGES),
            "r13": self.free_page(PAMT_PAGES),
        }

    def _on_td(self, name: str) -> dict[str, int]:
        return {"rcx": self.tdr()}

    _mem_track = _mng_key_config = _mng_vpflushdone = _mng_key_freeid = _mr_finalize = _on_td
    _mng_key_reclaimid = _on_td

    def _mng_init(self, name: str) -> dict[str, int]:
        return {"rcx": self.tdr(), "rdx": TD_PARAMS}

    def _mng_create(self, name: str) -> dict[str, int]:
        return {"rcx": self.rng.choice(TDRS), "rdx": self.rng.choice((31, 32, 33, 34, 35, 63, 64))}

    def _mng_addcx(self, name: str) -> dict[str, int]:
        return {"rcx": self.free_page(CONTROL_PAGES), "rdx": self.tdr()}

    def _mr_extend(self, name: str) -> dict[str, int]:
        return {
            "rcx": self.rng.choice(GPAS) + self.rng.choice((0, 0x100, 0xF00)),
            "rdx": self.tdr(),
        }

    def _on_vcpu(self, name: str) -> dict[str, int]:
        return {"rcx": self.rng.choice(self.tdvprs(self.tdr()))}

    _vp_init = _vp_flush = _on_vcpu

    def _vp_create(self, name: str) -> dict[str, int]:
        tdr = self.tdr()
        return {"rcx": self.rng.choice(self.tdvprs(tdr)), "rdx": tdr}

    def _vp_addcx(self, name: str) -> dict[str, int]:
        return {"rcx": self.free_page(CONTROL_PAGES), "rdx": self._on_vcpu(name)["rcx"]}

    def _any_page(self, name: str) -> dict[str, int]:
        pool = self.rng.choice((TDRS, CONTROL_PAGES, SMALL_PAGES, LARGE_PAGES, PAMT_PAGES))
        return {"rcx": self.rng.choice(pool) + self.rng.choice((0, 0, 0x1000, 0x1_0000))}

    _phymem_page_wbinvd = _any_page

    def _phymem_page_rdmd(self, name: str) -> dict[str, int]:
        level = self.rng.choice((0, 0, 0, 1, 2))
        return {"rcx": self._any_page(name)["rcx"] & ~((1 << 12 + 9 * level) - 1) | level}

    def _phymem_page_reclaim(self, name: str) -> dict[str, int]:
        return self._any_page(name)

    def _phymem_pamt_add(self, name: str) -> dict[str, int]:
        return {
            "rcx": self.rng.choice((0x4000_0000, 0x4100_0000, *LARGE_PAGES)) | 1,
            "rdx": self.free_page(PAMT_PAGES),
            "r8": self.free_page(PAMT_PAGES),
        }

    def _phymem_pamt_remove(self, name: str) -> dict[str, int]:
        return {"rcx": self.rng.choice((0x4100_0000, *LARGE_PAGES)) | 1}

    def _phymem_cache_wb(self, name: str) -> dict[str, int]:
        return {"rcx": self.rng.choice((0, 0, 1, 1, 2))}
