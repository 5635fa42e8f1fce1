"""One run of a subject under one schedule, and the schedules: drawn at random, or written as a
plan, which is shrunk to the least that still breaks.
"""
