"""Designs beside each other: which promises each breaks, within which bounds, and what it costs.

`plan` says what is run, `search` and `cost` run it, `pool` does so on all cores, `table` puts the
answers together, `text` and `page` show them.
"""
