"""KVM: `mmu` and `tdp_mmu` (page tables), `tdx` (S-EPT), `guest_memfd`, `main` and `x86` (ioctls)."""
