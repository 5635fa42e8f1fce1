"""KVM: page tables (`mmu`, `tdp_mmu`), S-EPT (`tdx`), `guest_memfd`, ioctls (`main`, `x86`)."""
