"""The text tower of a model, exported once while torch is there, so that a question in words never waits for torch.

    text/tower.json           whose tower this is, its plan, how words are read, the sizes and checksums of the others
    text/tower.safetensors    its weights, mapped into memory by whoever asks
    text/tokenizer.json       the tokenizer, where it is one of the tokenizers library

The folder lies inside that of an index. It is derived: without it, or with one that is damaged, torch answers, slower,
and the next `mmsearch index` makes it again.
"""

FOLDER = "text"
"""What the folder is called inside that of an index."""
