"""The model: tokenizer, loading, adapters, training, decoding. torch lives here, in export and in serving."""
