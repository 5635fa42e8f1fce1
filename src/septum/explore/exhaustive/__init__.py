"""The search of everything within the bounds: the graph of states, the steps that were made once
and are known since, and the plain judge, which does without any of that.
"""
