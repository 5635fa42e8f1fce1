"""Septum (S-EPT in User Mode): a TDX host that runs in a Python process."""

__version__ = "0.1.0"
