"""The base of the modules and suites in `eval_suites/`."""
