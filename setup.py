"""Which folders are installed as which packages; everything else is static in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["fastnorm", "fastnorm.*"], exclude=["fastnorm.kernels*"]),
        "fastnorm.kernels",
        "fastnorm.kernels.cpu",
    ],
    package_dir={"fastnorm.kernels": "kernels"},
    package_data={"fastnorm": ["py.typed"], "fastnorm.kernels.cpu": ["*.c", "*.h"]},
)
