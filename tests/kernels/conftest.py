"""What Triton's interpreter needs besides the variable that ``tests/conftest.py`` sets."""

import triton
import triton.runtime.interpreter as interpreter

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7):
    # Triton 3.6 turns one-element arrays into loop bounds by int(), which numpy >= 2.4 refuses.
    _patch = interpreter._patch_lang_tensor

    def _patch_with_index(tensor, scope):
        _patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(())))

    interpreter._patch_lang_tensor = _patch_with_index

    # Our device functions find the language patched by their kernel; doing it at each call is a third of the time.
    _call = interpreter.InterpretedFunction.__call__

    def _call_patched(self, *args, **kwargs):
        if self.fn.__module__.startswith("kernels."):
            return self.rewrite()(*args, **kwargs)
        return _call(self, *args, **kwargs)

    interpreter.InterpretedFunction.__call__ = _call_patched
