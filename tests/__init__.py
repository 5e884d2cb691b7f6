"""The tests; a package, so that a test file can import tests.conftest and tests.norms by name."""
