"""Searches as jobs of several processes, what these tell each other, and the one answer of all."""
