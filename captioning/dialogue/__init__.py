"""Conversations with captioning engines about many clips, and the journal that stores the answers."""
