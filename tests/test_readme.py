"""The Python blocks of README.md and docs/, run one after the other as a reader would type them."""

import re
from pathlib import Path

import pytest

import fastnorm

ROOT = Path(__file__).parent.parent


def run_blocks(page: Path, least: int) -> dict[str, object]:
    """The names that a page's blocks leave behind."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) >= least
    names: dict[str, object] = {}
    with fastnorm.use_backend("auto"):
        for block in blocks:
            exec(block, names)
    return names


@pytest.mark.parametrize("page", [path.name for path in (ROOT / "docs").glob("*.md")])
def test_pages(page):
    run_blocks(ROOT / "docs" / page, least=0)


def test_readme():
    names = run_blocks(ROOT / "README.md", least=4)
    assert names["x"].grad is not None and names["norm"].rho.min() < 1
