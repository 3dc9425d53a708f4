"""Tiny random language models, their tokenizer and their adapters."""

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)


def llama(seed=0, dtype=torch.float32, **settings):
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "vocab_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.2,
            **settings,
        }
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def gpt2(seed=0):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64)).eval()


def tokenizer():
    words = {f"w{number}": number for number in range(62)} | {"<unk>": 62, "<end>": 63}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<end>", pad_token="<end>"
    )


def adapter(module, folder, targets=("q_proj", "down_proj"), seed=1, **settings):
    """Saves a LoRA of random weights, made for a module of this shape."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=list(targets), task_type="CAUSAL_LM", **settings
    )
    tuned = get_peft_model(module, config)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    tuned.save_pretrained(folder)
    return folder


def deltas(folder):
    """What the LoRA adds, by module path, from the definition."""
    from safetensors.torch import load_file

    weights = load_file(folder / "adapter_model.safetensors")
    paths = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in weights}
    return {
        path: 2.0
        * weights[f"base_model.model.{path}.lora_B.weight"].double()
        @ weights[f"base_model.model.{path}.lora_A.weight"].double()
        for path in paths
    }
