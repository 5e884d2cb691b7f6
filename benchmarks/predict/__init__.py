"""Estimated GPU time of each launch from its machine code, without a GPU.

The instructions of one program are executed one by one, which gives exact counts. Then they are
played on a model of one multiprocessor with assumed latencies and bandwidths. No GPU has confirmed
the times.

    sass, operands, arithmetic   machine code as data; each instruction's effect, as Python
    thread, trace                a thread executed; a warp's instructions and the sectors it touches
    model, one_sm.cpp            the multiprocessor
    constants, estimate          a launch's arguments; its counts and its estimated time
    cases, rows, __main__        the cases, the report, the command
"""
