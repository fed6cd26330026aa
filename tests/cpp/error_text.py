"""python error_text.py SHARED STATIC: libraries of error_text.cc, linked to libstdc++ in the two ways, in one process.

Python's executable has no C++ in it, so that each library is on its own, as extension modules are. In another order or
in a C++ program the linker would give both the same copy.
"""

import ctypes
import sys

for path in sys.argv[1:]:
    text = ctypes.create_string_buffer(100)
    ctypes.CDLL(path).error_text(text, ctypes.c_size_t(len(text)))
    if text.value != b"got -3 and 0.5":
        sys.exit(f"{path}: {text.value!r}")
