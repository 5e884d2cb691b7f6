"""Estimated GPU time of each launch from its machine code, without a GPU.

One program's instructions are executed one by one, which gives exact counts, and played on a model
of one multiprocessor, whose latencies and bandwidths are assumed. No GPU has confirmed the times.

    sass, operands, arithmetic   machine code as data; what an instruction does, as Python
    thread, trace                a thread executed; a warp's instructions and the sectors it touches
    model, one_sm.cpp            the multiprocessor
    constants, estimate          a launch's arguments; its counts and its estimated time
    cases, rows, __main__        what is estimated, the report, the command
"""
