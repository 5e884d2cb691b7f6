"""The tests, in the order of fastnorm/; a package, so that files import tests.conftest by name.

functional/, modules/, conversion/, kernels/ and kernels_cpu/ (of kernels/cpu) have the tests of
these folders, and distributed/ those that start processes. The ways to compute (autograd.py,
reference/) have none of their own: what is computed is tested once, with the backend as a
parameter. What goes through all layers lies here (gradients, precision, transforms), in tracing/
(torch.compile, export), in faults/ (bad values, failed launches, threads), in properties/
(Hypothesis) or in torch_cases/ (torch's own samples). compiled/, a run of its own, executes
compiled kernels without a GPU; its executor/ has its tests beside it. `norms.py` is the table of
norms, of their calls and truths.
"""
