//! Pooling, normalising and number formats of embeddings.
