"""Whether there is such an attacker, as far as its source says it: the module is found and read, but not run.

An attacker's module imports TensorFlow, which takes seconds to load.
"""
import ast
import os
import sys
from importlib.machinery import ModuleSpec
from typing import Iterator, Optional

from runtime.errors import InputError

# Modules that use one of these names may have names that no line of them defines
UNKNOWABLE = {'__getattr__', 'exec', 'globals', 'setattr', 'vars'}


def check_attacker(name: str) -> None:
    """Raise InputError where `module:Class` names no module, or one whose source can't be read or has no such name."""
    module, _, attribute = name.partition(':')
    refusal = 'the attacker %s can\'t be used: ' % name
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module.split('.')):
        raise InputError(refusal + 'module:Class is expected, such as examples.momentum_attacker:MomentumAttacker')
    spec = find_module(module)
    if spec is None:
        raise InputError(refusal + 'there is no module %s in the current folder, %s, or on PYTHONPATH'
                         % (module, os.getcwd()))
    try:
        source = getattr(spec.loader, 'get_source', lambda _: None)(module)
        tree = ast.parse(source or '', spec.origin or module)
    except (SyntaxError, ValueError, ImportError, OSError) as e:
        raise InputError(refusal + 'the module can\'t be read (%s: %s)' % (type(e).__name__, e))
    names = set(names_in(tree))
    if source is not None and attribute not in names and '*' not in names and not UNKNOWABLE & names:
        raise InputError(refusal + 'there is no %s in %s' % (attribute, spec.origin))


def find_module(name: str) -> Optional[ModuleSpec]:
    """Find a module of the current folder or of Python's path, without importing the packages that it is in."""
    before, spec, whole = list(sys.path), None, ''
    sys.path.append(os.getcwd())
    try:
        for part in name.split('.'):
            places = None if spec is None else list(spec.submodule_search_locations or ())
            whole = '%s.%s' % (whole, part) if whole else part
            found = (finder.find_spec(whole, places) for finder in sys.meta_path if hasattr(finder, 'find_spec'))
            spec = next(filter(None, found), None)
            if spec is None:
                return None
        return spec
    finally:
        sys.path[:] = before


def names_in(tree: ast.AST) -> Iterator[str]:
    """Yield all names that a source uses or defines, wherever; '*' where it imports all of another module."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split('.')[0]
