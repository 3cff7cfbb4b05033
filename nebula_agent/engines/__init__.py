"""What the agent knows of each kind of engine: its command line, its health path, its names for the figures.

One file per engine. Values in, values out: nothing here starts or calls anything.
"""
