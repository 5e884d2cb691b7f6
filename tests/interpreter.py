"""Triton's interpreter without its repeated work, which is most of the time of a launch.

At every call of a device function, of `tl.sum` and its like, it goes through all of
`triton.language` to patch names that are patched already. Here it does so only if there is
something to patch. Tests that start a separate process have the interpreter unchanged.
"""

from typing import Any

import triton.language as tl
from triton.runtime import interpreter

AS_IT_COMES = interpreter._patch_lang


def patch_language(fn: Any) -> Any:
    """Replace the language's functions by the interpreter's, unless they are: its scope, to leave.

    A launch replaces those of tl and restores them in the end. Those of tl.core, which functions
    that come with Triton use, are replaced when the first of these is called, and stay.
    """
    if any(tl.core.is_builtin(language.load) for language in (tl, tl.core)):
        return AS_IT_COMES(fn)
    return interpreter._LangPatchScope()


def patch_language_once_a_launch() -> None:
    """From now on in this process; kernels/test_interpreter.py sees that nothing else changes."""
    interpreter._patch_lang = patch_language
