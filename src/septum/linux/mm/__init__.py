"""The host's memory management, as far as TDX needs it: pages, folios, hugetlb pools.

`Mm` is the unit; every allocation names its call site, so that its failure is a choice point and
a leak has a name.
"""

from septum.linux.mm.mm import Mm

__all__ = ["Mm"]
