"""Which folders are installed as which packages; everything else is static in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["fastnorm", "fastnorm.*"]), "fastnorm.kernels"],
    package_dir={"fastnorm.kernels": "kernels"},
    package_data={"fastnorm": ["py.typed"]},
)
