"""From a run that broke to text: what happened, where the damage was done, and why each step came
out as it did.
"""
