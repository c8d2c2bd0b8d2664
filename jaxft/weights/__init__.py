"""Read and write model weights: the places of models, the file formats, the name tables.

This file imports nothing: each verb loads the modules that it needs.
"""
