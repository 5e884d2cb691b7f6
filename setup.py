"""Which folders are installed as which packages; everything else is static in pyproject.toml."""

from setuptools import setup

setup(
    packages=["fastnorm", "fastnorm.kernels"],
    package_dir={"fastnorm.kernels": "kernels"},
    package_data={"fastnorm": ["py.typed"]},
)
