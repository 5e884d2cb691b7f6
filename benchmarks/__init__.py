"""Timings of fastnorm against torch's own operators, and reports on its compiled kernels.

    shapes, inputs        the cases and their least traffic; their tensors
    providers             the sides of a comparison: fastnorm, torch eager and compiled, others
    check                 a provider's results against float64, before any timing
    timing, allocator     the clocks of a GPU and of a CPU; malloc kept out of them
    measure, run          one case; `python -m benchmarks.run`, which writes the rows
    warm                  `python -m benchmarks.warm`: compiles for a run, in many processes
    rows, goals           the rows as they are read; the goals, met or missed
    summary, plot         speed-ups as text; `python -m benchmarks.plot`, the figures
    page                  `python -m benchmarks.page`: the table of goals in docs/benchmarks.md
    window, parts         `make gpu` and the like: parts with hard limits, and the list of them
    smoke, smoke_cases, test_smoke
                          each norm, tier, layout, dtype and fusion once, against float64
    pytest_lines          a plugin: a line for each test, for runs that may be cut
    alternatives, tune    `make gpu-tune`: other tiles, warps and tiers for a missed goal
    fitting_study         for `make gpu-study`: cifar/study.py with as many epochs as fit
    cpu, plot_cpu         `python -m benchmarks.cpu`, pairs on a CPU; results/cpu.png from its rows
    small                 `python -m benchmarks.small`: the cost of a call on 32 elements
    threads               `python -m benchmarks.threads`: one thread against all
    memory                `python -m benchmarks.memory`: bytes kept for backward
    models, model_zoo     `python -m benchmarks.models`: steps of whole models, and the models
    test_norms            the same cases with pytest-benchmark
    compile_only          compiles kernels for a GPU that is not there
    machine_code          a compiled kernel's accesses to memory, read from its code
    codegen               `python -m benchmarks.codegen`: a report and a verdict on every kernel
    predict/              `python -m benchmarks.predict`: estimated times, from machine code
    compiled              `python -m benchmarks.compiled`: a table of executed instructions
    compiled_cases, _counts, _peers    its cases; their counts; those of another package
    recompilations        `python -m benchmarks.recompilations`: kernels needed by batch sizes

Nothing here is installed.
"""
