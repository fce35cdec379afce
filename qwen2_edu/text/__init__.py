"""What a tokenizer stands on: cutting a text, the tokens there are, batches, files, templates."""
