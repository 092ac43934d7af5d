"""What `hf_unlearn.audit` promises is there, whatever was imported before."""

import importlib
import inspect

import hf_unlearn.audit as door


def test_no_module_takes_the_name_of_a_function():
    for module in set(door._MODULES.values()):
        importlib.import_module(module)
    assert door.__all__ and not [name for name in door.__all__ if inspect.ismodule(getattr(door, name))]
