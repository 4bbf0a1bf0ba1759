"""Engines with and without serving_ops, all alive at once, measured in turns: no server, no load generator between.

A comparison of a few percent drowns in what differs from one start of a server to the next, and in HTTP. Here every
variant has several engines, so that starts average out, and each round measures all of them within seconds of each
other, so that what the machine does meanwhile meets both variants alike.
"""
