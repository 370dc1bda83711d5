"""Tests on real systems: see tests/system/conftest.py for the fixtures."""
