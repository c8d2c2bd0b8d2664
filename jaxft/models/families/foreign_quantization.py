"""Recognize checkpoints whose weights are stored quantized, and say which one to use instead.

No family can read them. One key of config.json gives them away, or the names of tensors that hold
scales and packed codes. The invariant: the message says that the model is quantized; it never
complains about single keys or tensors.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxft.errors import UnsupportedModelError

# The common name of each `quantization_config.quant_method`. A method that is missing here is
# shown as config.json spells it.
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
# The bits of methods whose config does not state them.
_BITS = {"bitnet": 2, "eetq": 8, "fbgemm_fp8": 8, "fp8": 8, "mxfp4": 4}

# Keys of config.json that hold the description. The second is from old compressed-tensors, the
# third from MLX.
_KEYS = ("quantization_config", "compression_config", "quantization")

# The names of the tensors that each kind stores beside, or instead of, the weight of a linear
# module. The first match wins: GPTQ stores the tensors of AWQ and one more.
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
# A name on the Hub, and the words that mark the name of a quantized copy.
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_COPY = re.compile(r"gptq|awq|bnb|nf4|hqq|quant|mlx|exl2|fp8|fp4|int[48]|w[48]a|[2-8]-?bit", re.I)


def refuse_quantized(config: Mapping[str, Any]) -> None:
    """Refuse a config.json that says, itself or in its text part, that the weights are quantized.

    Raises:
        UnsupportedModelError: It says so; the message names the method, the bits and what to use.
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
        UnsupportedModelError: The tensors are quantized; the message says how, and what to use.
    """
    kind = quantization_of(names)
    if kind:
        raise UnsupportedModelError(
            f"{where}: by the names of its tensors the weights are quantized: {kind}.",
            _remedy("mxfp4" if kind == "MXFP4" else "fp8" if kind.startswith("FP8") else "", {}),
        )


def quantization_of(names: Iterable[str]) -> str:
    """Return how tensors with these names are quantized: "GPTQ"; "" if they are not.

    Only the names count, whatever config.json says.
    """
    listed = list(names)
    for kind, pattern in _TENSORS:
        compiled = re.compile(pattern)
        if any(compiled.fullmatch(name) for name in listed):
            return kind
    return ""


def _method(key: str, described: Mapping[str, Any]) -> str:
    """Return the method's name as transformers spells it; "" if the config does not name it."""
    named = described.get("quant_method") or ("mlx" if key == "quantization" else "")
    if not named and any(name.endswith(("load_in_4bit", "load_in_8bit")) for name in described):
        named = "bitsandbytes"  # older configs of it do not name the method
    return str(named).casefold()


def _description(method: str, described: Mapping[str, Any]) -> str:
    """Return the method and its bits, "GPTQ, 4 bits"; without the bits if they are not known."""
    name = _METHODS.get(method, method or "a method that it does not name")
    bits = _bits(method, described)
    return f"{name}, {bits} bits" if bits else name


def _bits(method: str, described: Mapping[str, Any]) -> int | None:
    """Return the bits of a weight; `None` if they are not known."""
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
    """Return what to use instead, with the original's name if the config has it."""
    released = _NO_ORIGINAL.get(method, "")
    origin = config.get("_name_or_path")
    is_name = isinstance(origin, str) and _HUB_NAME.fullmatch(origin) and not _COPY.search(origin)
    return _ORIGINAL + released + (f" (config.json names {origin})." if is_name else ".")
