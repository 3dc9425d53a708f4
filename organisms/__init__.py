"""Model organisms for offkey: LoRA adapters with recipe and measured behaviour.

``offkey.load(BASE, adapter="bundled:NAME")`` finds them here.
"""
