"""What a corpus becomes: discover, decode, embed, store. Knows nothing of questions."""
