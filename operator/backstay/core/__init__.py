"""The pure heart: documents in, configs, plans, verdicts and status out.

Rule: no await, no clock, no randomness, no files, no sockets. What is needed is an argument.
"""
