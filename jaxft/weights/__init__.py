"""How weights come in: where a model is found, and the file formats it may be kept in.

Nothing is imported here: each module is loaded by the verb that needs it.
"""
