"""Names that no honest checkpoint has: what a pickle would call to run a program, open a file or load code.

Nothing that a pickle names is ever looked up or called, so this is a second lock. A file with one of these names was
made to attack whoever loads it, and is refused for that.
"""

from __future__ import annotations

_DEEPEST = 4  # parts of the longest name below

_MODULES = (
    *("os", "posix", "nt", "posixpath", "ntpath", "sys", "subprocess", "_posixsubprocess", "commands", "pty"),
    *("_winapi", "runpy", "code", "codeop", "importlib", "_frozen_importlib", "imp", "_imp", "pkgutil", "zipimport"),
    *("site", "pip", "marshal", "pickle", "_pickle", "cPickle", "pickletools", "shelve", "joblib", "types", "ctypes"),
    *("_ctypes", "cffi", "copyreg", "copy_reg", "codecs", "_codecs", "io", "_io", "shutil", "tempfile", "fileinput"),
    *("socket", "_socket", "socketserver", "ssl", "asyncio", "http", "httplib", "urllib", "urllib2", "requests"),
    *("httpx", "aiohttp", "ftplib", "smtplib", "poplib", "imaplib", "telnetlib", "xmlrpc", "webbrowser", "antigravity"),
    *("bdb", "pdb", "trace", "profile", "cProfile", "timeit", "doctest", "pydoc", "distutils", "ensurepip", "venv"),
    *("idlelib", "lib2to3", "sqlite3", "dbm", "gc", "atexit", "_thread", "thread", "_aix_support", "_osx_support"),
    *("logging.config", "test.support", "yaml", "pandas.eval", "pandas.read_pickle", "pandas.io"),
)
_BUILTINS = (
    *("eval", "exec", "execfile", "compile", "__import__", "reload", "__build_class__", "open", "file", "breakpoint"),
    *("getattr", "setattr", "delattr", "hasattr", "vars", "dir", "globals", "locals", "apply", "map", "filter"),
    *("reduce", "input", "raw_input", "help", "exit", "quit", "memoryview"),
)
_OPERATORS = ("attrgetter", "itemgetter", "methodcaller", "call")
_FUNCTIONS = (
    *("numpy.load", "numpy.loadtxt", "numpy.genfromtxt", "numpy.fromfile", "numpy.memmap", "numpy.lib"),
    *("numpy.testing", "numpy.f2py", "numpy.distutils", "numpy.ctypeslib", "torch.load", "torch.save", "torch.hub"),
    *("torch.jit", "torch.package", "torch.ops", "torch.classes", "torch.serialization.load", "torch.distributed.run"),
    *("torch.storage._load_from_bytes", "torch.utils.cpp_extension", "torch.utils.collect_env"),
)
_FORBIDDEN = frozenset((*_MODULES, *_FUNCTIONS))
_FORBIDDEN |= {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS}
_FORBIDDEN |= {f"{module}.{name}" for module in ("operator", "_operator") for name in _OPERATORS}

# What honest files do name of these: buffers (layers in FP8 keep their state in one), plain records, types as values.
_HONEST = frozenset(f"{module}.{name}" for module in ("io", "_io") for name in ("BytesIO", "StringIO"))
_HONEST |= {f"types.{name}" for name in ("SimpleNamespace", "MappingProxyType", "GenericAlias", "UnionType")}
_HONEST |= {"copyreg._reconstructor", "copy_reg._reconstructor", "_codecs.encode"}

# In the middle of a name: a way through a harmless module to one that is not, as in `logging.os.system`.
_HOPS = frozenset(("os", "sys", "posix", "nt", "subprocess", "builtins", "importlib", "shutil", "ctypes", "runpy"))


def is_forbidden(name: str) -> bool:
    """Whether a global, as `module.name`, has no place in a checkpoint."""
    if name in _HONEST:
        return False
    parts = name.split(".")
    begins = (".".join(parts[:count]) for count in range(1, _DEEPEST + 1))
    return any(begin in _FORBIDDEN for begin in begins) or any(map(_is_hop, parts[1:]))


def _is_hop(part: str) -> bool:
    hidden = part.startswith("__") and part.endswith("__") and part != "__main__"
    return hidden or part in _HOPS
