"""The Python blocks of README.md run, one after the other, as a reader would type them."""

import re
from pathlib import Path

import fastnorm

README = Path(__file__).parent.parent / "README.md"


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    with fastnorm.use_backend("auto"):
        for block in blocks:
            exec(block, names)
    assert names["x"].grad is not None and names["norm"].rho.min() < 1
