"""Frames, tables, TLBs and IPIs behave like a flat machine that is spelled out page by page."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from septum.machine import GARBAGE, Machine, MachineConfig, PhysMem, TablePage, Tlb
from septum.sim import Sim

KEYS = st.sampled_from([0, 33, 34])
OPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 1100), KEYS, st.integers(0, 5)),
        st.tuples(st.just("fill"), st.integers(0, 600), KEYS, st.integers(0, 5)),
        st.tuples(st.just("fill2m"), st.sampled_from([0, 512]), KEYS, st.integers(0, 5)),
        st.tuples(st.just("reset"), st.integers(0, 1100), st.just(0), st.just(0)),
        st.tuples(st.just("reset2m"), st.sampled_from([0, 3]), st.just(0), st.just(0)),
        st.tuples(st.just("flush"), st.integers(0, 1100), KEYS | st.none(), st.just(0)),
        st.tuples(st.just("flush2m"), st.sampled_from([0, 3]), KEYS | st.none(), st.just(0)),
        st.tuples(st.just("flush all"), st.just(0), st.none(), st.just(0)),
    ),
    max_size=12,
)


def flush(flat: dict[int, tuple[int, int, int]], frames: Iterable[int], key: int | None) -> None:
    """The dirty lines of `frames` that have `key` (None: any) are in memory, with their key."""
    for pfn in frames:
        token, _, dirty = flat.get(pfn, (0, 0, -1))
        if dirty != -1 and key in (None, dirty):
            flat[pfn] = (token, dirty, -1)


def reset(flat: dict[int, tuple[int, int, int]], frames: Iterable[int]) -> None:
    """Direct stores of the host: dirty lines of a private key stay."""
    for pfn in frames:
        dirty = flat.get(pfn, (0, 0, -1))[2]
        flat[pfn] = (0, 0, dirty if dirty > 0 else -1)


@given(OPS)
def test_blocks_of_frames_equal_a_flat_memory(ops: list[tuple[str, int, int | None, int]]) -> None:
    mem = PhysMem(Sim(), MachineConfig())
    flat: dict[int, tuple[int, int, int]] = {}
    for op, pfn, key, token in ops:
        if op == "write":
            mem.write(pfn, key, token)
            flat[pfn] = (token, key, key)
        elif op == "flush":
            mem.wbinvd_page(pfn, key)
            flush(flat, (pfn,), key)
        elif op == "flush2m":
            mem.wbinvd_pages(pfn, 600, key)
            flush(flat, range(pfn, pfn + 600), key)
        elif op == "flush all":
            mem.wbinvd()
            flush(flat, tuple(flat), None)
        elif op == "reset":
            mem.movdir64b(pfn)
            reset(flat, (pfn,))
        elif op == "reset2m":
            mem.movdir64b(pfn, 600)
            reset(flat, range(pfn, pfn + 600))
        else:
            nr = 512 if op == "fill2m" else 530
            mem.fill(pfn, nr, key, token)
            flat.update(dict.fromkeys(range(pfn, pfn + nr), (token, key, key)))
    for pfn in range(0, 1200, 7):
        token, key, dirty = flat.get(pfn, (0, 0, -1))
        assert (mem.token_of(pfn), mem.key_of(pfn), mem.dirty_of(pfn)) == (token, key, dirty)


def test_reading_with_a_wrong_private_key_is_a_machine_check() -> None:
    sim = Sim()
    mem = PhysMem(sim, MachineConfig())
    mem.write(5, 33, 77)
    assert mem.read(5, 33) == 77
    assert mem.read(5, 0) == GARBAGE
    assert not sim.findings
    mem.write(5, 0, 1)
    assert mem.read(5, 33) == GARBAGE
    assert [f.promise for f in sim.findings] == ["no-bug"]


def test_dirty_lines_of_the_host_over_what_the_module_writes() -> None:
    """Whoever gives a page to the module flushes its lines first."""
    sim = Sim()
    mem = PhysMem(sim, MachineConfig())
    mem.write(5, 0, 1)
    mem.clflush(5)
    mem.write(5, 33, 77)
    assert not sim.findings
    mem.write(6, 0, 1)
    mem.write(6, 33, 77)
    assert [finding.promise for finding in sim.findings] == ["cache"]


def test_a_frame_that_nobody_wrote_to_is_zeros_by_the_hosts_key() -> None:
    """Whether others of its 2 MB were written or not."""
    mem = PhysMem(Sim(), MachineConfig())
    for _ in range(2):
        assert [mem.read(5, hkid) for hkid in (0, 3, 33)] == [0, GARBAGE, GARBAGE]
        assert (mem.token_of(5), mem.key_of(5), mem.dirty_of(5)) == (0, 0, -1)
        mem.write(6, 0, 1)


@given(
    st.tuples(st.integers(0, 2**50), st.sampled_from([0, 1, 4096])),
    st.lists(st.tuples(st.integers(0, 511), st.integers(0, 2**64 - 1)), max_size=6),
)
def test_a_table_page_equals_512_plain_entries(
    template: tuple[int, int], writes: list[tuple[int, int]]
) -> None:
    base, stride = template
    page = TablePage(1)
    page.fill(base, stride)
    plain = [base + i * stride for i in range(512)]
    for index, value in writes:
        page.set_entry(index, value)
        plain[index] = value
    assert list(page.values()) == plain
    assert [page.entry(i) for i in range(512)] == plain


def test_compare_exchange_tells_what_it_found() -> None:
    page = TablePage(1, 5)
    assert page.try_cmpxchg(3, 5, 9) == 5
    assert page.try_cmpxchg(3, 5, 7) == 9
    assert page.entry(3) == 9


def test_a_tlb_keeps_translations_of_every_size_until_flushed() -> None:
    tlb = Tlb()
    tlb.insert(1, 0x200, 2, 0x1000, True, 33)
    tlb.insert(1, 0x40000, 3, 0x80000, True, 33)
    tlb.insert(2, 0x3FF, 1, 0x77, True, 34)
    hit = tlb.lookup(1, 0x3FF)
    assert hit is not None
    assert hit.pfn == 0x1000
    assert tlb.lookup(1, 0x400) is None
    assert tlb.lookup(1, 0x7FFFF) is not None
    tlb.flush(1)
    assert tlb.lookup(1, 0x200) is None
    assert tlb.lookup(2, 0x3FF) is not None


def test_an_ipi_to_a_processor_with_interrupts_off_waits_for_it() -> None:
    sim = Sim()
    machine = Machine(sim, MachineConfig(num_lps=2))
    order: list[str] = []

    def target() -> None:
        machine.lps[1].local_irq_disable()
        sim.point("critical section")
        sim.point("critical section")
        order.append("interrupts on")
        machine.lps[1].local_irq_enable()

    def sender() -> None:
        sim.point("later")
        machine.send_ipi_and_wait([0, 1])
        order.append("acknowledged")

    sim.spawn("target", target, cpu=1)
    sim.spawn("sender", sender, cpu=0)
    sim.run()
    assert order == ["interrupts on", "acknowledged"]
    assert not sim.findings
