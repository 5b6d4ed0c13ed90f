"""A model of a stated shape with random weights and the embedded model's tokenizer: as fast as a trained one."""

from __future__ import annotations

import sys

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from manners.models.pretrained import embedded_folder


def main() -> None:
    """Write the model into a folder: `random_model FOLDER LAYERS WIDTH`; heads are 64 wide, as SmolLM2's are."""
    folder, layers, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    config = AutoConfig.from_pretrained(embedded_folder())
    config.num_hidden_layers, config.hidden_size = layers, width
    config.intermediate_size = width * 8 // 3
    config.num_attention_heads, config.num_key_value_heads = width // 64, width // 192
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded_folder()).save_pretrained(folder)
    print(folder)


if __name__ == "__main__":
    main()
