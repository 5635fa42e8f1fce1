"""What each step of a run touches: told by the slots and containers of the model itself, which are
exchanged for such as log; and how all of it is put back before the next run.
"""
