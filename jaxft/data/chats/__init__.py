"""Chats as a template writes them: where a reply stands, and what ends it."""
