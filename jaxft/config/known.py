"""Options of PEFT, transformers and TRL that are not options of jaxft yet.

The error for such a name says "known, not supported yet", and does not take it for a spelling
mistake. If its value asks for nothing (the feature is off, or jaxft does the same anyway), the name
is accepted and dropped. So a recipe made from a dump of `TrainingArguments` or `LoraConfig` works.
A name leaves these tables when it becomes an option.

Source: the fields of peft 0.21.2 `LoraConfig`, transformers 5.23.0 `TrainingArguments`, and TRL
1.10 `SFTConfig` and `ModelConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Known(NamedTuple):
    """A name from another library.

    Attributes:
        harmless: The values that ask for nothing.
        instead: The option of jaxft that does the same.
        how: How to write that option, such as "as `columns: {text: NAME}`".
    """

    harmless: tuple[Any, ...]
    instead: str = ""
    how: str = ""

    def accepts(self, value: Any) -> bool:
        """Return whether `value` asks for nothing."""
        return any(type(value) is type(same) and value == same for same in self.harmless)


def _off(*names: str, values: tuple[Any, ...] = (None, False)) -> dict[str, Known]:
    """Return entries for names of features that are off at each of `values`."""
    return {name: Known(values) for name in names}


MODEL: Mapping[str, Known] = {
    "load_in_4bit": Known((None, False), "model.quantization"),
    "load_in_8bit": Known((None, False), "model.quantization"),
    "quantization_config": Known((None,), "model.quantization"),
    "device_map": Known((None, "auto"), "mesh"),
    "low_cpu_mem_usage": Known((None, False, True)),
    **_off("trust_remote_code"),
    **_off("attn_implementation", "model_init_kwargs", "bnb_4bit_quant_type", values=(None,)),
    "torch_dtype": Known((), "model.dtype"),
    "model_name_or_path": Known((), "model.path"),
    "model_revision": Known((), "model.revision"),
}

LORA: Mapping[str, Known] = {
    **_off(
        "corda_config",
        "lora_ga_config",
        "velora_config",
        "kasa_config",
        "monteclora_config",
        "arrow_config",
        "alora_invocation_tokens",
        "megatron_config",
        "layer_replication",
        "use_bdlora",
        "auto_mapping",
        "peft_version",
        "runtime_config",
        values=(None,),
    ),
    **_off("use_qalora"),
    **_off("target_parameters", values=(None, [])),
    **_off("loftq_config", values=(None, {})),
    # The files of the model say how a kernel is stored.
    "fan_in_fan_out": Known((None, False, True)),
    "task_type": Known((None, "CAUSAL_LM")),
    "peft_type": Known((None, "LORA")),
    "inference_mode": Known((None, False)),
    "megatron_core": Known((None, "megatron.core")),
    "qalora_group_size": Known((16,)),
    "base_model_name_or_path": Known((None,), "model.path"),
    "revision": Known((None,), "model.revision"),
}

DATA: Mapping[str, Known] = {
    **_off("padding_free", "eval_packing", "dataset_kwargs"),
    "chat_template_path": Known((None,), "data.chat_template"),
    "dataset_text_field": Known((None, "text"), "data.train.columns", "as `{text: NAME}`"),
    "packing_strategy": Known(("bfd",)),
    "truncation_mode": Known(("keep_start",)),
    "pad_token": Known((None,)),
    "pad_to_multiple_of": Known((None,)),
    "completion_only_loss": Known((None, True), "data.train_on", "as `train_on: all`"),
    "assistant_only_loss": Known((True,), "data.train_on", "as `train_on: all`"),
    "shuffle_dataset": Known((), "data.shuffle"),
}

TRAIN: Mapping[str, Known] = {
    **_off(
        "lr_scheduler_kwargs",
        "optim_args",
        "optim_target_modules",
        "activation_checkpointing_kwargs",
        "gradient_checkpointing_kwargs",
        "torch_compile_backend",
        "torch_compile_mode",
        "liger_kernel_config",
        "torch_empty_cache_steps",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "run_name",
        "logging_dir",
        "eval_accumulation_steps",
        "metric_for_best_model",
        "greater_is_better",
        "hub_token",
        "hub_private_repo",
        "hub_model_id",
        "hub_revision",
        "data_seed",
        "accelerator_config",
        "parallelism_config",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
        "label_names",
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
        "ddp_static_graph",
        "ddp_backend",
        "deepspeed",
        values=(None,),
    ),
    **_off(
        "bf16_full_eval",
        "fp16_full_eval",
        "torch_compile",
        "use_liger_kernel",
        "use_cache",
        "auto_find_batch_size",
        "logging_first_step",
        "disable_tqdm",
        "prediction_loss_only",
        "batch_eval_metrics",
        "save_only_model",
        "enable_jit_checkpoint",
        "push_to_hub",
        "hub_always_push",
        "load_best_model_at_end",
        "ignore_data_skip",
        "restore_callback_states_from_checkpoint",
        "full_determinism",
        "dataloader_persistent_workers",
        "activation_offloading",
        "do_predict",
    ),
    # Both values compute the same here.
    **_off(
        "do_train",
        "do_eval",
        "remove_unused_columns",
        "dataloader_pin_memory",
        "dataloader_in_order",
        "skip_memory_metrics",
        "log_on_each_node",
        "save_on_each_node",
        "logging_nan_inf_filter",
        "eval_do_concat_batches",
        "eval_use_gather_object",
        values=(None, False, True),
    ),
    **_off("neftune_noise_alpha", "label_smoothing_factor", values=(None, 0, 0.0)),
    **_off("eval_delay", "dataloader_num_workers", values=(0,)),
    **_off("log_level", "log_level_replica", values=("passive", "warning")),
    **_off("include_for_metrics", values=(None, [])),
    "average_tokens_across_devices": Known((True,)),
    "bf16": Known((False,), "model.dtype"),
    "fp16": Known((False,), "model.dtype"),
    "tf32": Known((None, False)),
    "activation_checkpointing": Known((None, False), "train.gradient_checkpointing"),
    "logging_strategy": Known(("steps",), "train.logging_steps"),
    "include_num_input_tokens_seen": Known((False, "no")),
    "report_to": Known((None, "none", [], ["none"])),
    "project": Known((None, "huggingface")),
    "hub_strategy": Known(("every_save",)),
    # With evaluation on, the base is always evaluated before the first step.
    "eval_on_start": Known((False, True)),
    "use_cpu": Known((False,)),
    "train_sampling_strategy": Known(
        ("random",), "data.shuffle", "or `data.group_by_length: true` for `group_by_length`"
    ),
    "group_by_length": Known((False,), "data.group_by_length"),
    "length_column_name": Known(("length",)),
    "ddp_timeout": Known((1800,)),
    "fsdp": Known((None, "", []), "mesh.fsdp"),
    "fsdp_config": Known((None, {}), "mesh.fsdp"),
    "debug": Known((None, "", [])),
    "local_rank": Known((-1,)),
    # The plain and the chunked cross-entropy give the same number.
    "loss_type": Known((None, "nll", "chunked_nll")),
}

# Values of transformers or PEFT for options that jaxft has too, which are not supported yet.
VALUES: Mapping[str, frozenset[str]] = {
    "lr_scheduler_type": frozenset(
        [
            "cosine_with_restarts",
            "polynomial",
            "inverse_sqrt",
            "reduce_lr_on_plateau",
            "cosine_with_min_lr",
            "cosine_warmup_with_min_lr",
            "warmup_stable_decay",
            "greedy",
        ]
    ),
    "init_lora_weights": frozenset(["corda", "loftq", "lora_ga", "mica"]),
    "optim": frozenset(
        [
            "adafactor",
            "adamw_8bit",
            "adamw_bnb_8bit",
            "adamw_torch_4bit",
            "adamw_torch_8bit",
            "ademamix",
            "sgd",
            "adagrad",
            "lion_32bit",
            "lion_8bit",
            "paged_adamw_32bit",
            "paged_adamw_8bit",
            "paged_lion_32bit",
            "paged_lion_8bit",
            "rmsprop",
            "galore_adamw",
            "lomo",
            "adalomo",
            "schedule_free_adamw",
            "stable_adamw",
            "apollo_adamw",
        ]
    ),
    "save_strategy": frozenset({"best"}),
    "dtype": frozenset({"float16", "fp16"}),
}

# Other names in use, and the option that each of them means.
RENAMED: Mapping[str, str] = {
    "rank": "lora.r",
    "lora_r": "lora.r",
    "alpha": "lora.lora_alpha",
    "dropout": "lora.lora_dropout",
    "lora_target_modules": "lora.target_modules",
    "lr": "train.learning_rate",
    "epochs": "train.num_train_epochs",
    "steps": "train.max_steps",
    "batch_size": "train.per_device_train_batch_size",
    "gradient_clipping": "train.max_grad_norm",
    "evaluation_strategy": "train.eval_strategy",
    "lr_scheduler": "train.lr_scheduler_type",
    "max_seq_length": "data.max_length",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "train_file": "data.train",
    "validation_file": "data.eval",
    "val_set_size": "data.hold_out",
    "test_size": "data.hold_out",
    "train_on_inputs": "data.train_on",
    "num_proc": "data.dataset_num_proc",
    "buffer_size": "data.shuffle_buffer",
}
