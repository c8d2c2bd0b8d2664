"""Chats as the text of a template: the position of each reply, and the token that ends it."""
