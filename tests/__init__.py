"""The test-suite of ipsec.pyz: units here, real systems in tests/system, what these run on in tests/ground."""
