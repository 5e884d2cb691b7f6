"""The tests, in the order of fastnorm/; a package, so that files import tests.conftest by name.

functional/, modules/, conversion/, kernels/ and kernels_cpu/ (for kernels/cpu) test these folders;
distributed/ starts processes. The ways to compute (autograd.py, reference/) have no tests of their
own: a result is tested once, with the backend as a parameter. Tests through all layers are here
(gradients, precision, transforms), in tracing/ (torch.compile, export), in faults/ (bad values,
failed launches, threads), in properties/ (Hypothesis) or in torch_cases/ (torch's own samples).
compiled/ is run separately: it executes compiled kernels without a GPU, and also tests its
executor/. `norms.py` is the table of norms, of their calls and truths.
"""
