"""Recognise checkpoints whose weights are stored quantized, and say what to use instead.

Separate because no family can read them: they are told by one key of config.json, or by the names
of tensors that hold scales and packed codes. The invariant: such a model is refused as what it is,
never by a complaint about keys or tensors that only follow from it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxft.errors import UnsupportedModelError

# transformers' `quantization_config.quant_method`, as people know it. Others are shown as they are.
_METHODS = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "EETQ",
    "fbgemm_fp8": "FP8 (fbgemm_fp8)",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "modelopt": "ModelOpt",
    "mxfp4": "MXFP4",
    "quanto": "Quanto",
    "torchao": "torchao",
}
# Where the config does not count the bits, the method does.
_BITS = {"bitnet": 2, "eetq": 8, "fbgemm_fp8": 8, "fp8": 8, "mxfp4": 4}

# Keys at which config.json keeps it; the second is that of old compressed-tensors, the third MLX's.
_KEYS = ("quantization_config", "compression_config", "quantization")

# What the tensors of each kind are called beside, or in place of, a linear's weight. The first kind
# that has a name wins: GPTQ's are AWQ's and one more.
_TENSORS = (
    ("bitsandbytes, 4 bits", r".*\.weight\.(absmax|quant_map|nested_absmax|quant_state\..+)"),
    ("bitsandbytes, 8 bits", r".*\.(SCB|weight_format)"),
    ("GPTQ", r".*\.g_idx"),
    ("AWQ or GPTQ", r".*\.(qweight|qzeros)"),
    ("MXFP4", r".*_proj_blocks"),
    ("compressed-tensors", r".*\.weight_packed"),
    ("FP8, or another kind of 8 bits", r".*\.weight_scale(_inv)?"),
    ("HQQ", r".*\.W_q"),
    ("MLX", r".*_proj\.scales"),
)

_ORIGINAL = (
    "Adapters are trained over weights that are not quantized: take the original checkpoint, in "
    "float32, float16 or bfloat16"
)
_NO_ORIGINAL = {
    "mxfp4": "; where the model was released in MXFP4 alone, as gpt-oss was, a copy converted to "
    "bfloat16",
    "fp8": "; where the model was released in FP8 alone, a copy converted to bfloat16",
}
# A name on the Hub, and the words by which the name of a quantized copy is known.
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_COPY = re.compile(r"gptq|awq|bnb|nf4|hqq|quant|mlx|exl2|fp8|fp4|int[48]|w[48]a|[2-8]-?bit", re.I)


def refuse_quantized(config: Mapping[str, Any]) -> None:
    """Refuse the config.json of a quantized checkpoint, that of a part of it included.

    Raises:
        UnsupportedModelError: Names method and bits, and what to use instead.
    """
    for part in (config, config.get("text_config")):
        if not isinstance(part, Mapping):
            continue
        for key in _KEYS:
            described = part.get(key)
            if isinstance(described, Mapping) and described:
                method = _method(key, described)
                raise UnsupportedModelError(
                    "The model's config.json says that its weights are quantized: "
                    f"{_description(method, described)}.",
                    _remedy(method, config),
                )


def refuse_quantized_tensors(where: object, names: Iterable[str]) -> None:
    """Refuse a quantized checkpoint whose config.json does not say that it is one.

    Args:
        where: The file or folder, for the message.
        names: The names of all its tensors.

    Raises:
        UnsupportedModelError: Says what the tensors are, and what to use instead.
    """
    kind = quantization_of(names)
    if kind:
        raise UnsupportedModelError(
            f"{where}: by the names of its tensors the weights are quantized: {kind}.",
            _remedy("mxfp4" if kind == "MXFP4" else "fp8" if kind.startswith("FP8") else "", {}),
        )


def quantization_of(names: Iterable[str]) -> str:
    """Say how the tensors of these names are quantized; "" if none is known to be.

    A checkpoint that keeps scales is told by them, whatever its config.json says.
    """
    listed = list(names)
    for kind, pattern in _TENSORS:
        compiled = re.compile(pattern)
        if any(compiled.fullmatch(name) for name in listed):
            return kind
    return ""


def _method(key: str, described: Mapping[str, Any]) -> str:
    """Return the method's name as transformers spells it; "" where it is not said."""
    named = described.get("quant_method") or ("mlx" if key == "quantization" else "")
    if not named and any(name.endswith(("load_in_4bit", "load_in_8bit")) for name in described):
        named = "bitsandbytes"  # whose older configs do not name it
    return str(named).casefold()


def _description(method: str, described: Mapping[str, Any]) -> str:
    """Say method and bits, as far as the config does."""
    name = _METHODS.get(method, method or "a method that it does not name")
    bits = _bits(method, described)
    return f"{name}, {bits} bits" if bits else name


def _bits(method: str, described: Mapping[str, Any]) -> int | None:
    """Return the bits of a weight, or `None` where the config does not say."""
    for bits in (4, 8):
        if described.get(f"load_in_{bits}bit"):
            return bits
    groups = described.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    counted = weights.get("num_bits") if isinstance(weights, Mapping) else None
    named = (described.get(key) for key in ("bits", "w_bit", "nbits"))
    return next((bits for bits in (*named, counted) if isinstance(bits, int)), _BITS.get(method))


def _remedy(method: str, config: Mapping[str, Any]) -> str:
    """Say what to use instead, with the original's name where the config has it."""
    released = _NO_ORIGINAL.get(method, "")
    origin = config.get("_name_or_path")
    is_name = isinstance(origin, str) and _HUB_NAME.fullmatch(origin) and not _COPY.search(origin)
    return _ORIGINAL + released + (f" (config.json names {origin})." if is_name else ".")
