"""The model types that are not supported, by kind, so that a refusal can say why.

The invariant: no type is both in this table and in `FAMILIES`.

Source: the causal language models of transformers 5.23, `modeling_auto.py`.
"""

EXPERTS = "a mixture of experts"
LATENT = "a model with latent attention"
LINEAR = "a model with state-space, linear-attention or recurrent layers"
ENCODER = "an encoder, or a decoder that belongs to one"
MULTIMODAL = "a model whose text part is not a causal language model of its own"
OTHER = "a model with a part that no other family has"

_TYPES: dict[str, str] = {
    EXPERTS: """afmoe aria_text axk1 axk2 beam cohere2_moe dbrx deepseek_v2 deepseek_v3 deepseek_v32
        deepseek_v4 dots1 dots3_note ernie4_5_moe exaone_moe flex_olmo flint glm4_moe glm4_moe_lite
        glm_moe_dsa gpt_oss granitemoe granitemoe_swa granitemoeshared hunyuan_v1_moe hy_v3 hy_v4
        jetmoe kolibri1 laguna llama4 llama4_text longcat_flash mellum mimo_v2_flash minimax_m2
        mixtral olmoe phimoe qwen2_moe qwen3_moe solar_open zaya""",
    LATENT: "minicpm3 youtu",
    LINEAR: """bailing_hybrid bamba falcon_h1 falcon_mamba jamba kimi_linear lfm2_moe lfm3
        mamba mamba2 minimax nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text
        qwen3_5_text qwen3_next qwen4_exp qwen4_exp_text recurrent_gemma rwkv xlstm zamba zamba2""",
    ENCODER: """bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small
        camembert data2vec-text electra ernie marian mbart megatron-bert mvp pegasus plbart
        prophetnet rembert roberta roberta-prelayernorm roc_bert roformer t5 trocr whisper xlm
        xlm-roberta xlm-roberta-xl xlnet xmod""",
    MULTIMODAL: """emu3 fuyu gemma3n gemma4 git got_ocr2 mllama moshi musicgen musicgen_melody
        phi4_multimodal""",
    OTHER: """bitnet blt codegen cpmant ctrl diffllama doge gemma3n_text gemma4_text
        gpt_neox_japanese hrm_text internlm3 modernbert-decoder nanochat
        openai-gpt persimmon reformer""",
}
_BY_TYPE = {name: kind for kind, names in _TYPES.items() for name in names.split()}


def kind_of(model_type: str) -> str:
    """Return the kind of an unsupported model type, `EXPERTS`; "" if the table lacks it."""
    return _BY_TYPE.get(model_type, "")


def by_kind() -> dict[str, list[str]]:
    """Return the model types of each kind."""
    return {kind: names.split() for kind, names in _TYPES.items()}
