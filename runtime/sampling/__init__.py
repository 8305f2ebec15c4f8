"""Which token comes next: samplers, beam search, speculative decoding."""
