"""Model folders of Hugging Face: config.json, files of weights, tokenizer."""
