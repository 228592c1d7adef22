"""Code of one's own that a flag names as module:name: an attacker, a network. The module may lie in the current folder.

Whether there is such a name is told by the module's source, without running it: it imports TensorFlow, which takes
seconds to load.
"""
import ast
import contextlib
import importlib
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from typing import Any, Iterator, List, Optional

from runtime.errors import InputError

# Modules that use one of these names may have names that no line of them defines
UNKNOWABLE = {'__getattr__', 'exec', 'globals', 'setattr', 'vars'}


def check_code(what: str, name: str, form: str, example: str) -> None:
    """Raise InputError where `module:name` names no module, or one whose source can't be read or has no such name.

    what: the beginning of the message, like 'the attacker'. form, example: of what would be right, like module:Class.
    """
    module, _, attribute = name.partition(':')
    refusal = '%s %s can\'t be used: ' % (what, name)
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module.split('.')):
        raise InputError(refusal + '%s is expected, such as %s' % (form, example))
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


def load_code(what: str, name: str) -> Any:
    """Import what `module:name` names. Raises InputError, which begins with `what`, whatever goes wrong."""
    module, _, attribute = name.partition(':')
    try:
        with current_folder():
            package = importlib.import_module(module.split('.')[0]) if '.' in module else None
            if package is not None and also_here(package.__name__, list(package.__path__)) != list(package.__path__):
                package.__path__ = also_here(package.__name__, list(package.__path__))
            return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as e:  # whatever somebody else's module does
        raise InputError('%s %s can\'t be used (%s: %s)' % (what, name, type(e).__name__, e))


@contextlib.contextmanager
def current_folder() -> Iterator[None]:
    """Look for modules in the current folder too, after all other places."""
    before = list(sys.path)
    sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def also_here(package: str, places: List[str]) -> List[str]:
    """Return the folders where a package's modules are looked for: also, at last, that of its name in the current one,
    as somebody's attacks/ must not be hidden by this project's."""
    here = os.path.join(os.getcwd(), *package.split('.'))
    return places + [here] * (os.path.isdir(here) and here not in places)


def files_of(name: str) -> List[str]:
    """List the source files of `module:name`: its module's, and those of the modules that it imports from the same
    place, sorted."""
    first = name.partition(':')[0]
    spec = find_module(first)
    if spec is None or not spec.origin:
        return []
    place = spec.origin
    for _ in range(first.count('.') + (1 if spec.submodule_search_locations is None else 2)):
        place = os.path.dirname(place)
    waiting, seen, files = [first], set(), set()
    while waiting:
        module = waiting.pop()
        if module in seen or not module:
            continue
        seen.add(module)
        spec = find_module(module)
        if spec is None or not (spec.origin or '').endswith('.py') or not within(spec.origin, place):
            continue
        files.add(str(spec.origin))
        package = module if spec.submodule_search_locations is not None else module.rpartition('.')[0]
        waiting += [package, *imports(str(spec.origin), package)]
    return sorted(files)


def within(path: Optional[str], folder: str) -> bool:
    """Tell whether a file lies below a folder, but not among the packages that are installed there."""
    return str(path).startswith(folder + os.sep) and 'site-packages' not in str(path)[len(folder):]


def imports(path: str, package: str) -> Iterator[str]:
    """Yield the names of all that a source of `package` may import: modules, and names that may be modules."""
    with open(path, 'rb') as f:
        tree = ast.parse(f.read(), path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split('.') if package else []
            base = parts[:len(parts) - node.level + 1] if node.level else []
            module = '.'.join(base + ([node.module] if node.module else []))
            yield module
            yield from ('%s.%s' % (module, alias.name) for alias in node.names)


def find_module(name: str) -> Optional[ModuleSpec]:
    """Find a module of the current folder or of Python's path, without importing the packages that it is in."""
    spec, whole = None, ''
    with current_folder():
        for part in name.split('.'):
            places = None if spec is None else also_here(whole, list(spec.submodule_search_locations or ()))
            whole = '%s.%s' % (whole, part) if whole else part
            found = (finder.find_spec(whole, places) for finder in sys.meta_path if hasattr(finder, 'find_spec'))
            try:
                spec = next(filter(None, found), None)
            except KeyError:  # within a folder without __init__.py, which only an import makes a package
                spec = importlib.util.find_spec(name)
                break
            if spec is None:
                return None
    return spec


def names_in(tree: ast.AST) -> Iterator[str]:
    """Yield all names that a source uses or defines, wherever; '*' where it imports all of another module."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split('.')[0]
