"""What a sampler keeps of itself in a study: CMA-ES a pickle, which is read as numbers and nothing else.

The study lies in the sweep's folder, which may be a stranger's. The one such pickle of Optuna's (5.0.0, tried) holds
an object of `cmaes`, numpy's arrays and its generator; whatever else it names is refused before it is made.
"""

import io
import pickle
from typing import Any

# What each of these makes is data; no function of numpy's that loads or runs anything is among them.
HARMLESS: dict[str, tuple[str, ...]] = {
    "cmaes._cma": ("CMA",),
    "cmaes._cmawm": ("CMAwM",),
    "cmaes._sepcma": ("SepCMA",),
    **dict.fromkeys(("numpy.core.multiarray", "numpy._core.multiarray"), ("_reconstruct", "scalar")),
    **dict.fromkeys(("numpy.core.numeric", "numpy._core.numeric"), ("_frombuffer",)),
    "numpy": ("ndarray", "dtype"),
    "numpy.random._pickle": ("__randomstate_ctor", "__bit_generator_ctor"),
    "numpy.random._mt19937": ("MT19937",),
    "_codecs": ("encode",),
}


class DataOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f"a sampler's state names {module}.{name}, which is not made")
        return super().find_class(module, name)


def loads(text: bytes) -> Any:
    return DataOnly(io.BytesIO(text)).load()
