"""What pyproject.toml cannot say: packages are found, and fxapprox.passes is one also where its link is a mere file."""

from setuptools import find_packages, setup

setup(packages=sorted({*find_packages(include=["fxapprox*"]), "fxapprox.passes"}))
