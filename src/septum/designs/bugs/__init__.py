"""Hosts and modules with one bug that somebody could write: what a search must find."""

from septum.designs.registry import Design

DESIGNS: tuple[Design, ...] = ()
