"""The host kernel in its own shape: `mm`, the TDX architecture code, and KVM.

Each C file is a class (a unit) whose methods are that file's functions under the kernel's names;
`septum.linux.host.Host` gathers them. The TDX module is reached by SEAMCALL alone.
"""
